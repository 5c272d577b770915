"""CSV records to rows. A record's fault is its row's, never an error of the file; the header's is the file's.

Fields are taken as they are written: nothing is stripped, and no word stands for null. An empty field, quoted or not,
is an empty text, and null in a column of another type.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybert.data.assemble import Column, Wanted, assemble
from raybert.data.lines import Lines
from raybert.data.rows import Fault, Rows, escaped, too_long, utf8_fault
from raybert.errors import InputError

_Fields = list[Any]  # of one record: texts, or nothing but None where the record could not be parsed

TYPES = (
    pa.int64(),
    pa.float64(),
    pa.bool_(),
    pa.date32(),
    pa.timestamp("us"),
    pa.timestamp("us", "UTC"),
)
"""Types that fields are tried for, in this order; what none of them holds is a string."""


def read_header(
    blocks: Iterator[Lines], limit: int, delimiter: str, place: str
) -> tuple[list[str] | None, Iterator[Lines]]:
    """The columns of a file, and its other records; None and nothing of a file without a record.

    Args:
        blocks: what `read_records` gives.
        limit: bytes of the longest record that is parsed.
        delimiter: between fields.
        place: the file, for messages.

    Raises:
        InputError: the first record can't name the columns.
    """
    first = next(blocks, None)
    if first is None:
        return None, iter(())
    names = _names(first.bytes_of(0, 1)[0], int(first.sizes[0]), limit, delimiter, place)
    rest = Lines(buffer=first.buffer, starts=first.starts[1:], ends=first.ends[1:], sizes=first.sizes[1:])
    return names, chain([rest], blocks)


def _names(record: bytes, size: int, limit: int, delimiter: str, place: str) -> list[str]:
    (names,), faults = parse([record], [size], limit, delimiter, None)
    if faults:
        raise InputError(f"{place}: its first line has to name the columns: {faults[0].reason}: {faults[0].detail}")
    for at, name in enumerate(names):
        if not name or name in names[:at]:
            what = f"column {name!r} is there twice" if name else f"column {at + 1} of {len(names)} has no name"
            raise InputError(f"{place}: its first line has to name the columns, but {what}; mend it")
    return list(names)


def parse(
    records: list[bytes], sizes: Sequence[int], limit: int, delimiter: str, width: int | None
) -> tuple[list[_Fields], dict[int, Fault]]:
    """The fields of some records, and the faults of those that can't be parsed.

    Args:
        records: without their newlines.
        sizes: bytes of each.
        limit: bytes of the longest that is parsed.
        delimiter: between fields.
        width: how many fields there have to be; None: any number.
    """
    # The limit is the process's, 128 KiB unless told otherwise, and never lowered: another thread may parse as well.
    if csv.field_size_limit() < limit:
        csv.field_size_limit(limit)
    if sizes and max(sizes) <= limit:
        try:
            lines = [record.decode("utf-8") for record in records]
            rows: list[_Fields] = list(csv.reader(lines, delimiter=delimiter, strict=True))
            alike = set(map(len, rows)) <= {len(rows[0]) if width is None else width}
            if alike and len(rows) == len(lines) and not any("\0" in line for line in lines):
                return rows, {}
        except (UnicodeDecodeError, csv.Error):
            pass  # the slow way finds which
    rows, faults = [], {}
    for at, record in enumerate(records):
        fields, fault = _one(record, sizes[at], limit, delimiter, width)
        if fault is not None:
            faults[at] = fault
        rows.append([None] * (width or 0) if fields is None else fields)
    return rows, faults


def _one(
    record: bytes, size: int, limit: int, delimiter: str, width: int | None
) -> tuple[_Fields | None, Fault | None]:
    if size > limit:
        return None, too_long(size, limit)
    shown = record.removesuffix(b"\r")
    if (fault := utf8_fault(shown)) is not None:
        return None, fault
    if (nul := record.find(b"\0")) >= 0:
        return None, Fault("invalid_csv", f"a NUL byte at byte {nul}", escaped(shown))
    try:
        fields: _Fields = next(csv.reader([record.decode("utf-8")], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return None, Fault("invalid_csv", _spoken(error), escaped(shown))
    if width is not None and len(fields) != width:
        detail = f"{len(fields)} fields, and the header has {width}"
        return None, Fault("wrong_fields", detail, escaped(shown))
    return fields, None


def _spoken(error: csv.Error) -> str:
    said = str(error)
    if said.startswith("new-line character"):
        return "a carriage return that no newline follows, outside of quotes"
    return {"unexpected end of data": "a quote that nothing closes"}.get(said, said)


class CsvRows:
    """Parses records into rows."""

    def __init__(self, wanted: Wanted, limit: int, delimiter: str, names: Sequence[str]) -> None:
        """Set up.

        Args:
            wanted: what is made of a row.
            limit: bytes of the longest record that is parsed.
            delimiter: between fields.
            names: of the file's columns.
        """
        self._wanted = wanted
        self._limit = limit
        self._delimiter = delimiter
        self._places = {name: at for at, name in enumerate(names)}

    def __call__(self, row: int, lines: list[bytes], sizes: Sequence[int]) -> Rows:
        """See ``LineParser``."""
        rows, faults = parse(lines, sizes, self._limit, self._delimiter, len(self._places))
        return assemble(row, CsvBlock(rows, self._places), faults, self._wanted)


class CsvBlock:
    """A `Block` of parsed records; a column that the file lacks is null throughout."""

    def __init__(self, rows: list[_Fields], places: dict[str, int]) -> None:
        self._rows = rows
        self._places = places

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, at: npt.NDArray[np.int64]) -> CsvBlock:
        """See `Block`."""
        return CsvBlock([self._rows[each] for each in at.tolist()], self._places)

    def texts(self, name: str) -> Column:
        """See `Block`."""
        return pa.array(self._column(name), pa.large_string()), {}

    def lists(self, name: str) -> Column:
        """See `Block`."""
        raise AssertionError(f"{name!r}: a CSV column holds texts, no lists")

    def values(self, field: pa.Field) -> tuple[Any, dict[int, str]]:
        """See `Block`."""
        if field.name not in self._places:
            return pa.nulls(len(self), field.type), {}
        texts = self._column(field.name)
        if pa.types.is_string(field.type):
            return pa.array(texts, field.type), {}
        column = _nulled(pa.array(texts, pa.string()))
        try:
            return pc.cast(column, field.type), {}
        except pa.ArrowInvalid:
            pass  # the slow way finds which
        misfits = {at: text for at, text in enumerate(texts) if text and not _fits(text, field.type)}
        for at in misfits:
            texts[at] = None
        unlike = f"that does not fit the run's {field.type}"
        found = {at: f"{field.name!r} holds {text[:40]!r} {unlike}" for at, text in misfits.items()}
        return pc.cast(_nulled(pa.array(texts, pa.string())), field.type), found

    def _column(self, name: str) -> list[Any]:
        place = self._places[name]
        return [row[place] for row in self._rows]


class SeenFields:
    """What fields seen under one name have in common: the types that hold them all."""

    def __init__(self) -> None:
        self._types = list(TYPES)
        self._any = False

    def add(self, texts: Sequence[str | None]) -> None:
        """Take note of some fields; empty ones say nothing about a type."""
        column = pa.array([text for text in texts if text], pa.string())
        if len(column):
            self._any = True
            self._types = [kind for kind in self._types if _casts(column, kind)]

    def arrow_type(self) -> pa.DataType:
        """The first type that holds them all; a string where none does, or nothing was seen."""
        return self._types[0] if self._any and self._types else pa.string()


def _casts(column: Any, kind: pa.DataType) -> bool:
    try:
        pc.cast(column, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _fits(text: str, kind: pa.DataType) -> bool:
    return _casts(pa.array([text], pa.string()), kind)


def _nulled(column: Any) -> Any:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
