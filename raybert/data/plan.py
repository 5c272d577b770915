"""Before the first split: what a run would do, checked against its input, its output and its heads.

Nothing is written here and Ray is not needed, so that a wrong word on the command line costs a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybert.config import DEVICES, DTYPES, HeadSpec, one_of, unique_names
from raybert.data import manifest as manifests
from raybert.data.asked import Asked
from raybert.data.estimate import estimate_rows
from raybert.data.files import InputRoot, Inputs, list_inputs
from raybert.data.heads import VECTOR_TYPES, check_pairs, in_order, output_schema
from raybert.data.limit import limit_tasks, within_limit
from raybert.data.lines import LINE_LIMIT
from raybert.data.manifest import FilesDiff, Manifest
from raybert.data.parquet import Footer, read_footers
from raybert.data.part import QUARANTINE, read_footer
from raybert.data.read import ReadSpec
from raybert.data.schema import InputSchema, check_later_files, decide_schema
from raybert.data.splits import (
    SPLIT_BYTES,
    SPLIT_ROWS,
    InputFile,
    Progress,
    ReadTask,
    parse_part_name,
    read_listing,
    remaining,
    row_group_tasks,
    settle,
    stream_task,
)
from raybert.data.store import Store
from raybert.errors import OutputError, SettingsError
from raybert.tasks.program import Program, open_program


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a run; None is one that was not given: the manifest's value or the default holds.

    Attributes:
        input: a file, folder, URI or pattern, or several of them; see `raybert.data.files.list_inputs`.
        output: the run's folder.
        text_column: the column of texts.
        text: a template that makes the texts, such as ``"{title}. {body}"``; in place of ``text_column``.
        where: a filter, such as ``"lang == 'en' and score > 0.5"``; see `raybert.data.where`.
        pair_column: the column of what belongs to each text: a second text, or a list of texts.
        keep: names of columns to carry along, or ``"all"``.
        input_format: auto, parquet, jsonl, csv or text.
        limit: only the first so many rows of the input, counted before the filter.
        split_rows: most rows of a split.
        split_bytes: most bytes of a split.
        max_row_bytes: a larger row goes into the quarantine.
        vector_type: float32 or float16, as written.
        dtype: of the arithmetic.
        device: of the model actors.
        budget: tokens of one forward.
        sync: drop the parts of input files that are gone.
        overwrite: delete what an earlier run left in OUTPUT.
    """

    input: str | tuple[str, ...]
    output: str
    text_column: str | None = None
    text: str | None = None
    where: str | None = None
    pair_column: str | None = None
    keep: tuple[str, ...] | str | None = None
    input_format: str | None = None
    limit: int | None = None
    split_rows: int | None = None
    split_bytes: int | None = None
    max_row_bytes: int | None = None
    vector_type: str | None = None
    dtype: str | None = None
    device: str | None = None
    budget: int | None = None
    sync: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.vector_type is not None:
            one_of("vector-type", self.vector_type, VECTOR_TYPES)
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        if self.device is not None:
            one_of("device", self.device, DEVICES)
        if self.text is not None and self.text_column is not None:
            raise SettingsError(f"text {self.text!r}: makes the texts; leave out text-column {self.text_column!r}")
        for name in ("limit", "split_rows", "split_bytes", "max_row_bytes", "budget"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name.replace('_', '-')} {value!r}: takes a whole number from 1")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, checked and not begun.

    Attributes:
        store: OUTPUT.
        program: the opened heads.
        specs: the heads as asked for.
        settings: what shapes rows, as the manifest has or will have it.
        manifest: of an earlier run that this one continues, else None.
        diff: what became of the input since then.
        spec: how the workers read.
        schema: the output schema.
        tasks: all read tasks by file number, vanished files left out.
    """

    store: Store
    program: Program
    specs: tuple[HeadSpec, ...]
    settings: Mapping[str, Any]
    manifest: Manifest | None
    diff: FilesDiff
    spec: ReadSpec
    schema: pa.Schema
    tasks: Mapping[int, tuple[ReadTask, ...]]

    def rows(self) -> tuple[int, bool]:
        """Rows of the whole input, and whether footers or a limit told them; else they are estimated."""
        ends = [tasks[-1].end for tasks in self.tasks.values()]
        if all(end is not None for end in ends):
            return sum(end or 0 for end in ends), True
        return estimate_rows(self.spec.root, [tasks[0].file for tasks in self.tasks.values()]), False

    def heads(self, dtype: str) -> tuple[dict[str, Any], ...]:
        """The heads as a manifest writes them, arithmetic in ``dtype``."""
        return tuple(
            {
                "name": spec.name,
                "task": spec.task,
                "model": spec.model,
                "options": self.program.tasks[spec.name].options,
                "fingerprint": self.program.tasks[spec.name].fingerprint(dtype),
            }
            for spec in self.specs
        )

    def new_manifest(self, engine: Mapping[str, Any]) -> Manifest:
        """What this run's folder will be made with."""
        return Manifest(
            settings=self.settings,
            heads=self.heads(engine["dtype"]),
            files=self.diff.files,
            schema=self.schema,
            engine=engine,
        )


