"""Lines to rows: JSON objects, or plain text. A line's fault is its row's, never an error of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybert.data.assemble import Column, Wanted, assemble
from raybert.data.jsonvalues import fit_column, json_word
from raybert.data.lines import JSON_SPACE
from raybert.data.rows import Fault, Rows, escaped, list_column, surrogate_fault, too_long, utf8_fault

LineParser = Callable[[int, list[bytes], Sequence[int]], Rows]
"""(number of the first row, lines, their sizes) -> the rows."""

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
    """Parses JSON lines into rows."""

    def __init__(self, wanted: Wanted, limit: int) -> None:
        """Set up.

        Args:
            wanted: what is made of a row.
            limit: bytes of the longest line that is parsed.
        """
        self._wanted = wanted
        self._limit = limit

    def __call__(self, row: int, lines: list[bytes], sizes: Sequence[int]) -> Rows:
        """See ``LineParser``."""
        faults: dict[int, Fault] = {}
        objects: list[dict[str, Any]] = []
        for at, line in enumerate(lines):
            fault: Fault | None
            if sizes[at] > self._limit:
                value, fault = None, too_long(sizes[at], self._limit)
            else:
                value, fault = decode_line(line)
            if type(value) is not dict:
                faults[at] = fault or _no_object(value, line)
                value = {}
            objects.append(value)
        return assemble(row, JsonBlock(objects), faults, self._wanted)


class JsonBlock:
    """A `Block` of decoded JSON objects."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self._objects = objects

    def __len__(self) -> int:
        return len(self._objects)

    def take(self, at: npt.NDArray[np.int64]) -> JsonBlock:
        """See `Block`."""
        return JsonBlock([self._objects[each] for each in at.tolist()])

    def texts(self, name: str) -> Column:
        """See `Block`."""
        return _text_array([value.get(name, _MISSING) for value in self._objects])

    def lists(self, name: str) -> Column:
        """See `Block`."""
        return _list_array([value.get(name, _MISSING) for value in self._objects])

    def values(self, field: pa.Field) -> tuple[Any, dict[int, str]]:
        """See `Block`."""
        name = field.name
        values = [value.get(name) for value in self._objects]
        column, misfits = fit_column(values, field.type)
        unlike = f"that does not fit the run's {field.type}"
        return column, {at: f"{name!r} holds {json_word(values[at])} {unlike}" for at in misfits}


class TextRows:
    """Takes each line as a text; a carriage return at its end is not part of it."""

    def __init__(self, wanted: Wanted, limit: int) -> None:
        self._wanted = wanted
        self._limit = limit

    def __call__(self, row: int, lines: list[bytes], sizes: Sequence[int]) -> Rows:
        """See ``LineParser``."""
        faults: dict[int, Fault] = {}
        texts: list[str | None] = []
        for at, raw in enumerate(lines):
            line, text, fault = raw.removesuffix(b"\r"), None, None
            if sizes[at] > self._limit:
                fault = too_long(sizes[at], self._limit)
            else:
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError:
                    fault = utf8_fault(line)
            if fault:
                faults[at] = fault
            texts.append(text)
        return assemble(row, TextBlock(pa.array(texts, pa.large_string())), faults, self._wanted)


class TextBlock:
    """A `Block` of lines: it has one column, whatever that is called."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def take(self, at: npt.NDArray[np.int64]) -> TextBlock:
        """See `Block`."""
        return TextBlock(self._column.take(pa.array(at)))

    def texts(self, name: str) -> Column:
        """See `Block`."""
        return self._column, {}

    def lists(self, name: str) -> Column:
        """See `Block`."""
        raise AssertionError(f"{name!r}: a line is a text, no list")

    def values(self, field: pa.Field) -> tuple[Any, dict[int, str]]:
        """See `Block`."""
        return self._column.cast(field.type), {}


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
