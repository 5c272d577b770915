"""Pieces of texts before they are cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybert.text.encoding import Int32s, Int64s, ranges
from raybert.text.windows import Spans


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Pieces of N texts: `counts` [N] there are, `kept` [N] of them are here, text after text.

    Attributes:
        counts: int64 [N].
        kept: int64 [N].
        ids: int32, of those that are here.
        offsets: int32 [.., 2], their places in their texts, if wanted.
    """

    counts: Int64s
    kept: Int64s
    ids: Int32s
    offsets: Int32s | None

    def select(self, spans: Spans) -> tuple[Int32s, Int32s | None]:
        """The pieces of these windows, and their offsets, window after window."""
        starts = np.cumsum(self.kept) - self.kept
        begin, end = starts[spans.row] + spans.begin, starts[spans.row] + spans.end
        if len(begin) == 1:
            own = slice(int(begin[0]), int(end[0]))
            return self.ids[own], None if self.offsets is None else self.offsets[own]
        if np.array_equal(begin, np.append(0, end[:-1])) and end[-1:] == len(self.ids):
            return self.ids, self.offsets  # they are all pieces, each one once
        where = ranges(begin, end - begin)
        return self.ids[where], None if self.offsets is None else self.offsets[where]


def joined(arrays: list[Int32s], empty: Int32s) -> Int32s:
    """The arrays one after another; ``empty`` says of what kind none is."""
    return np.concatenate([empty, *arrays])
