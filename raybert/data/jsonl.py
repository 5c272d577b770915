"""Lines to rows: JSON objects, or plain text. A line's fault is its row's, never an error of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.data.arrowtypes import LISTS
from raybert.data.jsonvalues import fit_column, json_word
from raybert.data.lines import JSON_SPACE
from raybert.data.rows import Fault, add_faults, escaped, list_column, sort_rows, surrogate_fault, utf8_fault

LineParser = Callable[[int, list[bytes], Sequence[int]], tuple[pa.Table, pa.Table]]
"""(number of the first row, lines, their sizes) -> (good rows, bad rows)."""

_scan = json.JSONDecoder().raw_decode  # json.loads less its checks of arguments: four times as fast on 60 bytes


def decode_line(line: bytes) -> tuple[Any, Fault | None]:
    """One line's JSON value, or the fault that keeps it from being one.

    NaN and Infinity are taken (Python writes them by default); of equal keys the last one counts. Positions in
    details count from the first character that is not whitespace.
    """
    line = line.strip(JSON_SPACE)
    try:
        chars = line.decode("utf-8")
        value, end = _scan(chars)
        if end == len(chars):
            return value, None
        detail = f"extra data at character {end}"
    except UnicodeDecodeError:
        return None, utf8_fault(line)
    except json.JSONDecodeError as error:
        detail = f"{error.msg.removesuffix(' at')} at character {error.pos}"
    except RecursionError:
        detail = "nested too deep"
    except ValueError as error:  # an integer of thousands of digits
        detail = str(error)
    return None, Fault("invalid_json", detail, escaped(line))


class JsonRows:
    """Parses JSON lines into the text, the pair column and the kept columns."""

    def __init__(self, text_column: str, keep: pa.Schema, limit: int, pair: pa.Field | None = None) -> None:
        """Set up.

        Args:
            text_column: key of the texts.
            keep: kept columns.
            limit: bytes of the longest line that is parsed.
            pair: key and type of the pair column, where there is one.
        """
        self._text_column = text_column
        self._keep = keep
        self._limit = limit
        self._pair = pair

    def __call__(self, row: int, lines: list[bytes], sizes: Sequence[int]) -> tuple[pa.Table, pa.Table]:
        """See ``LineParser``."""
        faults: dict[int, Fault] = {}
        texts: list[Any] = []
        seconds: list[Any] = []
        objects: list[dict[str, Any]] = []
        name, keep_objects = self._text_column, len(self._keep) > 0
        second = None if self._pair is None else self._pair.name
        for at, line in enumerate(lines):
            fault: Fault | None
            if sizes[at] > self._limit:
                value, fault = None, _too_long(sizes[at], self._limit)
            else:
                value, fault = decode_line(line)
            if type(value) is not dict:
                faults[at] = fault or _no_object(value, line)
                value = {}
            texts.append(value.get(name, _MISSING))
            if second is not None:
                seconds.append(value.get(second, _MISSING))
            if keep_objects:
                objects.append(value)
        column, found = _text_array(texts)
        add_faults(faults, found, name)
        pairs = None
        if self._pair is not None:
            pairs, found = (_list_array if self._pair.type == LISTS else _text_array)(seconds)
            add_faults(faults, found, self._pair.name, column)
        kept = [_kept_array(field, objects, column, faults) for field in self._keep]
        return sort_rows(row, self._keep, kept, column, faults, pairs)


def _kept_array(field: pa.Field, objects: list[dict[str, Any]], texts: Any, faults: dict[int, Fault]) -> Any:
    values = [value.get(field.name) for value in objects]
    column, misfits = fit_column(values, field.type)
    unlike = f"that does not fit the run's {field.type}"
    found = {at: Fault("kept_column", f"holds {json_word(values[at])} {unlike}", None) for at in misfits}
    add_faults(faults, found, field.name, texts)
    return column


class TextRows:
    """Takes each line as a text; a carriage return at its end is not part of it."""

    def __init__(self, keep: pa.Schema, limit: int) -> None:
        self._keep = keep
        self._limit = limit

    def __call__(self, row: int, lines: list[bytes], sizes: Sequence[int]) -> tuple[pa.Table, pa.Table]:
        """See ``LineParser``."""
        faults: dict[int, Fault] = {}
        texts: list[str | None] = []
        for at, raw in enumerate(lines):
            line, text, fault = raw.removesuffix(b"\r"), None, None
            if sizes[at] > self._limit:
                fault = _too_long(sizes[at], self._limit)
            else:
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    fault = utf8_fault(line)
            if fault:
                faults[at] = fault
            texts.append(text)
        column = pa.array(texts, pa.large_string())
        kept = [column.cast(field.type) for field in self._keep]
        return sort_rows(row, self._keep, kept, column, faults)


def _text_array(values: list[Any]) -> tuple[Any, dict[int, Fault]]:
    """JSON values as large_string, and the faults of those that are no texts and become null, here and in the list."""
    found: dict[int, Fault] = {}
    if set(map(type, values)) != {str}:
        for at, value in enumerate(values):
            if type(value) is not str:
                found[at], values[at] = _misfit(value, "a string"), None
    try:
        return pa.array(values, pa.large_string()), found
    except UnicodeEncodeError:
        for at, text in enumerate(values):
            fault = surrogate_fault(text) if text is not None else None
            if fault is not None:
                found[at], values[at] = replace(fault, detail=f"holds {fault.detail}"), None
        return pa.array(values, pa.large_string()), found


def _list_array(values: list[Any]) -> tuple[Any, dict[int, Fault]]:
    """JSON values as ``LISTS``, and the faults of those that are no lists of texts; see ``list_column``."""
    others = {at: _misfit(value, "a list of strings") for at, value in enumerate(values) if type(value) is not list}
    for at in others:
        values[at] = ()
    items, item_faults = _text_array(list(chain.from_iterable(values)))
    column, found = list_column(np.fromiter(map(len, values), np.int64, len(values)), items, item_faults)
    return column, found | others


_MISSING = object()  # stands for the value of a key that is not there


def _misfit(value: object, wanted: str) -> Fault:
    if value is _MISSING:
        return Fault("null", "is missing", None)
    if value is None:
        return Fault("null", "is null", None)
    return Fault("wrong_type", f"is {json_word(value)}, not {wanted}", json.dumps(value))


def _no_object(value: object, line: bytes) -> Fault:
    return Fault("not_an_object", f"the line holds {json_word(value)}", escaped(line.strip(JSON_SPACE)))


def _too_long(size: int, limit: int) -> Fault:
    return Fault("too_long", f"{size} bytes, over the limit of {limit}", None)
