"""Lines to rows: JSON objects, or plain text. A line's fault is its row's, never an error of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from raybert.data.jsonvalues import fit_column, json_word
from raybert.data.lines import JSON_SPACE
from raybert.data.rows import Fault, escaped, sort_rows, surrogate_fault, utf8_fault

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
    """Parses JSON lines into the text and the kept columns."""

    def __init__(self, text_column: str, keep: pa.Schema, limit: int) -> None:
        self._text_column = text_column
        self._keep = keep
        self._limit = limit

    def __call__(self, row: int, lines: list[bytes], sizes: Sequence[int]) -> tuple[pa.Table, pa.Table]:
        """See ``LineParser``."""
        faults: dict[int, Fault] = {}
        texts: list[str | None] = []
        objects: list[dict[str, Any]] = []
        name, keep_objects = self._text_column, len(self._keep) > 0
        for at, line in enumerate(lines):
            fault: Fault | None
            if sizes[at] > self._limit:
                value, fault = None, _too_long(sizes[at], self._limit)
            else:
                value, fault = decode_line(line)
            if type(value) is dict:
                text = value.get(name)
                if type(text) is not str:
                    fault, text = _no_text(name, value), None
            else:
                fault = fault or _no_object(value, line)
                value, text = {}, None
            if fault:
                faults[at] = fault
            texts.append(text)
            if keep_objects:
                objects.append(value)
        column = text_array(texts, faults)
        kept = [self._kept_array(field, objects, texts, faults) for field in self._keep]
        return sort_rows(row, self._keep, kept, column, faults)

    def _kept_array(
        self,
        field: pa.Field,
        objects: list[dict[str, Any]],
        texts: list[str | None],
        faults: dict[int, Fault],
    ) -> Any:
        values = [value.get(field.name) for value in objects]
        column, misfits = fit_column(values, field.type)
        for at in misfits:
            detail = f"{field.name!r} holds {json_word(values[at])} that does not fit the run's {field.type}"
            faults.setdefault(at, Fault("kept_column", detail, texts[at]))
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
        column = text_array(texts, faults)
        kept = [column.cast(field.type) for field in self._keep]
        return sort_rows(row, self._keep, kept, column, faults)


def text_array(texts: list[str | None], faults: dict[int, Fault]) -> Any:
    """The texts as large_string; one with a lone surrogate becomes null, here and in the list, and a fault."""
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        for at, text in enumerate(texts):
            fault = surrogate_fault(text) if text is not None else None
            if fault is not None:
                faults[at], texts[at] = fault, None
        return pa.array(texts, pa.large_string())


def _no_object(value: object, line: bytes) -> Fault:
    return Fault("not_an_object", f"the line holds {json_word(value)}", escaped(line.strip(JSON_SPACE)))


def _no_text(name: str, value: dict[str, Any]) -> Fault:
    """The fault of an object without a string under the text column's key."""
    if name not in value:
        return Fault("null", f"no key {name!r}", None)
    text = value[name]
    if text is None:
        return Fault("null", f"{name!r} is null", None)
    return Fault("wrong_type", f"{name!r} is {json_word(text)}, not a string", json.dumps(text))


def _too_long(size: int, limit: int) -> Fault:
    return Fault("too_long", f"{size} bytes, over the limit of {limit}", None)
