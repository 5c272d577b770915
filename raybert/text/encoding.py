"""The encoded form of a list of texts: flat ids and lengths, never padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Windows:
    """The windows of N items (texts or pairs): T tokens in W windows, item by item, in the items' order.

    Attributes:
        ids: int32 [T], the ids of all windows one after another, special tokens included.
        lengths: int32 [W], tokens of each window; they add up to T.
        row_of_window: int32 [W], ascending: which item of the call the window is of. Every item has one or more.
        tokens: int32 [N], tokens of each item before truncation, its special tokens included.
        truncated: bool [N], whether tokens of the item are in no window.
        type_ids: int8 [T], the segment of each token; None means 0 throughout.
        offsets: int32 [T, 2], where each token lies in its own text, as [start, end) in code points;
            special tokens and the prompt's have (0, 0). None unless asked for.
    """

    ids: Int32s
    lengths: Int32s
    row_of_window: Int32s
    tokens: Int32s
    truncated: Bools
    type_ids: Int8s | None = None
    offsets: Int32s | None = None

    def __post_init__(self) -> None:
        assert int(self.lengths.sum(dtype=np.int64)) == len(self.ids)
        assert len(self.lengths) == len(self.row_of_window)
        assert len(self.tokens) == len(self.truncated)

    @property
    def n_windows(self) -> int:
        """W, how many windows there are."""
        return len(self.lengths)

    @property
    def starts(self) -> Int64s:
        """int64 [W], where each window's ids begin in `ids`."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return ends - self.lengths
