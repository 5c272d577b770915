"""What happens to a split between reading and commit: plain functions on one-row tables, no Ray needed.

    read ──> encode ──> model ──> write
    a task    texts to   windows    arrays to columns,
    to its    windows    to arrays  part and quarantine
    splits                          committed

A fault of one file or of the disk doesn't end the job: it travels on in the row's note under ``error``, every later
stage passes it by, and the driver reports it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.cluster import limit_worker
from raybert.config import HeadSpec
from raybert.data.cells import (
    arrays_from,
    arrays_table,
    from_row,
    numbers_from,
    numbers_table,
    places_table,
    sequences_from,
    sequences_table,
    to_row,
    windows_from,
)
from raybert.data.driver import check_driven
from raybert.data.part import Receipt, encode_part, encode_quarantine, quarantine_name
from raybert.data.read import RawSplit, ReadSpec, read_splits
from raybert.data.rows import PAIR, TEXT
from raybert.data.splits import InputFile, ReadTask, Split, part_name
from raybert.data.store import Store
from raybert.errors import CheckpointError, DeviceError, InputError, RaybertError
from raybert.tasks.program import Program, open_program
from raybert.text.encoding import Windows
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
        driver: token of the driver that owns OUTPUT; nothing is committed where another one does.
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
    driver: str

    @property
    def pairs(self) -> bool:
        """Whether a second text, or a list of choices, stands beside each text."""
        return self.read.pair_column is not None


def _program(heads: Sequence[HeadSpec], *, pairs: bool = False) -> Program:
    """The heads, opened on this worker's node.

    Raises:
        CheckpointError: one can't be, though the driver has opened it on its own node.
    """
    try:
        return open_program(heads, pairs=pairs)
    except CheckpointError as error:
        where = f"on node {socket.gethostname()}, though the driver could read it"
        raise CheckpointError(f"{error}; so it is {where}: put the same files on every node") from error


def error_row(note: Note, error: RaybertError) -> pa.Table:
    """The row that stands for what an error took away."""
    return to_row({**note, "error": str(error), "kind": type(error).__name__}, {})


def read_stage(task: ReadTask, job: Job) -> Iterator[pa.Table]:
    """One read task -> a row for each of its splits."""
    note: Note = {"file": asdict(task.file), "begin": task.begin}

    def as_row(raw: RawSplit, begun: float) -> pa.Table:
        split = {"begin": raw.split.begin, "end": raw.split.end, "last": raw.split.last}
        seconds = time.perf_counter() - begun
        counted = {**split, "filtered": raw.filtered, "read_s": seconds}
        return to_row({**note, **counted}, {"rows": raw.rows, "bad": raw.bad})

    splits = read_splits(task, job.read)
    try:
        while True:
            begun = time.perf_counter()
            try:
                row = [as_row(next(splits), begun)]
            except StopIteration:
                return
            yield row.pop()  # no name here holds a split that was handed on while the next one is read
    except RaybertError as error:
        yield error_row(note, error)


def encode_stage(row: pa.Table, job: Job) -> pa.Table:
    """Texts of a split -> windows; texts that no head decodes from end here."""
    note, tables = from_row(row)
    if "error" in note:
        return row
    rows, begun = tables["rows"], time.perf_counter()
    try:
        program = _program(job.heads, pairs=job.pairs)
        tables |= encoded_tables(program, *row_texts(rows))
    except RaybertError as error:
        return error_row(note, error)
    if not any(task.needs_texts for task in program.tasks.values()):
        tables["rows"] = rows.drop_columns([name for name in (TEXT, PAIR) if name in rows.column_names])
    return to_row({**note, "encode_s": time.perf_counter() - begun}, tables)


def row_texts(rows: pa.Table) -> tuple[list[str], list[Any] | None]:
    """The texts of a split's rows, and what stands beside them if anything does."""
    return rows[TEXT].to_pylist(), rows[PAIR].to_pylist() if PAIR in rows.column_names else None


