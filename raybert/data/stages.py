"""What happens to a split between reading and commit: plain functions on one-row tables, no Ray needed.

    read ──> encode ──> model ──> write
    a task    texts to   windows    arrays to columns,
    to its    windows    to arrays  part and quarantine
    splits                          committed

A fault of one file or of the disk doesn't end the job: it travels on in the row's note under ``error``, every later
stage passes it by, and the driver reports it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.cluster import limit_worker_threads
from raybert.config import HeadSpec
from raybert.data.cells import from_row, to_row, vectors_from, vectors_table, windows_from, windows_table
from raybert.data.part import Receipt, encode_part, encode_quarantine, quarantine_name
from raybert.data.read import RawSplit, ReadSpec, read_splits
from raybert.data.rows import TEXT
from raybert.data.splits import InputFile, ReadTask, Split, part_name
from raybert.data.store import Store
from raybert.errors import DeviceError, RaybertError
from raybert.tasks import Task, make_task
from raybert.version import VERSION

Note = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every stage of a run knows; small, picklable, without the list of files.

    Attributes:
        heads: as asked for, in column order.
        fingerprints: of each head, by name; a worker that computes another one refuses.
        engine: `EngineSettings` in plain form, imposed on every model actor.
        streams: threads of arithmetic in a model actor.
        read: where and how to read.
        output: URI of OUTPUT.
        shaping: digest of what shapes rows; it enters every part's name.
        schema: the output schema, serialised: a pickled one forgets details.
        vector_type: float32 or float16.
    """

    heads: tuple[HeadSpec, ...]
    fingerprints: Mapping[str, str]
    engine: Mapping[str, Any]
    streams: int
    read: ReadSpec
    output: str
    shaping: str
    schema: bytes
    vector_type: str


@dataclass(frozen=True)
class Program:
    """Opened heads, grouped: heads of one trunk and equal windows share encoding and forward."""

    tasks: Mapping[str, Task]
    groups: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=4)
def _program(heads: tuple[tuple[Any, ...], ...]) -> Program:
    specs = [
        HeadSpec(name=name, task=task, model=model, revision=revision, options=dict(options))
        for name, task, model, revision, options in heads
    ]
    return group_heads({spec.name: make_task(spec) for spec in specs})


def open_program(heads: Sequence[HeadSpec]) -> Program:
    """Open heads once a process; later calls with equal heads give the same object."""
    return _program(tuple((h.name, h.task, h.model, h.revision, tuple(sorted(h.options.items()))) for h in heads))


def group_heads(tasks: Mapping[str, Task]) -> Program:
    """Group heads by trunk and windows, in the order of their first members."""
    from raybert.checkpoint.digest import trunk_digest

    groups: dict[tuple[str, str], list[str]] = {}
    for name, task in tasks.items():
        groups.setdefault((trunk_digest(task.checkpoint), task.encoding_key), []).append(name)
    return Program(tasks, tuple(tuple(names) for names in groups.values()))


def error_row(note: Note, error: RaybertError) -> pa.Table:
    """The row that stands for what an error took away."""
    return to_row({**note, "error": str(error), "kind": type(error).__name__}, {})


def read_stage(task: ReadTask, job: Job) -> Iterator[pa.Table]:
    """One read task -> a row for each of its splits."""
    note: Note = {"file": asdict(task.file), "begin": task.begin}

    def as_row(raw: RawSplit) -> pa.Table:
        split = {"begin": raw.split.begin, "end": raw.split.end, "last": raw.split.last}
        return to_row({**note, **split}, {"rows": raw.rows, "bad": raw.bad})

    try:
        # No name here holds a split that was handed on while the next one is read.
        yield from map(as_row, read_splits(task, job.read))
    except RaybertError as error:
        yield error_row(note, error)


def encode_stage(row: pa.Table, job: Job) -> pa.Table:
    """Texts of a split -> windows of each group of heads; the texts end here."""
    note, tables = from_row(row)
    if "error" in note:
        return row
    program = open_program(job.heads)
    texts = tables["rows"][TEXT].to_pylist()
    tables["rows"] = tables["rows"].drop_columns([TEXT])
    for number, names in enumerate(program.groups):
        tables[f"windows{number}"] = windows_table(program.tasks[names[0]].encode(texts))
    return to_row(note, tables)


