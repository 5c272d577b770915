"""Rows of unequal lengths filled up, for collators that get them one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybert.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Fill:
    """How rows are filled up.

    Attributes:
        values: name -> what its rows are filled with; values of other names stay as they are.
        length: tokens of every row; None: those of the longest.
        multiple: rounded up to a multiple of this; None: not.
        side: "right" or "left".
    """

    values: Mapping[str, int]
    length: int | None
    multiple: int | None
    side: str

    def __call__(self, rows: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        """Rows by name, all of one length; longer ones than ``length`` stay as they are."""
        longest = max((len(row) for row in rows["input_ids"]), default=0)
        length = longest if self.length is None else self.length
        if self.multiple:
            length = -(-length // self.multiple) * self.multiple
        return {
            name: [self._filled(row, self.values[name], length) for row in values] if name in self.values else values
            for name, values in rows.items()
        }

    def _filled(self, row: list[int], value: int, length: int) -> list[int]:
        more = [value] * (length - len(row))
        return [*more, *row] if self.side == "left" else [*row, *more]


def by_name(encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[bool, dict[str, Any]]:
    """Whether several rows were given, and they by name, in lists.

    Raises:
        UsageError: there are no input_ids, or names have different numbers of rows.
    """
    named = dict(encoded) if isinstance(encoded, Mapping) else _gathered(encoded)
    if "input_ids" not in named:
        raise UsageError(f"encoded_inputs: no input_ids among {', '.join(named) or 'nothing'}")
    lists = {name: _plain(value) for name, value in named.items()}
    batched = bool(lists["input_ids"]) and isinstance(lists["input_ids"][0], list)
    rows = {name: values if batched else [values] for name, values in lists.items()}
    counts = {name: len(values) for name, values in rows.items()}
    if len(set(counts.values())) > 1:
        raise UsageError(f"encoded_inputs: rows differ in number: {counts}")
    return batched, rows


def _gathered(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