def encoded_tables(program: Program, texts: Sequence[str], seconds: Sequence[Any] | None) -> dict[str, pa.Table]:
    """Windows of all heads: what each trunk computes, and how each encoding finds its own among it."""
    encoded = program.encode(texts, seconds)
    tables = {f"encoding{number}": places_table(windows) for number, windows in enumerate(encoded)}
    for trunk in range(len(program.trunks)):
        sequences, parts = program.shared(trunk, encoded)
        tables[f"trunk{trunk}"] = sequences_table(sequences)
        for number, part in parts.items():
            if part is not None:
                tables[f"part{trunk}.{number}"] = numbers_table(part)
    return tables


class ModelStage:
    """A model actor: loads its trunks once, then turns windows into arrays. It reads integers.

    Texts that a head decodes from pass it by in the same cell, unread. Two threads may call it at once: the second
    split is unpacked and waits, and begins while the last batches of the first are computed.
    """

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        fingerprints: Mapping[str, str],
        engine: Mapping[str, Any],
        streams: int,
        pairs: bool,
    ) -> None:
        """Load.

        Args:
            specs: the heads.
            fingerprints: that they must have, by name.
            engine: `EngineSettings` in plain form, imposed.
            streams: threads of arithmetic.
            pairs: whether a second text stands beside each text.

        Raises:
            DeviceError: this machine can't obey the run's settings.
            CheckpointError: a checkpoint can't be read here, or is another one than the driver's.
        """
        limit_worker()  # before torch is imported
        from raybert.engine import EngineSettings, Trunk

        settings = EngineSettings.from_dict(engine)
        settings.check()
        self._program = _program(specs, pairs=pairs)
        for name, task in self._program.tasks.items():
            if task.fingerprint(settings.dtype) != fingerprints[name]:
                raise DeviceError(
                    f"head {name}: the checkpoint {task.checkpoint.path} on this node is another one than the "
                    "driver's; put the same files on every node"
                )
        self._trunks = [
            Trunk({name: self._program.tasks[name] for name in names}, settings, threads=streams)
            for names in self._program.trunks
        ]
        self._turn, self._clock, self._ended = threading.Lock(), threading.Lock(), 0.0

    def __call__(self, row: pa.Table) -> pa.Table:
        """Windows of a split -> a few numbers a head."""
        note, tables = from_row(row)
        if "error" in note:
            return row
        begun, tokens = time.perf_counter(), 0
        for number, (names, trunk) in enumerate(zip(self._program.trunks, self._trunks, strict=True)):
            sequences = sequences_from(tables[f"trunk{number}"])
            tokens += len(sequences.ids)
            parts = {name: _part(tables, number, self._program.encoding_of(name)) for name in names}
            for name, arrays in trunk.run(sequences, parts, turn=self._turn).items():
                tables[f"arrays.{name}"] = arrays_table(arrays)
        return to_row({**note, "model_s": self._seconds(begun), "forwarded": tokens}, tables)

    def _seconds(self, begun: float) -> float:
        """What a split that ends now took: since it began or, if that is later, since the one before it ended."""
        with self._clock:
            now, before = time.perf_counter(), self._ended
            self._ended = now
        return now - max(begun, before)


def _part(tables: Mapping[str, pa.Table], trunk: int, encoding: int) -> np.ndarray | None:
    """Which of a trunk's windows are an encoding's own; None: all."""
    table = tables.get(f"part{trunk}.{encoding}")
    return None if table is None else numbers_from(table)


def _windows(program: Program, tables: Mapping[str, pa.Table], encoding: int) -> Windows:
    """The windows of an encoding, as they were cut."""
    trunk = next(number for number in range(len(program.trunks)) if encoding in program.encodings_of(number))
    part, sequences = _part(tables, trunk, encoding), sequences_from(tables[f"trunk{trunk}"])
    return windows_from(tables[f"encoding{encoding}"], sequences if part is None else sequences.select(part))


def head_columns(
    program: Program,
    tables: Mapping[str, pa.Table],
    vector_type: str,
    texts: Sequence[str],
    seconds: Sequence[Any] | None,
) -> tuple[dict[str, pa.Array], dict[str, int]]:
    """Output columns of all heads, and each head's tokens before truncation."""
    columns: dict[str, pa.Array] = {}
    tokens: dict[str, int] = {}
    for number, names in enumerate(program.encodings):
        windows = _windows(program, tables, number)
        for name in names:
            task = program.tasks[name]
            arrays = arrays_from(tables[f"arrays.{name}"])
            found = task.arrow(task.items(texts, seconds), windows, arrays, vector_type)
            fields = task.columns(name, vector_type)
            columns |= {field.name: array for field, array in zip(fields, found, strict=True)}
            columns[f"{name}_tokens"] = pa.array(windows.tokens, pa.int32())
            columns[f"{name}_truncated"] = pa.array(windows.truncated, pa.bool_())
            tokens[name] = int(windows.tokens.sum(dtype=np.int64))
    return columns, tokens


