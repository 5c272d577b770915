"""From the values of some rows to what reading hands on: the filter first, then texts, pairs and kept columns.

Each format brings its rows as a `Block`, which gives a column at a time; what is asked of the columns is the same for
all formats and stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybert.data.arrowtypes import LISTS
from raybert.data.rows import Fault, Rows, add_faults, bad_schema, good_schema, sort_rows
from raybert.data.template import Template
from raybert.data.where import Where

Column = tuple[Any, dict[int, Fault]]
"""An Arrow array, null at its faults; the faults by position, their details predicates (``is null``)."""

B = TypeVar("B", bound="Block")


class Block(Protocol):
    """Some rows of a file, a column at a time."""

    def __len__(self) -> int: ...

    def take(self: B, at: npt.NDArray[np.int64]) -> B:
        """The rows at these positions."""

    def texts(self, name: str) -> Column:
        """A column of texts as large_string; nulls are faults."""

    def lists(self, name: str) -> Column:
        """A column of lists of texts as ``LISTS``; nulls and empty lists are faults."""

    def values(self, field: pa.Field) -> tuple[Any, dict[int, str]]:
        """A column in the run's type; values that don't fit it are null, with the whole detail of a fault."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is made of a row.

    Attributes:
        text: the text column's name, or the template that makes the texts.
        keep: kept columns in the run's types.
        pair: name and type of the pair column, where there is one.
        where: the filter, where there is one.
    """

    text: str | Template
    keep: pa.Schema
    pair: pa.Field | None = None
    where: Where | None = None

    @property
    def text_names(self) -> tuple[str, ...]:
        """Columns that the text is made of, and the pair column."""
        names = [self.text] if isinstance(self.text, str) else self.text.columns.names
        return tuple(dict.fromkeys([*names, *([] if self.pair is None else [self.pair.name])]))

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every file has to have."""
        filtering = [] if self.where is None else self.where.columns.names
        return tuple(dict.fromkeys([*self.text_names, *filtering]))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        return tuple(dict.fromkeys([*self.needed, *self.keep.names]))

    def texts(self, block: Block, faults: dict[int, Fault]) -> Any:
        """The texts as large_string; rows without one get a fault."""
        if isinstance(self.text, str):
            column, found = block.texts(self.text)
            add_faults(faults, found, self.text)
            return column
        columns = []
        for field in self.text.columns:
            if pa.types.is_string(field.type):
                column, found = block.texts(field.name)
                add_faults(faults, found, field.name)
            else:
                column, misfits = block.values(field)
                for at, detail in misfits.items():
                    faults.setdefault(at, Fault("wrong_type", detail, None))
                nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)) if column.null_count else ()
                for at in map(int, nulls):
                    faults.setdefault(at, Fault("null", f"{field.name!r} is null", None))
            columns.append(column)
        return self.text.fill(columns)


def assemble(first: int, block: Block, faults: dict[int, Fault], wanted: Wanted) -> Rows:
    """Make the rows of a block.

    A row whose columns of the filter could be read is filtered first: other faults of a row that is left out count for
    nothing. A row that could not be parsed, or whose value does not fit the filter's column, is a bad one.

    Args:
        first: number of the block's first row in the file.
        block: the rows.
        faults: of the rows that could not be parsed, by position; taken over.
        wanted: what is made of them.
    """
    count = len(block)
    numbers = np.arange(first, first + count, dtype=np.int64)
    misfits: dict[int, str] = {}
    if wanted.where is not None:
        left, misfits = _filtered(block, faults, wanted.where)
        if len(left) < count:
            place = {at: new for new, at in enumerate(left.tolist())}
            faults = {place[at]: fault for at, fault in faults.items()}
            misfits = {place[at]: detail for at, detail in misfits.items()}
            numbers, block = numbers[left], block.take(left)
    if len(numbers) == 0:
        pair_type = None if wanted.pair is None else wanted.pair.type
        return Rows(good_schema(wanted.keep, pair_type).empty_table(), bad_schema(wanted.keep).empty_table(), count)
    texts = wanted.texts(block, faults)
    pairs = None
    if wanted.pair is not None:
        name = wanted.pair.name
        pairs, found = block.lists(name) if wanted.pair.type == LISTS else block.texts(name)
        add_faults(faults, found, name, texts)
    _add_misfits(faults, misfits, "where_column", texts)
    kept = []
    for field in wanted.keep:
        column, misfits = block.values(field)
        _add_misfits(faults, misfits, "kept_column", texts)
        kept.append(column)
    good, bad = sort_rows(numbers, wanted.keep, kept, texts, faults, pairs)
    return Rows(good, bad, count - len(numbers))


def _filtered(block: Block, faults: dict[int, Fault], where: Where) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """Positions of the rows that stay, bad ones included, and misfits among the filter's columns."""
    misfits: dict[int, str] = {}
    columns: Sequence[Any] = []
    for field in where.columns:
        column, found = block.values(field)
        misfits = found | misfits
        columns = [*columns, column]
    stays = where.mask(columns, len(block))
    stays[[*faults, *misfits]] = True
    misfits = {at: detail for at, detail in misfits.items() if at not in faults}
    return np.flatnonzero(stays).astype(np.int64), misfits


def _add_misfits(faults: dict[int, Fault], misfits: dict[int, str], reason: str, texts: Any) -> None:
    for at, detail in misfits.items():
        if at not in faults:
            faults[at] = Fault(reason, detail, texts[at].as_py())
