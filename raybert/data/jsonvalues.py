"""Which Arrow type the values of a JSON key have, and whether a value fits it: nothing is converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raybert.data.arrowtypes import LISTS
from raybert.errors import InputError

_WORDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}

_TYPES: dict[type, pa.DataType] = {bool: pa.bool_(), str: pa.string()}

_EXACT = 1 << 53  # a double holds every integer up to here


def json_word(value: object) -> str:
    """What a decoded JSON value is, in words."""
    return _WORDS[type(value)]


class SeenValues:
    """The kinds of values seen under one JSON key: how many of each, and the place where it came first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._places: dict[type, str] = {}
        self._counts: Counter[type] = Counter()
        self._items: SeenValues | None = None
        self._fields: dict[str, SeenValues] = {}

    def add(self, value: object, place: str) -> None:
        """Take note of one value; null says nothing about a type."""
        if value is None:
            return
        self._places.setdefault(type(value), place)
        self._counts[type(value)] += 1
        if isinstance(value, list):
            if self._items is None:
                self._items = SeenValues(f"{self.name}[]")
            for item in value:
                self._items.add(item, place)
        elif isinstance(value, dict):
            for key, item in value.items():
                if key not in self._fields and is_unicode(key):  # no Arrow field is called otherwise
                    self._fields[key] = SeenValues(f"{self.name}.{key}")
                if key in self._fields:
                    self._fields[key].add(item, place)

    @property
    def may_be_text(self) -> bool:
        """Strings came up, or nothing but nulls did."""
        return str in self._places or not self._places

    @property
    def is_text(self) -> bool:
        """Strings came up, and nothing else but nulls."""
        return set(self._places) == {str}

    @property
    def pair_type(self) -> pa.DataType | None:
        """The run's type of a pair column: of texts or of lists of texts, whichever more values are; None for neither.

        A list is one of texts where strings came up among the items of all lists, or nothing but nulls did. Nothing
        but nulls is a text. Of equally many kinds the one that came up first wins.
        """
        if not self._places:
            return pa.large_string()
        counts = {kind: self._counts[kind] for kind in self._places if kind is str or self._is_list_of_texts(kind)}
        if not counts:
            return None
        return LISTS if max(counts, key=counts.__getitem__) is list else pa.large_string()

    def _is_list_of_texts(self, kind: type) -> bool:
        return kind is list and self._items is not None and self._items.may_be_text

    @property
    def words(self) -> str:
        """What came up, in words."""
        return " and ".join(
            f"an array of {self._items.words}" if kind is list and self._items and self._items.words else _WORDS[kind]
            for kind in self._places
        )

    def arrow_type(self) -> pa.DataType:
        """The type of most values seen; rows with others don't fit and go into the quarantine.

        Nothing but nulls is a string. Integers and doubles count together and are doubles. Of equally many kinds the
        one that came up first wins.

        Raises:
            InputError: only empty objects, which Parquet can't store.
        """
        counts: Counter[type] = Counter()
        for kind, count in self._counts.items():
            counts[float if kind is int else kind] += count
        if not counts:
            return pa.string()
        most = counts.most_common(1)[0][0]
        if most is float:
            return pa.float64() if float in self._counts else pa.int64()
        if most is list:
            assert self._items is not None
            return pa.list_(self._items.arrow_type())
        return self._struct() if most is dict else _TYPES[most]

    def _struct(self) -> pa.DataType:
        if not self._fields:
            raise InputError(
                f"column {self.name!r} holds only empty objects ({self._places[dict]}), which Parquet can't "
                "store; leave it out of --keep"
            )
        return pa.struct([pa.field(key, seen.arrow_type()) for key, seen in self._fields.items()])


def fit_column(values: Sequence[Any], kind: pa.DataType) -> tuple[Any, list[int]]:
    """An Arrow array of decoded JSON values, and the positions of those that don't fit and are null in it."""
    allowed = _SCALARS.get(kind)
    if allowed is not None and set(map(type, values)) <= allowed:
        try:
            return pa.array(values, kind), []
        except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
            pass  # an integer out of range or a lone surrogate: the slow way finds which
    misfits = [at for at, value in enumerate(values) if not fits(value, kind)]
    if misfits:
        values = list(values)
        for at in misfits:
            values[at] = None
    return pa.array(values, kind), misfits


_NULL = type(None)
_SCALARS: dict[Any, set[type]] = {
    pa.string(): {str, _NULL},
    pa.int64(): {int, _NULL},
    pa.float64(): {int, float, _NULL},
    pa.bool_(): {bool, _NULL},
}


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a decoded JSON value can be stored in this type without a change; an unknown key is one."""
    if value is None:
        return True
    if kind in _SCALARS:
        return type(value) in _SCALARS[kind] and _in_range(value, kind)
    if pa.types.is_struct(kind):
        if type(value) is not dict:
            return False
        types = {field.name: field.type for field in kind}
        return all(key in types and fits(item, types[key]) for key, item in value.items())
    assert pa.types.is_list(kind), kind
    return type(value) is list and all(fits(item, kind.value_type) for item in value)


def _in_range(value: Any, kind: pa.DataType) -> bool:
    if isinstance(value, str):
        return value.isascii() or is_unicode(value)
    if type(value) is int:
        return -_EXACT <= value <= _EXACT if kind == pa.float64() else -(1 << 63) <= value < 1 << 63
    return True


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can express the text: no lone surrogate is in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