class ModelStage:
    """A model actor: loads its trunks once, then turns windows into arrays. It sees integers, never texts."""

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        fingerprints: Mapping[str, str],
        engine: Mapping[str, Any],
        streams: int,
    ) -> None:
        """Load.

        Args:
            specs: the heads.
            fingerprints: that they must have, by name.
            engine: `EngineSettings` in plain form, imposed.
            streams: threads of arithmetic.

        Raises:
            DeviceError: this machine can't obey the run's settings.
            CheckpointError: a checkpoint can't be read here, or is another one than the driver's.
        """
        limit_worker_threads()  # before torch is imported
        from raybert.engine import EngineSettings, Trunk

        settings = EngineSettings.from_dict(engine)
        settings.check()
        self._program = open_program(specs)
        for name, task in self._program.tasks.items():
            if task.fingerprint(settings.dtype) != fingerprints[name]:
                raise DeviceError(
                    f"head {name}: the checkpoint {task.checkpoint.path} on this node is another one than the "
                    "driver's; put the same files on every node"
                )
        self._trunks = [
            Trunk({name: self._program.tasks[name] for name in names}, settings, threads=streams)
            for names in self._program.groups
        ]

    def __call__(self, row: pa.Table) -> pa.Table:
        """Windows of a split -> one array a head."""
        note, tables = from_row(row)
        if "error" in note:
            return row
        begin = time.perf_counter()
        for number, (names, trunk) in enumerate(zip(self._program.groups, self._trunks, strict=True)):
            windows = windows_from(tables[f"windows{number}"])
            for name, array in trunk.run(windows, names).items():
                tables[f"array.{name}"] = vectors_table(array)
        return to_row({**note, "model_s": time.perf_counter() - begin}, tables)


def head_columns(
    program: Program, tables: Mapping[str, pa.Table], vector_type: str
) -> tuple[dict[str, pa.Array], dict[str, int]]:
    """Output columns of all heads, and each head's tokens before truncation."""
    columns: dict[str, pa.Array] = {}
    tokens: dict[str, int] = {}
    for number, names in enumerate(program.groups):
        windows = windows_from(tables[f"windows{number}"])
        for name in names:
            task = program.tasks[name]
            arrays = task.arrow(windows, vectors_from(tables[f"array.{name}"]), vector_type)
            fields = task.columns(name, vector_type)
            columns |= {field.name: array for field, array in zip(fields, arrays, strict=True)}
            columns[f"{name}_tokens"] = pa.array(windows.tokens, pa.int32())
            columns[f"{name}_truncated"] = pa.array(windows.truncated, pa.bool_())
            tokens[name] = int(windows.tokens.sum(dtype=np.int64))
    return columns, tokens


def head_fields(task: Task, name: str, vector_type: str) -> list[pa.Field]:
    """All fields that a head adds to a part."""
    counts = [pa.field(f"{name}_tokens", pa.int32()), pa.field(f"{name}_truncated", pa.bool_())]
    return [*task.columns(name, vector_type), *counts]


def write_stage(row: pa.Table, job: Job) -> pa.Table:
    """Arrays of a split -> its committed files; what is left is the note."""
    note, tables = from_row(row)
    if "error" in note:
        return row
    try:
        return to_row({**note, **_commit(note, tables, job), "committed": time.time()}, {})
    except RaybertError as error:
        return error_row(note, error)


def _commit(note: Note, tables: Mapping[str, pa.Table], job: Job) -> Note:
    file = InputFile(**note["file"])
    split = Split(file=file.number, begin=note["begin"], end=note["end"], last=note["last"])
    rows, bad = tables["rows"], tables["bad"]
    columns, tokens = head_columns(open_program(job.heads), tables, job.vector_type)
    schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
    numbers = pa.array(np.full(len(rows), file.number, np.int32))
    columns |= {"_file": numbers} | {name: rows[name] for name in rows.column_names}
    receipt = Receipt(
        file=file.number,
        first_row=split.begin,
        rows_in=split.end - split.begin,
        ok=len(rows),
        quarantined=len(bad),
        filtered=0,
        tokens=tokens,
        fingerprints=job.fingerprints,
        version=VERSION,
        last=split.last,
    )
    part = encode_part(pa.table([columns[name] for name in schema.names], schema=schema), receipt)
    name, store = part_name(file, split, job.shaping), _store(job.output)
    # The quarantine comes first: a part that is there proves that its quarantine is there too.
    if len(bad):
        bad = bad.add_column(0, "_file", pa.array(np.full(len(bad), file.number, np.int32)))
        store.write(quarantine_name(name), encode_quarantine(bad))
    store.write(name, part)
    return {"part": name, "ok": len(rows), "quarantined": len(bad), "tokens": tokens}


@lru_cache(maxsize=1)
def _store(uri: str) -> Store:
    """One client of an object store a process, not one a split."""
    return Store(uri)


def load_check(heads: Sequence[HeadSpec], device: str, dtype: str, budget: int | None) -> dict[str, Any]:
    """On a worker of the actors' kind: resolve every ``auto`` and load every head once.

    Whatever is wrong with a checkpoint or device comes to light here, before OUTPUT is touched.

    Returns:
        `EngineSettings` in plain form.
    """
    from raybert.engine import Trunk, choose_settings

    program = open_program(heads)
    widths = [
        t.checkpoint.config.hidden_size // t.checkpoint.config.num_attention_heads for t in program.tasks.values()
    ]
    settings = choose_settings(device=device, dtype=dtype, budget=budget, head_width=max(widths))
    for names in program.groups:
        Trunk({name: program.tasks[name] for name in names}, settings).close()
    return settings.as_dict()
