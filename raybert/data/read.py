"""Reading: one task in, its splits out, as a stream that holds one split and little more.

A row's own fault makes it a row of ``RawSplit.bad``. A fault of the file (damaged, cut off, changed since it
was listed) is an InputError that names the file and the row reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybert.data.asked import no_column
from raybert.data.assemble import Wanted
from raybert.data.csvrecords import read_records
from raybert.data.csvrows import CsvRows, read_header
from raybert.data.cut import Cutter, Step
from raybert.data.files import InputRoot, check_unchanged, first_line, open_stream
from raybert.data.formats import delimiter_of
from raybert.data.jsonl import JsonRows, LineParser, TextRows
from raybert.data.lines import LINE_LIMIT, Lines, read_lines
from raybert.data.parquet import open_parquet, parquet_batches
from raybert.data.patience import StoreFailed, StoreRefused
from raybert.data.rows import ROW, Rows, bad_schema, good_schema
from raybert.data.splits import Excluded, ReadTask, Split
from raybert.data.template import Template
from raybert.data.where import Where
from raybert.errors import InputError


def _no_columns() -> pa.Schema:
    return pa.schema([])


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """What all read tasks of a run share; picklable.

    Attributes:
        root: where the files lie.
        format: of the files.
        text_column: the column of texts; None where a template makes them.
        keep: kept columns, in the run's types.
        split_rows: most rows of a split.
        split_bytes: most bytes of a split, unless its one row is larger: of a line without its newline, in
            Parquet of all columns that are read, a text that is kept as well counted twice.
        max_row_bytes: a larger row is a bad one: a line or record, in Parquet what the text is made of and the pair
            column.
        pair_column: the column of what belongs to the texts; None where there is none.
        pair_type: its type in the run: large_string, or large_list<large_string>.
        text: the template that makes the texts; None where a column holds them.
        text_parts: the columns that it names, in their types.
        where: the filter; None where all rows are wanted.
        where_columns: the columns that it names, in the run's types.
    """

    root: InputRoot
    format: str
    text_column: str | None
    keep: pa.Schema
    split_rows: int
    split_bytes: int
    max_row_bytes: int = LINE_LIMIT
    pair_column: str | None = None
    pair_type: pa.DataType | None = None
    text: str | None = None
    text_parts: pa.Schema = field(default_factory=_no_columns)
    where: str | None = None
    where_columns: pa.Schema = field(default_factory=_no_columns)

    @property
    def pair(self) -> pa.Field | None:
        """The pair column's name in the input and its type in the run; None where there is none."""
        return None if self.pair_column is None else pa.field(self.pair_column, self.pair_type)

    def wanted(self) -> Wanted:
        """What is made of a row."""
        text = self.text_column if self.text is None else Template(self.text, self.text_parts)
        assert text is not None
        return Wanted(
            text=text,
            keep=self.keep,
            pair=self.pair,
            where=None if self.where is None else Where(self.where, self.where_columns),
        )


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """The rows of one split, good and bad, in order.

    Attributes:
        split: which rows.
        rows: rows to process: ``_row``, kept columns, ``__text``, maybe ``__pair``; see ``rows.good_schema``.
        bad: rows with a fault: ``_row``, kept columns, ``text``, ``reason``, ``detail``; ``rows.bad_schema``.
        filtered: how many rows the filter took out.
    """

    split: Split
    rows: pa.Table
    bad: pa.Table
    filtered: int

    @property
    def rows_in(self) -> int:
        """Rows of the split in the file."""
        return self.split.end - self.split.begin


class _Batch(Protocol):
    """Some rows of the file that follow one another; parsed only where they are wanted."""

    @property
    def first(self) -> int: ...
    @property
    def sizes(self) -> npt.NDArray[np.int64]: ...
    def rows(self, start: int, stop: int) -> Rows: ...


def read_splits(task: ReadTask, spec: ReadSpec) -> Iterator[RawSplit]:
    """Stream one task and hand on its splits in order, each as soon as the row after it is seen.

    Raises:
        InputError: the file can't be read, is damaged, or is not the one that was listed.
    """
    place = spec.root.show(task.file)
    cutter = Cutter(task, split_rows=spec.split_rows, split_bytes=spec.split_bytes)
    check_unchanged(spec.root, task.file)
    pending: _Pending | None = None
    with _opened(task, spec, cutter, place) as batches:
        for batch in batches:
            for step in cutter.steps(batch.first, batch.sizes):
                if step.opens:
                    if pending is not None:
                        yield pending.pop(last=False)
                    pending = _Pending(task.file.number, step.row, spec)
                assert pending is not None
                for rows in _parsed(batch, step, task.excluded, spec):
                    pending.add(rows)
                assert pending.end == step.row + step.stop - step.start, (pending.end, step)
            if cutter.finished:
                break
    check_unchanged(spec.root, task.file)
    if cutter.short is not None:
        raise InputError(
            f"{place}: ends at row {cutter.row}, but row {cutter.short} was there when the output was written; "
            "the file was changed in place: run again with --overwrite"
        )
    pending = pending or _Pending(task.file.number, task.begin, spec)
    yield pending.pop(last=task.closes_file)


