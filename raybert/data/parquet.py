"""Parquet files: what their footers tell, and their rows as a stream of small batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.data.arrowtypes import LISTS, row_bytes
from raybert.data.files import InputRoot, Inputs, first_line, reading
from raybert.data.rows import Fault, add_faults, list_column, sort_rows, utf8_fault
from raybert.data.splits import InputFile, ReadTask, missing_ranges

Keep = tuple[str, ...] | str
"""Names of kept columns, or ``all``."""

BATCH_ROWS = 1024
"""Most rows decoded at once. A dictionary can hide how large they are, so that small batches bound memory."""

_BUFFER_BYTES = 1 << 20  # per column chunk; pre-buffering would hold whole row groups (DESIGN, section 6)
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What planning needs of one Parquet file.

    Attributes:
        schema: the file's Arrow schema, without metadata.
        groups: for each row group its rows and the uncompressed bytes of the columns asked for.
    """

    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]


def open_parquet(root: InputRoot, file: InputFile) -> pq.ParquetFile:
    """Open a file for streaming: nothing but the footer is read yet.

    Raises:
        InputError: missing, unreadable, or not Parquet.
    """
    with reading(root.show(file)):
        filesystem, path = root.locate(file)
        return pq.ParquetFile(
            path,
            filesystem=filesystem,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
            page_checksum_verification=True,
        )


def read_footers(inputs: Inputs, columns: Keep) -> tuple[Footer, ...]:
    """The footers of all files, in their order, read by a few threads.

    Args:
        inputs: Parquet files.
        columns: the columns that will be read (their bytes are summed), or ``all``.
    """
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(lambda file: _read_footer(inputs.root, file, columns), inputs.files))
    one_of_equal: dict[pa.Schema, pa.Schema] = {}  # thousands of files mostly share one schema
    return tuple(
        Footer(schema=one_of_equal.setdefault(footer.schema, footer.schema), groups=footer.groups) for footer in footers
    )


def _read_footer(root: InputRoot, file: InputFile, columns: Keep) -> Footer:
    with open_parquet(root, file) as opened:
        asked = _leaves(opened, columns)
        groups = []
        for number in range(opened.metadata.num_row_groups):
            group = opened.metadata.row_group(number)
            size = sum(group.column(leaf).total_uncompressed_size for leaf in asked)
            groups.append((group.num_rows, size))
        return Footer(schema=opened.schema_arrow.remove_metadata(), groups=tuple(groups))


def _leaves(opened: pq.ParquetFile, columns: Keep) -> list[int]:
    """Numbers of the column chunks below the given columns."""
    paths = [opened.metadata.schema.column(at).path for at in range(opened.metadata.num_columns)]
    if isinstance(columns, str):
        return list(range(len(paths)))
    below = tuple(f"{name}." for name in columns)
    return [at for at, path in enumerate(paths) if path in columns or path.startswith(below)]


@dataclass(frozen=True, slots=True)
class ParquetBatch:
    """Some rows of one file.

    Attributes:
        first: number of the first row in the file.
        sizes: [R] bytes of each row's text, pair column and kept columns.
        text_name: the text column.
        text: the text column as the file has it.
        kept: the kept columns as the file has them.
        keep: their names and types in the run.
        pair: the pair column as the file has it, and its name and type in the run; None where there is none.
    """

    first: int
    sizes: npt.NDArray[np.int64]
    text_name: str
    text: Any
    kept: Sequence[Any]
    keep: pa.Schema
    pair: tuple[Any, pa.Field] | None

    def rows(self, start: int, stop: int) -> tuple[pa.Table, pa.Table]:
        """Good and bad rows among rows ``[start, stop)`` of the batch."""
        faults: dict[int, Fault] = {}
        texts, found = text_column(self.text.slice(start, stop - start))
        add_faults(faults, found, self.text_name)
        pairs = None
        if self.pair is not None:
            column, field = self.pair
            pairs, found = (_lists if field.type == LISTS else text_column)(column.slice(start, stop - start))
            add_faults(faults, found, field.name, texts)
        kept = [
            kept_column(column.slice(start, stop - start), field, texts, faults)
            for column, field in zip(self.kept, self.keep, strict=True)
        ]
        return sort_rows(self.first + start, self.keep, kept, texts, faults, pairs)


