"""Parquet files: what their footers tell, and their rows as a stream of small batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from raybert.data.assemble import Column, Wanted, assemble
from raybert.data.files import InputRoot, Inputs, first_line, reading
from raybert.data.rows import Fault, Rows, list_column, too_long, utf8_fault
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
        sizes: [R] bytes of each row in the columns that are read; of a text that is kept as well, twice.
        text_sizes: [R] bytes of what its text is made of and of what belongs to it.
        block: the rows.
        limit: most bytes of a text and what belongs to it.
        wanted: what is made of a row.
    """

    first: int
    sizes: npt.NDArray[np.int64]
    text_sizes: npt.NDArray[np.int64]
    block: ArrowBlock
    limit: int
    wanted: Wanted

    def rows(self, start: int, stop: int) -> Rows:
        """What becomes of rows ``[start, stop)`` of the batch."""
        over = np.flatnonzero(self.text_sizes[start:stop] > self.limit).tolist()
        faults = {at: too_long(int(self.text_sizes[start + at]), self.limit) for at in over}
        return assemble(self.first + start, self.block.slice(start, stop), faults, self.wanted)


class ArrowBlock:
    """A `Block` of columns as a file has them; one that it lacks is null throughout."""

    def __init__(self, columns: Mapping[str, Any], rows: int) -> None:
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def slice(self, start: int, stop: int) -> ArrowBlock:
        """The rows ``[start, stop)``."""
        rows = stop - start
        return ArrowBlock({name: column.slice(start, rows) for name, column in self._columns.items()}, rows)

    def take(self, at: npt.NDArray[np.int64]) -> ArrowBlock:
        """See `Block`."""
        wanted = pa.array(at)
        return ArrowBlock({name: column.take(wanted) for name, column in self._columns.items()}, len(at))

    def texts(self, name: str) -> Column:
        """See `Block`."""
        return text_column(self._columns[name])

    def lists(self, name: str) -> Column:
        """See `Block`."""
        return _lists(self._columns[name])

    def values(self, field: pa.Field) -> tuple[Any, dict[int, str]]:
        """See `Block`."""
        if field.name not in self._columns:
            return pa.nulls(self._rows, field.type), {}
        return typed_column(self._columns[field.name], field)


def parquet_batches(
    opened: pq.ParquetFile, task: ReadTask, *, wanted: Wanted, split_bytes: int, limit: int
) -> Iterator[ParquetBatch]:
    """The rows of a task's row groups, as a stream; row groups without a wanted row are left out.

    Args:
        opened: the file.
        task: which row groups, and which rows of them are wanted.
        wanted: what is made of a row; a kept column that the file lacks is null throughout.
        split_bytes: bytes of a split; a batch aims at an eighth of them.
        limit: most bytes of a text and what belongs to it.
    """
    present = set(opened.schema_arrow.names)
    texts = wanted.text_names
    others = [name for name in wanted.needed if name not in (*texts, *wanted.keep.names)]
    names = [name for name in wanted.names if name in present]
    leaves = _leaves(opened, tuple(names))
    rows = [opened.metadata.row_group(at).num_rows for at in range(opened.metadata.num_row_groups)]
    firsts = [0, *accumulate(rows)]
    for run in _wanted_runs(task, firsts):
        size = sum(opened.metadata.row_group(at).column(leaf).total_uncompressed_size for at in run for leaf in leaves)
        per_row = max(1, size // max(1, sum(rows[at] for at in run)))
        batch_rows = max(1, min(BATCH_ROWS, split_bytes // 8 // per_row))
        first = firsts[run[0]]
        for batch in opened.iter_batches(batch_rows, row_groups=run, columns=names, use_threads=False):
            columns = {name: batch.column(name) for name in names}
            lacking = {field.name: pa.nulls(len(batch), field.type) for field in wanted.keep if field.name not in names}
            bytes_of = {name: row_bytes(column) for name, column in {**columns, **lacking}.items()}
            none = np.zeros(len(batch), dtype=np.int64)
            yield ParquetBatch(
                first=first,
                sizes=sum((bytes_of[name] for name in (*texts, *others, *wanted.keep.names)), none),
                text_sizes=sum((bytes_of[name] for name in texts), none),
                block=ArrowBlock(columns, len(batch)),
                limit=limit,
                wanted=wanted,
            )
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


def typed_column(column: Any, field: pa.Field) -> tuple[Any, dict[int, str]]:
    """A column in the run's type; values that don't fit, or are no UTF-8, are null, with what is wrong with them."""
    try:
        return _cast(column, field.type), {}
    except pa.ArrowInvalid:
        pass
    values, misfits = [], {}
    for at in range(len(column)):
        one = column.take([at])  # a slice of a list would be judged with its neighbours' items
        try:
            values.append(_cast(one, field.type))
        except pa.ArrowInvalid as error:
            values.append(pa.nulls(1, field.type))
            misfits[at] = f"{field.name!r}: {first_line(error)}"
    return pa.concat_arrays(values), misfits


def _cast(column: Any, kind: pa.DataType) -> Any:
    column = column if column.type == kind else column.cast(kind)
    column.validate(full=True)
    return column
