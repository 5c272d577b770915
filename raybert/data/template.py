"""``--text "{title}. {body}"``: texts made of several columns."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybert.data.jsonvalues import is_unicode
from raybert.errors import SettingsError

_Pieces = list[tuple[str, str | None]]


def template_names(source: str) -> tuple[str, ...]:
    """The columns that a template names, each once, in order.

    Raises:
        SettingsError: it is no template, or names no column.
    """
    names = [name for _, name in _parse(source) if name is not None]
    if not names:
        raise SettingsError(f"text {source!r}: names no column; write one in braces, as in '{{title}}. {{body}}'")
    return tuple(dict.fromkeys(names))


def template_type(kind: pa.DataType) -> pa.DataType | None:
    """The type in which a column of this plain type goes into a text, None for one that can't.

    Texts as they are; booleans, integers and floating point numbers as JSON writes them.
    """
    types = pa.types
    if any(is_(kind) for is_ in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
        return pa.string()
    if types.is_null(kind):
        return pa.string()
    return kind if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) else None


class Template:
    """A template over columns whose types are known.

    Attributes:
        columns: the columns it names, each once, in their types.
    """

    def __init__(self, source: str, columns: pa.Schema) -> None:
        """Set up.

        Args:
            source: as written: ``{column}`` stands for its value, ``{{`` and ``}}`` for braces.
            columns: those of ``template_names``, in types that ``template_type`` gives.
        """
        self.columns = columns
        place = {name: at for at, name in enumerate(template_names(source))}
        assert list(place) == columns.names, (place, columns)
        self._parts: list[Any] = []
        for literal, name in _parse(source):
            if literal:
                self._parts.append(pa.scalar(literal, pa.large_string()))
            if name is not None:
                self._parts.append(place[name])

    def fill(self, columns: Sequence[Any]) -> Any:
        """The texts as large_string, null where one of the columns is.

        Args:
            columns: one array for each of ``columns``, all equally long; strings as large_string.
        """
        words = [_words(column) for column in columns]
        parts = [words[part] if isinstance(part, int) else part for part in self._parts]
        return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))


def _parse(source: str) -> _Pieces:
    """Literal texts, each with the column that follows it."""
    pieces: _Pieces = []
    try:
        found = list(string.Formatter().parse(source))
    except ValueError as error:
        remedy = "write {{ and }} for braces that are part of the text"
        raise SettingsError(f"text {source!r}: {error}; {remedy}") from error
    if not is_unicode(source):
        raise SettingsError(f"text {source!r}: holds half of a surrogate pair, which UTF-8 can't express")
    for literal, name, form, conversion in found:
        if name is not None:
            written = f"{{{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}}}"
            if not name:
                raise SettingsError(f"text {source!r}: {{}} names no column; write its name between the braces")
            if form or conversion or set(name) & set(".[]"):
                raise SettingsError(
                    f"text {source!r}: {written} is more than a column's name; a template takes names alone"
                )
        pieces.append((literal, name))
    return pieces


def _words(column: Any) -> Any:
    """Values as large_string, in JSON's words."""
    kind = column.type
    if pa.types.is_floating(kind):
        if not pa.types.is_float64(kind):  # as few digits as tell its values apart: 0.1, not 0.10000000149011612
            column = pc.cast(pc.cast(pc.cast(column, pa.float32()), pa.string()), pa.float64())
        values = column.to_pylist()
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.large_string())
    return column if kind == pa.large_string() else pc.cast(column, pa.large_string())