def parquet_batches(
    opened: pq.ParquetFile,
    task: ReadTask,
    *,
    text_name: str,
    keep: pa.Schema,
    split_bytes: int,
    pair: pa.Field | None = None,
) -> Iterator[ParquetBatch]:
    """The rows of a task's row groups, as a stream; row groups without a wanted row are left out.

    Args:
        opened: the file.
        task: which row groups, and which rows of them are wanted.
        text_name: the text column.
        keep: the kept columns, in the run's types; one that the file lacks is null throughout.
        split_bytes: bytes of a split; a batch aims at an eighth of them.
        pair: the pair column and its type in the run, where there is one.
    """
    present = set(opened.schema_arrow.names)
    texts = [text_name] if pair is None else [text_name, pair.name]
    names = list(dict.fromkeys([*texts, *(name for name in keep.names if name in present)]))
    leaves = _leaves(opened, tuple(names))
    rows = [opened.metadata.row_group(at).num_rows for at in range(opened.metadata.num_row_groups)]
    firsts = [0, *accumulate(rows)]
    for run in _wanted_runs(task, firsts):
        size = sum(opened.metadata.row_group(at).column(leaf).total_uncompressed_size for at in run for leaf in leaves)
        per_row = max(1, size // max(1, sum(rows[at] for at in run)))
        batch_rows = max(1, min(BATCH_ROWS, split_bytes // 8 // per_row))
        first = firsts[run[0]]
        for batch in opened.iter_batches(batch_rows, row_groups=run, columns=names, use_threads=False):
            text = batch.column(text_name)
            kept = [
                batch.column(field.name) if field.name in present else pa.nulls(len(batch), field.type)
                for field in keep
            ]
            second = None if pair is None else (batch.column(pair.name), pair)
            counted = kept if second is None else [second[0], *kept]
            sizes = sum((row_bytes(column) for column in counted), row_bytes(text))
            yield ParquetBatch(first, sizes, text_name, text, kept, keep, second)
            first += len(batch)


def _wanted_runs(task: ReadTask, firsts: Sequence[int]) -> list[list[int]]:
    """Runs of adjacent row groups of the task, each group with at least one wanted row."""
    wanted = missing_ranges(task.begin, task.end, task.done)
    runs: list[list[int]] = []
    for group in task.row_groups or ():
        begin, end = firsts[group], firsts[group + 1]
        if not any(a < end and (b is None or b > begin) for a, b in wanted):
            continue
        if runs and runs[-1][-1] == group - 1:
            runs[-1].append(group)
        else:
            runs.append([group])
    return runs


def text_column(column: Any) -> tuple[Any, dict[int, Fault]]:
    """A column of texts as large_string, and its faults: nulls, and bytes that are not UTF-8, which become null."""
    column = column.cast(_plain_bytes(column.type)).view(pa.large_string())
    found = {at: Fault("null", "is null", None) for at in _nulls(column)}
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.view(pa.large_binary()).to_pylist()
        for at, value in enumerate(raw):
            fault = utf8_fault(value) if value is not None else None
            if fault is not None:
                found[at], raw[at] = replace(fault, detail=f"holds {fault.detail}"), None
        column = pa.array(raw, pa.large_binary()).view(pa.large_string())
    return column, found


def _lists(column: Any) -> tuple[Any, dict[int, Fault]]:
    """A column of lists of texts as ``LISTS``, and its faults: nulls, and those of ``list_column``."""
    nulls = {at: Fault("null", "is null", None) for at in _nulls(column)}
    if pa.types.is_null(column.type):
        column = column.cast(LISTS)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    items, item_faults = text_column(column.flatten())
    lists, found = list_column(lengths, items, item_faults)
    return lists, found | nulls


def _plain_bytes(kind: pa.DataType) -> pa.DataType:
    """The large type that a text of this type is cast to without a look at its bytes."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    binary = pa.types.is_binary(value) or pa.types.is_large_binary(value) or pa.types.is_binary_view(value)
    return pa.large_binary() if binary else pa.large_string()


def _nulls(column: Any) -> list[int]:
    if column.null_count == 0:
        return []
    nulls: list[int] = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
    return nulls


def kept_column(column: Any, field: pa.Field, texts: Any, faults: dict[int, Fault]) -> Any:
    """A kept column in the run's type; values that don't fit, or hold invalid UTF-8, are faults and null."""
    try:
        return _cast(column, field.type)
    except pa.ArrowInvalid:
        pass
    values = []
    for at in range(len(column)):
        one = column.take([at])  # a slice of a list would be judged with its neighbours' items
        try:
            values.append(_cast(one, field.type))
        except pa.ArrowInvalid as error:
            values.append(pa.nulls(1, field.type))
            text = texts[at].as_py()
            faults.setdefault(at, Fault("kept_column", f"{field.name!r}: {first_line(error)}", text))
    return pa.concat_arrays(values)


def _cast(column: Any, kind: pa.DataType) -> Any:
    column = column if column.type == kind else column.cast(kind)
    column.validate(full=True)
    return column