def _parsed(batch: _Batch, step: Step, excluded: Sequence[Excluded], spec: ReadSpec) -> Iterator[Rows]:
    """What becomes of the rows of a step; excluded ones are not even parsed: that may be what kills a worker."""
    at, first = step.start, step.row - step.start
    for each in excluded:
        place = each.row - first
        if step.start <= place < step.stop:
            if at < place:
                yield batch.rows(at, place)
            yield Rows(good_schema(spec.keep, spec.pair_type).empty_table(), _unparsed(each, spec), 0)
            at = place + 1
    if at < step.stop:
        yield batch.rows(at, step.stop)


def _unparsed(row: Excluded, spec: ReadSpec) -> pa.Table:
    """A bad row of which nothing is known but where it stands."""
    schema = bad_schema(spec.keep)
    known = {ROW: row.row, "reason": row.reason, "detail": row.detail}
    return pa.table([pa.array([known.get(field.name)], field.type) for field in schema], schema=schema)


class _Pending:
    """The split that is being filled."""

    def __init__(self, file: int, begin: int, spec: ReadSpec) -> None:
        self._file, self._begin, self.end = file, begin, begin
        self._rows = [good_schema(spec.keep, spec.pair_type).empty_table()]
        self._bad = [bad_schema(spec.keep).empty_table()]
        self._filtered = 0

    def add(self, rows: Rows) -> None:
        self.end += len(rows.good) + len(rows.bad) + rows.filtered
        self._rows.append(rows.good)
        self._bad.append(rows.bad)
        self._filtered += rows.filtered

    def pop(self, *, last: bool) -> RawSplit:
        """The finished split; the pieces that it was joined from are let go."""
        split = Split(file=self._file, begin=self._begin, end=self.end, last=last)
        rows, bad = self._rows, self._bad
        self._rows, self._bad = [], []
        return RawSplit(
            split=split,
            rows=pa.concat_tables(rows).combine_chunks(),
            bad=pa.concat_tables(bad).combine_chunks(),
            filtered=self._filtered,
        )


@contextmanager
def _opened(task: ReadTask, spec: ReadSpec, cutter: Cutter, place: str) -> Iterator[Iterator[_Batch]]:
    """The batches of the task's file, which is closed at the end."""
    wanted, limit = spec.wanted(), spec.max_row_bytes
    if task.row_groups is not None:
        with open_parquet(spec.root, task.file) as opened:
            batches = parquet_batches(opened, task, wanted=wanted, split_bytes=spec.split_bytes, limit=limit)
            yield _guarded(batches, cutter, place)
        return
    with open_stream(spec.root, task.file) as stream:
        lined: Iterator[_Batch]
        if spec.format == "csv":
            delimiter = delimiter_of(task.file.path)
            records = read_records(stream, delimiter, limit=limit)
            lined = _csv_batches(records, wanted, limit, delimiter, place)
        else:
            text = spec.format == "text"
            parser = TextRows(wanted, limit) if text else JsonRows(wanted, limit)
            lined = _line_batches(read_lines(stream, blank_rows=text, limit=limit), parser)
        yield _guarded(lined, cutter, place)


def _guarded(batches: Iterator[_Batch], cutter: Cutter, place: str) -> Iterator[_Batch]:
    """The same batches; what the libraries raise on a damaged file names the file and the row reached."""
    try:
        yield from batches
    except pa.ArrowMemoryError:
        raise
    except (StoreFailed, StoreRefused) as error:
        raise InputError(f"{place}: can't be read after row {cutter.row}: {error.strerror}") from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place}: damaged after row {cutter.row}: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class _LineBatch:
    """Some lines, parsed when asked for."""

    first: int
    lines: Lines
    parser: LineParser

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.lines.sizes

    def rows(self, start: int, stop: int) -> Rows:
        sizes = self.lines.sizes[start:stop].tolist()
        return self.parser(self.first + start, self.lines.bytes_of(start, stop), sizes)


def _line_batches(blocks: Iterator[Lines], parser: LineParser) -> Iterator[_LineBatch]:
    row = 0
    for lines in blocks:
        yield _LineBatch(row, lines, parser)
        row += len(lines.sizes)


def _csv_batches(
    blocks: Iterator[Lines], wanted: Wanted, limit: int, delimiter: str, place: str
) -> Iterator[_LineBatch]:
    """The records after the header; a file of nothing has no rows.

    Raises:
        InputError: the header can't be one, or lacks a column that every file must have.
    """
    header, blocks = read_header(blocks, limit, delimiter, place)
    if header is not None:
        for name in wanted.needed:
            if name not in header:
                raise no_column(name, place, header)
        yield from _line_batches(blocks, CsvRows(wanted, limit, delimiter, header))
