"""What reading hands on: columns of good rows, and columns of rows with a fault and its typed reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

ROW = "_row"
"""Column of the row's number in its file, from 0."""

FILE = "_file"
"""Column of the file's number; written by the output side."""

TEXT = "__text"
"""Column of the text of good rows, whatever the input calls it."""

RESERVED = (FILE, ROW, TEXT)
"""Names that no kept column may have."""

BAD_COLUMNS = ("text", "reason", "detail")
"""The quarantine's own columns. A kept column of such a name is in the parts, but not in the quarantine."""

REASONS = {
    "null": "the text is null or its key is missing",
    "wrong_type": "the text is a number, a list or another value that is no string",
    "invalid_json": "the line is not JSON",
    "not_an_object": "the line is JSON, but not an object",
    "invalid_utf8": "the text or the line is not UTF-8",
    "lone_surrogate": "the text holds half of a surrogate pair, which UTF-8 can't express",
    "kept_column": "a kept column's value does not fit the run's schema",
    "too_long": "the line is longer than the limit",
}
"""Why reading puts a row into the quarantine."""


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


def good_schema(keep: pa.Schema) -> pa.Schema:
    """Columns of good rows: number, kept columns, text."""
    return pa.schema([pa.field(ROW, pa.int64()), *keep, pa.field(TEXT, pa.large_string())])


def bad_schema(keep: pa.Schema) -> pa.Schema:
    """Columns of rows with a fault: number, kept columns (null where unreadable), text, reason, detail."""
    own = [
        pa.field("text", pa.large_string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
    kept = [field for field in keep if field.name not in BAD_COLUMNS]
    return pa.schema([pa.field(ROW, pa.int64()), *kept, *own])


def sort_rows(
    row: int, keep: pa.Schema, kept: Sequence[Any], texts: Any, faults: Mapping[int, Fault]
) -> tuple[pa.Table, pa.Table]:
    """Tell good rows from bad ones; both stay in order.

    Args:
        row: number of the first row.
        keep: kept columns.
        kept: one array per kept column, in the run's type, null where unreadable.
        texts: large_string array of the texts.
        faults: by position among these rows.

    Returns:
        A table of ``good_schema`` and one of ``bad_schema``.
    """
    numbers = pa.array(np.arange(row, row + len(texts), dtype=np.int64))
    if not faults:
        good = pa.Table.from_arrays([numbers, *kept, texts], schema=good_schema(keep))
        return good, bad_schema(keep).empty_table()
    bad_at = np.array(sorted(faults), dtype=np.int64)
    good_at = np.delete(np.arange(len(texts), dtype=np.int64), bad_at)
    good = pa.Table.from_arrays([numbers, *kept, texts], schema=good_schema(keep)).take(good_at)
    found = [faults[at] for at in bad_at.tolist()]
    shown = [column for column, field in zip(kept, keep, strict=True) if field.name not in BAD_COLUMNS]
    columns = [column.take(pa.array(bad_at)) for column in (numbers, *shown)]
    columns.append(pa.array([fault.text for fault in found], pa.large_string()))
    columns.append(pa.array([fault.reason for fault in found], pa.string()))
    columns.append(pa.array([fault.detail for fault in found], pa.string()))
    return good, pa.Table.from_arrays(columns, schema=bad_schema(keep))


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