def make_plan(specs: Sequence[HeadSpec], options: Options) -> Plan:
    """Check everything that can be checked without a worker.

    Raises:
        UsageError: input, output, columns, heads or options are not what they must be.
    """
    store = Store(_local_or_uri(options.output))
    manifest = None if options.overwrite else manifests.load(store)
    root = None if manifest is None else manifest.settings["input"]
    inputs = list_inputs(options.input, options.input_format or "auto", root=root)
    _refuse_inside(store, inputs)
    if manifest is None:
        _refuse_strangers(store, overwrite=options.overwrite)
    else:
        _compare_settings(manifest, options, inputs)
    footers, columns, settings = _settle_settings(options, inputs, manifest)
    unique_names(specs)
    if manifest is not None:
        specs = in_order(specs, [head["name"] for head in manifest.heads])
    check_pairs(specs, columns.pair_type if settings["pair_column"] else None)
    program = open_program(specs, pairs=settings["pair_column"] is not None)
    if manifest is None:  # else their digests are those that ran before
        for task in program.tasks.values():
            task.tokenizer()
    schema = output_schema(specs, program, columns, settings["vector_type"])
    diff = manifests.merge_files(manifest.files if manifest else (), inputs.files, sync=options.sync)
    tasks = _plan_tasks(inputs, diff, footers, settings)
    plan = Plan(
        store=store,
        program=program,
        specs=tuple(specs),
        settings=settings,
        manifest=manifest,
        diff=diff if settings["limit"] is None else within_limit(diff, tasks),
        spec=read_spec(inputs.root, columns, settings),
        schema=schema,
        tasks=tasks,
    )
    if manifest is not None:
        manifests.compare(manifest, {}, plan.heads(manifest.engine["dtype"]))
    return plan


def read_spec(root: InputRoot, columns: InputSchema, settings: Mapping[str, Any]) -> ReadSpec:
    """How the files below ``root`` are read: by the run's columns and its settings, as the manifest has them."""
    return ReadSpec(
        root=root,
        format=settings["input_format"],
        text_column=columns.text_column,
        keep=columns.keep,
        split_rows=settings["split_rows"],
        split_bytes=settings["split_bytes"],
        max_row_bytes=settings["max_row_bytes"],
        pair_column=columns.pair_column,
        pair_type=columns.pair_type,
        text=settings["text"],
        text_parts=columns.text_parts,
        where=settings["where"],
        where_columns=columns.where_columns,
    )


def _local_or_uri(output: str) -> str:
    return output if "://" in output else str(Path(output).expanduser())


def _refuse_inside(store: Store, inputs: Inputs) -> None:
    """An output whose parts would be found as input."""
    output = store.uri if "://" in store.uri else str(Path(store.uri).resolve())
    for source in inputs.sources:
        if source.lists(output):
            raise SettingsError(
                f"output {store.uri}: lies inside the input {source.shown}; choose a folder outside of it"
            )


def _refuse_strangers(store: Store, *, overwrite: bool) -> None:
    """A folder without a manifest that holds files of others is not ours to write into."""
    ours = (f"{QUARANTINE}/", "_raybert/")
    strangers = [name for name in store.list() if not name.startswith(ours) and parse_part_name(name) is None]
    if strangers:
        raise SettingsError(
            f"output {store.uri}: holds {len(strangers)} files that are not raybert's ({strangers[0]}); "
            "choose a new or empty folder"
        )
    if not overwrite and store.list("part-"):
        raise SettingsError(
            f"output {store.uri}: holds parts but no {manifests.NAME}; restore it, or start anew with --overwrite"
        )


def _compare_settings(manifest: Manifest, options: Options, inputs: Inputs) -> None:
    keep = options.keep
    asked = {
        "text_column": options.text_column,
        "text": options.text,
        "where": options.where,
        "pair_column": options.pair_column,
        "keep": keep if keep is None or isinstance(keep, str) else list(keep),
        "input_format": inputs.format,
        "limit": options.limit,
        "split_rows": options.split_rows,
        "split_bytes": options.split_bytes,
        "max_row_bytes": options.max_row_bytes,
        "vector_type": options.vector_type,
        "dtype": None if options.dtype == "auto" else options.dtype,
        "device": None if options.device == "auto" else options.device,
        "budget": options.budget,
    }
    manifests.compare(manifest, asked)


