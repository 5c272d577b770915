"""What reading hands on: columns of good rows, and columns of rows with a fault and its typed reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ROW = "_row"
"""Column of the row's number in its file, from 0."""

FILE = "_file"
"""Column of the file's number; written by the output side."""

TEXT = "__text"
"""Column of the text of good rows, whatever the input calls it."""

PAIR = "__pair"
"""Column of what belongs to the text: a second text, or a list of texts; only where a pair column was named."""

RESERVED = (FILE, ROW, TEXT, PAIR)
"""Names that no kept column may have."""

BAD_COLUMNS = ("text", "reason", "detail")
"""The quarantine's own columns. A kept column of such a name is in the parts, but not in the quarantine."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a row is in the quarantine.

    Attributes:
        text: for people.
        retryable: computing the row again, its file unchanged, may well succeed.
    """

    text: str
    retryable: bool = False


REASONS = {
    "null": Reason("a value that the text is made of, or the pair column's value, is null, or its key is missing"),
    "wrong_type": Reason(
        "the text is no string, or a value of its template of no type that the run's schema says; or the pair column's "
        "value is none, or no list of one string or more"
    ),
    "invalid_json": Reason("the line is not JSON"),
    "not_an_object": Reason("the line is JSON, but not an object"),
    "invalid_csv": Reason("the record's quotes don't fit, or it holds a NUL byte or a bare carriage return"),
    "wrong_fields": Reason("the record has more or fewer fields than the file's header"),
    "invalid_utf8": Reason("a text or the line is not UTF-8"),
    "lone_surrogate": Reason("a text holds half of a surrogate pair, which UTF-8 can't express"),
    "kept_column": Reason("a kept column's value does not fit the run's schema"),
    "where_column": Reason("a value that the filter looks at does not fit the run's schema"),
    "too_long": Reason("the line or record, or in Parquet the text and what belongs to it, is longer than the limit"),
    "killed_worker": Reason("a worker died each time it computed the row"),
    "out_of_memory": Reason("the row alone takes more memory than there was", retryable=True),
    "failed": Reason("a stage failed on the row with an error that raybert does not know", retryable=True),
}
"""Why a row goes into the quarantine: what reading finds, then what computing brings to light."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one row can't be processed.

    Attributes:
        reason: a key of ``REASONS``.
        detail: what was found, and where.
        text: the text or the raw line as far as it can be shown, in valid Unicode.
    """

    reason: str
    detail: str
    text: str | None


class Rows(NamedTuple):
    """What became of some rows that follow one another: each is in one of the three.

    Attributes:
        good: a table of ``good_schema``.
        bad: a table of ``bad_schema``.
        filtered: how many a filter took out.
    """

    good: pa.Table
    bad: pa.Table
    filtered: int


def good_schema(keep: pa.Schema, pair_type: pa.DataType | None = None) -> pa.Schema:
    """Columns of good rows: number, kept columns, text, and the pair column where there is one."""
    pair = [] if pair_type is None else [pa.field(PAIR, pair_type)]
    return pa.schema([pa.field(ROW, pa.int64()), *keep, pa.field(TEXT, pa.large_string()), *pair])


def bad_schema(keep: pa.Schema) -> pa.Schema:
    """Columns of rows with a fault: number, kept columns (null where unreadable), text, reason, detail."""
    own = [
        pa.field("text", pa.large_string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
    kept = [field for field in keep if field.name not in BAD_COLUMNS]
    return pa.schema([pa.field(ROW, pa.int64()), *kept, *own])


def add_faults(faults: dict[int, Fault], found: Mapping[int, Fault], name: str, texts: Any = None) -> None:
    """Take up what was found in one column; a row keeps its first fault.

    Args:
        faults: by row.
        found: by row; the details are predicates (``is null``), and the column becomes their subject.
        name: the column.
        texts: the text column's array, from which the quarantine shows the text; None where that is the column.
    """
    for at, fault in found.items():
        if at not in faults:
            shown = fault.text if texts is None else texts[at].as_py()
            faults[at] = Fault(fault.reason, f"{name!r} {fault.detail}", shown)


def list_column(
    lengths: npt.NDArray[np.int64], items: Any, item_faults: Mapping[int, Fault]
) -> tuple[Any, dict[int, Fault]]:
    """Lists of texts from their items. An empty list is a fault, and the first fault of its items is a list's.

    Args:
        lengths: [R] items of each row.
        items: large_string array of the items of all rows.
        item_faults: by position among the items; a detail is a predicate.

    Returns:
        An array of ``LISTS``, and the faults by row, their details predicates.
    """
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    found = {at: Fault("wrong_type", "is an empty list", None) for at in np.flatnonzero(lengths == 0).tolist()}
    for position, fault in sorted(item_faults.items()):
        at = int(np.searchsorted(offsets, position, side="right")) - 1
        reason = "wrong_type" if fault.reason == "null" else fault.reason
        found.setdefault(at, Fault(reason, f"item {position - offsets[at]} {fault.detail}", None))
    return pa.LargeListArray.from_arrays(offsets, items), found


def sort_rows(
    row_numbers: npt.NDArray[np.int64],
    keep: pa.Schema,
    kept: Sequence[Any],
    texts: Any,
    faults: Mapping[int, Fault],
    pairs: Any = None,
) -> tuple[pa.Table, pa.Table]:
    """Tell good rows from bad ones; both stay in order.

    Args:
        row_numbers: [R] each row's number in the file.
        keep: kept columns.
        kept: one array per kept column, in the run's type, null where unreadable.
        texts: large_string array of the texts.
        faults: by position among these rows.
        pairs: array of the pair column, in the run's type; None where there is none.

    Returns:
        A table of ``good_schema`` and one of ``bad_schema``.
    """
    numbers = pa.array(row_numbers)
    read = [texts] if pairs is None else [texts, pairs]
    schema = good_schema(keep, None if pairs is None else pairs.type)
    rows = pa.Table.from_arrays([numbers, *kept, *read], schema=schema)
    if not faults:
        return rows, bad_schema(keep).empty_table()
    bad_at = np.array(sorted(faults), dtype=np.int64)
    good_at = np.delete(np.arange(len(texts), dtype=np.int64), bad_at)
    found = [faults[at] for at in bad_at.tolist()]
    shown = [column for column, field in zip(kept, keep, strict=True) if field.name not in BAD_COLUMNS]
    columns = [column.take(pa.array(bad_at)) for column in (numbers, *shown)]
    columns.append(pa.array([fault.text for fault in found], pa.large_string()))
    columns.append(pa.array([fault.reason for fault in found], pa.string()))
    columns.append(pa.array([fault.detail for fault in found], pa.string()))
    return rows.take(good_at), pa.Table.from_arrays(columns, schema=bad_schema(keep))


def escaped(raw: bytes) -> str:
    r"""Bytes as text; what is not UTF-8 becomes ``\xff``."""
    return raw.decode("utf-8", "backslashreplace")


def surrogate_fault(text: str) -> Fault | None:
    """The fault of a text with a lone surrogate, None for any other text."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
        detail = f"U+{ord(text[error.start]):04X} at character {error.start}"
        return Fault("lone_surrogate", detail, shown)
    return None


def utf8_fault(raw: bytes) -> Fault | None:
    """The fault of bytes that are not UTF-8, None for any others."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at byte {error.start}: {error.reason}"
        return Fault("invalid_utf8", detail, escaped(raw))
    return None


def too_long(size: int, limit: int) -> Fault:
    """The fault of a row with more bytes than a row may have."""
    return Fault("too_long", f"{size} bytes, over the limit of {limit}", None)
