"""What a run asks of its input's columns, what is found, and the errors about columns that can't serve."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa

from raybert.data.files import Inputs
from raybert.data.parquet import Keep
from raybert.data.rows import RESERVED
from raybert.data.template import template_names, template_type
from raybert.data.where import where_names
from raybert.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The columns by what they are for.

    Attributes:
        text_column: of the texts; None where a template makes them.
        text: the template, else None.
        pair_column: of what belongs to the texts, where there is something.
        keep: names of columns to carry along, or ``all``.
        where: the filter, where there is one.
    """

    text_column: str | None
    text: str | None = None
    pair_column: str | None = None
    keep: Keep = ()
    where: str | None = None

    def __post_init__(self) -> None:
        assert (self.text is None) != (self.text_column is None), "one of them makes the texts"

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Columns of the template."""
        return () if self.text is None else template_names(self.text)

    @cached_property
    def filtering(self) -> tuple[str, ...]:
        """Columns of the filter."""
        return () if self.where is None else where_names(self.where)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that have to be there, kept ones apart; each once."""
        one = [name for name in (self.text_column, self.pair_column) if name is not None]
        return tuple(dict.fromkeys([*one, *self.parts, *self.filtering]))

    @property
    def columns(self) -> Keep:
        """The columns that are read, each once; ``all`` where all are kept."""
        return self.keep if isinstance(self.keep, str) else tuple(dict.fromkeys([*self.needed, *self.keep]))


class Found(NamedTuple):
    """Types of the text and of the pair column; fields to keep, of the template and of the filter."""

    text: pa.DataType
    pair: pa.DataType | None
    keep: list[pa.Field]
    parts: list[pa.Field]
    filtering: list[pa.Field]


def refuse_reserved(names: Iterable[str]) -> None:
    """Refuse to keep columns of raybert's own names.

    Raises:
        InputError: naming the column.
    """
    for name in names:
        if name in RESERVED:
            raise InputError(
                f"column {name!r} can't be kept: raybert has a column of that name; rename it, or name the "
                "columns to keep without it"
            )


def no_rows(inputs: Inputs) -> InputError:
    """The error about an input of empty files."""
    return InputError(f"{inputs.root.shown}: no rows in any of {len(inputs.files)} {inputs.format} files")


def no_column(name: str, place: str, names: Sequence[str]) -> InputError:
    """The error about a column that is not there, with the nearest one that is."""
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"column {name!r} is not in {place}: it has {listed or 'no columns'}{hint}")


def not_text(name: str, place: str, kind: str, usable: Sequence[str], *, pair: bool = False) -> InputError:
    """The error about a column that holds no texts, with those that do."""
    what = "strings or lists of strings" if pair else "strings"
    others = f" (columns of {what}: {', '.join(usable[:20])})" if usable else ""
    return InputError(
        f"column {name!r} of {place} holds {kind}, not text{' or lists of texts' if pair else ''}; name a column of "
        f"{what} with --{'pair' if pair else 'text'}-column{others}"
    )


def part_field(name: str, place: str, kind: pa.DataType) -> pa.Field:
    """A column of the template in the type in which it goes into a text.

    Raises:
        InputError: none of its values could.
    """
    taken = template_type(kind)
    if taken is None:
        raise InputError(
            f"column {name!r} of {place} holds {kind}; a template takes columns of strings, numbers and booleans"
        )
    return pa.field(name, taken)