def write_stage(row: pa.Table, job: Job) -> pa.Table:
    """Arrays of a split -> its committed files; what is left is the note."""
    note, tables = from_row(row)
    if "error" in note:
        return row
    begun = time.perf_counter()
    try:
        done = _commit(make_files(note, tables, job), job)
    except RaybertError as error:
        return error_row(note, error)
    return to_row({**note, **done, "write_s": time.perf_counter() - begun, "committed": time.time()}, {})


def compute_split(task: ReadTask, job: Job, model: Callable[[pa.Table], pa.Table]) -> None:
    """All that happens to the splits of a task before their commit, in this process.

    Raises:
        InputError: the file is at fault.
        Exception: whatever a row may cause.
    """
    for read in read_stage(task, job):
        note, tables = from_row(model(encode_stage(read, job)))
        if "error" in note:
            raise InputError(note["error"])
        make_files(note, tables, job)


@dataclass(frozen=True, kw_only=True)
class Files:
    """A split's files, complete and not yet written.

    Attributes:
        name: of the part.
        part: its bytes.
        quarantine: bytes of its file in the quarantine; None where no row is bad.
        note: what there is to count.
    """

    name: str
    part: pa.Buffer
    quarantine: pa.Buffer | None
    note: Note


def _commit(files: Files, job: Job) -> Note:
    store = _store(job.output)
    check_driven(store, job.driver)
    # The quarantine comes first: a part that is there proves that its quarantine is there too.
    if files.quarantine is not None:
        store.write(quarantine_name(files.name), files.quarantine)
    store.write(files.name, files.part)
    return files.note


def make_files(note: Note, tables: Mapping[str, pa.Table], job: Job) -> Files:
    """Decode a split's arrays and make the bytes of its files."""
    file = InputFile(**note["file"])
    split = Split(file=file.number, begin=note["begin"], end=note["end"], last=note["last"])
    rows, bad = tables["rows"], tables["bad"]
    # Texts come this far only where a head decodes from them.
    texts, seconds = row_texts(rows) if TEXT in rows.column_names else ([], [] if job.pairs else None)
    program = _program(job.heads, pairs=job.pairs)
    columns, tokens = head_columns(program, tables, job.vector_type, texts, seconds)
    schema = pa.ipc.read_schema(pa.py_buffer(job.schema))
    numbers = pa.array(np.full(len(rows), file.number, np.int32))
    columns |= {"_file": numbers} | {name: rows[name] for name in rows.column_names}
    receipt = Receipt(
        file=file.number,
        first_row=split.begin,
        rows_in=split.end - split.begin,
        ok=len(rows),
        quarantined=len(bad),
        filtered=note["filtered"],
        tokens=tokens,
        fingerprints=job.fingerprints,
        version=VERSION,
        last=split.last,
    )
    part = encode_part(pa.table([columns[name] for name in schema.names], schema=schema), receipt)
    quarantine = None
    if len(bad):
        bad = bad.add_column(0, "_file", pa.array(np.full(len(bad), file.number, np.int32)))
        quarantine = encode_quarantine(bad)
    return Files(
        name=part_name(file, split, job.shaping),
        part=part,
        quarantine=quarantine,
        note={
            "part": part_name(file, split, job.shaping),
            "ok": len(rows),
            "quarantined": len(bad),
            "filtered": receipt.filtered,
            "reasons": dict(Counter(bad["reason"].to_pylist())),
            "tokens": tokens,
            "forwarded": note["forwarded"],
        },
    )


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

    program = _program(heads)
    settings = choose_settings(device=device, dtype=dtype, budget=budget, tasks=program.tasks.values())
    for names in program.trunks:
        Trunk({name: program.tasks[name] for name in names}, settings).close()
    return settings.as_dict()
