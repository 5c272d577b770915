"""The encoded form of a list of texts: flat ids and lengths, never padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def ranges(starts: Int64s, counts: Int32s | Int64s) -> Int64s:
    """The numbers ``starts[i], ..., starts[i] + counts[i] - 1`` of every i, one after another."""
    counts = counts.astype(np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    numbers: Int64s = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return numbers


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Sequences:
    """What a forward sees: T tokens in W windows.

    Attributes:
        ids: int32 [T], the ids of all windows one after another, special tokens included.
        lengths: int32 [W], tokens of each window; they add up to T.
        type_ids: int8 [T], the segment of each token; None means 0 throughout.
    """

    ids: Int32s
    lengths: Int32s
    type_ids: Int8s | None = None

    @property
    def n_windows(self) -> int:
        """W, how many windows there are."""
        return len(self.lengths)

    @property
    def starts(self) -> Int64s:
        """int64 [W], where each window's ids begin in `ids`."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return ends - self.lengths

    def select(self, index: Int32s | Int64s) -> Sequences:
        """The windows ``index``, in that order."""
        where = ranges(self.starts[index], self.lengths[index])
        types = None if self.type_ids is None else self.type_ids[where]
        return Sequences(ids=self.ids[where], lengths=self.lengths[index], type_ids=types)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Windows(Sequences):
    """The windows of N items (texts or pairs), item by item, in the items' order.

    Attributes:
        row_of_window: int32 [W], ascending: which item of the call the window is of. Every item has one or more.
        tokens: int32 [N], tokens of each item before truncation, its special tokens included.
        truncated: bool [N], whether tokens of the item are in no window.
        offsets: int32 [T, 2], where each token lies in its own text, as [start, end) in code points;
            special tokens and the prompt's have (0, 0). None unless asked for.
        second: int32 [W, 2], of pairs: where in each window the second text begins and ends. None for texts.
    """

    row_of_window: Int32s
    tokens: Int32s
    truncated: Bools
    offsets: Int32s | None = None
    second: Int32s | None = None

    def __post_init__(self) -> None:
        assert int(self.lengths.sum(dtype=np.int64)) == len(self.ids)
        assert len(self.lengths) == len(self.row_of_window)
        assert len(self.tokens) == len(self.truncated)

    @property
    def n_items(self) -> int:
        """N, how many items there are."""
        return len(self.tokens)

    @property
    def first_windows(self) -> Int64s:
        """int64 [N], the first window of each item."""
        return np.searchsorted(self.row_of_window, np.arange(self.n_items), side="left")