def _settle_settings(
    options: Options, inputs: Inputs, manifest: Manifest | None
) -> tuple[tuple[Footer, ...], InputSchema, dict[str, Any]]:
    """Footers of Parquet files, the run's columns, and the settings with every default filled in."""
    if manifest is not None:
        settings = {**manifest.settings, "input": inputs.root.uri}
        columns = InputSchema.from_json(settings["columns"])
        if inputs.format != "parquet":
            return (), columns, settings
        asked = Asked(
            text_column=columns.text_column,
            text=settings["text"],
            pair_column=columns.pair_column,
            keep=tuple(columns.keep.names),
            where=settings["where"],
        )
        found = read_footers(inputs, asked.columns)
        check_later_files(columns, inputs, found, asked)
        return found, columns, settings
    keep = () if options.keep is None else options.keep
    text_column = (options.text_column or "text") if options.text is None else None
    pair_column, text, where = options.pair_column, options.text, options.where
    if pair_column is not None and pair_column == text_column:
        raise SettingsError(f"pair-column {pair_column!r}: is the text column too; name another one")
    footers: tuple[Footer, ...] = ()
    if inputs.format == "parquet":
        asked = Asked(text_column=text_column, text=text, pair_column=pair_column, keep=keep, where=where)
        footers = read_footers(inputs, asked.columns)
    columns = decide_schema(
        inputs, text_column, keep, pair_column=pair_column, text=text, where=where, footers=footers or None
    )
    settings = {
        "input": inputs.root.uri,
        "input_format": inputs.format,
        "text_column": text_column,
        "text": text,
        "where": where,
        "pair_column": pair_column,
        "keep": keep if isinstance(keep, str) else list(keep),
        "limit": options.limit,
        "split_rows": options.split_rows or SPLIT_ROWS,
        "split_bytes": options.split_bytes or SPLIT_BYTES,
        "max_row_bytes": options.max_row_bytes or LINE_LIMIT,
        "vector_type": options.vector_type or "float32",
        "columns": columns.to_json(),
    }
    return footers, columns, settings


def _plan_tasks(
    inputs: Inputs, diff: FilesDiff, footers: Sequence[Footer], settings: Mapping[str, Any]
) -> dict[int, tuple[ReadTask, ...]]:
    numbers = {file.path: file.number for file in diff.files}
    tasks: dict[int, tuple[ReadTask, ...]] = {}
    for position, listed in enumerate(inputs.files):
        file = replace(listed, number=numbers[listed.path])
        if inputs.format == "parquet":
            sizes = {"split_rows": settings["split_rows"], "split_bytes": settings["split_bytes"]}
            tasks[file.number] = tuple(row_group_tasks(file, footers[position].groups, **sizes))
        else:
            tasks[file.number] = (stream_task(file),)
    tasks = dict(sorted(tasks.items()))
    return tasks if settings["limit"] is None else limit_tasks(tasks, settings["limit"], inputs)


def progress_of(plan: Plan, shaping: str, files: Sequence[InputFile]) -> dict[int, Progress]:
    """What of each file is committed, from the listing of OUTPUT and the few footers that it leaves open."""
    names: dict[int, list[str]] = {}
    for name in plan.store.list("part-"):
        spelled = parse_part_name(name)
        if spelled is not None:
            names.setdefault(spelled.file, []).append(name)
    found = {}
    for file in files:
        parquet = plan.tasks[file.number] if plan.spec.format == "parquet" else ()
        listing = read_listing(file, names.get(file.number, ()), shaping, parquet)
        footers = {name: _rows_and_last(plan.store, name) for name in listing.unsettled}
        found[file.number] = settle(listing, footers)
    return found


def orphans(plan: Plan) -> list[str]:
    """Names of parts whose input file the run no longer knows: a sync has dropped it, or was killed over it."""
    numbers = {file.number for file in plan.diff.files}
    spelled = {name: parse_part_name(name) for name in plan.store.list("part-")}
    return [name for name, part in spelled.items() if part is not None and part.file not in numbers]


def _rows_and_last(store: Store, name: str) -> tuple[int, bool] | None:
    try:
        receipt = read_footer(store, name).receipt
    except OutputError:
        return None
    return None if receipt is None else (receipt.rows_in, receipt.last)


def work_left(plan: Plan, progress: Mapping[int, Progress]) -> list[ReadTask]:
    """Read tasks that are not committed yet, in the input's order."""
    left: list[ReadTask] = []
    for number, tasks in plan.tasks.items():
        left += remaining(tasks, progress[number])
    return left
