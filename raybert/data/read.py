"""Reading: one task in, its splits out, as a stream that holds one split and little more.

A row's own fault makes it a row of ``RawSplit.bad``. A fault of the file (damaged, cut off, changed since it
was listed) is an InputError that names the file and the row reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybert.data.cut import Cutter, Step
from raybert.data.files import InputRoot, check_unchanged, first_line, open_stream
from raybert.data.jsonl import JsonRows, LineParser, TextRows
from raybert.data.lines import LINE_LIMIT, Lines, read_lines
from raybert.data.parquet import open_parquet, parquet_batches
from raybert.data.rows import ROW, bad_schema, good_schema
from raybert.data.splits import Excluded, ReadTask, Split
from raybert.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """What all read tasks of a run share; picklable.

    Attributes:
        root: where the files lie.
        format: of the files.
        text_column: the column of texts.
        keep: kept columns, in the run's types.
        split_rows: most rows of a split.
        split_bytes: most bytes of a split, unless its one row is larger: of a line without its newline, in
            Parquet of the text, the pair column and the kept columns.
        line_limit: bytes of the longest line that is processed.
        pair_column: the column of what belongs to the texts; None where there is none.
        pair_type: its type in the run: large_string, or large_list<large_string>.
    """

    root: InputRoot
    format: str
    text_column: str
    keep: pa.Schema
    split_rows: int
    split_bytes: int
    line_limit: int = LINE_LIMIT
    pair_column: str | None = None
    pair_type: pa.DataType | None = None

    @property
    def pair(self) -> pa.Field | None:
        """The pair column's name in the input and its type in the run; None where there is none."""
        return None if self.pair_column is None else pa.field(self.pair_column, self.pair_type)


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """The rows of one split, good and bad, in order.

    Attributes:
        split: which rows.
        rows: rows to process: ``_row``, kept columns, ``__text``, maybe ``__pair``; see ``rows.good_schema``.
        bad: rows with a fault: ``_row``, kept columns, ``text``, ``reason``, ``detail``; ``rows.bad_schema``.
    """

    split: Split
    rows: pa.Table
    bad: pa.Table

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
    def rows(self, start: int, stop: int) -> tuple[pa.Table, pa.Table]: ...


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
                for rows, bad in _parsed(batch, step, task.excluded, spec):
                    pending.add(rows, bad)
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


def _parsed(
    batch: _Batch, step: Step, excluded: Sequence[Excluded], spec: ReadSpec
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The rows of a step, good and bad; excluded ones are not even parsed: that may be what kills a worker."""
    at, first = step.start, step.row - step.start
    for each in excluded:
        place = each.row - first
        if step.start <= place < step.stop:
            if at < place:
                yield batch.rows(at, place)
            yield good_schema(spec.keep, spec.pair_type).empty_table(), _unparsed(each, spec)
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
        self._file, self._begin, self._end = file, begin, begin
        self._rows = [good_schema(spec.keep, spec.pair_type).empty_table()]
        self._bad = [bad_schema(spec.keep).empty_table()]

    def add(self, rows: pa.Table, bad: pa.Table) -> None:
        self._end += len(rows) + len(bad)
        self._rows.append(rows)
        self._bad.append(bad)

    def pop(self, *, last: bool) -> RawSplit:
        """The finished split; the pieces that it was joined from are let go."""
        split = Split(file=self._file, begin=self._begin, end=self._end, last=last)
        rows, bad = self._rows, self._bad
        self._rows, self._bad = [], []
        return RawSplit(
            split=split,
            rows=pa.concat_tables(rows).combine_chunks(),
            bad=pa.concat_tables(bad).combine_chunks(),
        )


@contextmanager
def _opened(task: ReadTask, spec: ReadSpec, cutter: Cutter, place: str) -> Iterator[Iterator[_Batch]]:
    """The batches of the task's file, which is closed at the end."""
    if task.row_groups is not None:
        with open_parquet(spec.root, task.file) as opened:
            batches = parquet_batches(
                opened,
                task,
                text_name=spec.text_column,
                keep=spec.keep,
                split_bytes=spec.split_bytes,
                pair=spec.pair,
            )
            yield _guarded(batches, cutter, place)
        return
    parser: LineParser
    if spec.format == "text":
        parser = TextRows(spec.keep, spec.line_limit)
    else:
        parser = JsonRows(spec.text_column, spec.keep, spec.line_limit, spec.pair)
    with open_stream(spec.root, task.file) as stream:
        blocks = read_lines(stream, blank_rows=spec.format == "text", limit=spec.line_limit)
        yield _guarded(_line_batches(blocks, parser), cutter, place)


def _guarded(batches: Iterator[_Batch], cutter: Cutter, place: str) -> Iterator[_Batch]:
    """The same batches; what the libraries raise on a damaged file names the file and the row reached."""
    try:
        yield from batches
    except pa.ArrowMemoryError:
        raise
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

    def rows(self, start: int, stop: int) -> tuple[pa.Table, pa.Table]:
        sizes = self.lines.sizes[start:stop].tolist()
        return self.parser(self.first + start, self.lines.bytes_of(start, stop), sizes)


def _line_batches(blocks: Iterator[Lines], parser: LineParser) -> Iterator[_LineBatch]:
    row = 0
    for lines in blocks:
        yield _LineBatch(row, lines, parser)
        row += len(lines.sizes)
