"""How a long sequence becomes windows that overlap: pure arithmetic on piece counts."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from raybert.errors import SettingsError
from raybert.text.encoding import Int32s, Int64s


class Spans(NamedTuple):
    """Windows over the pieces of N rows, row by row: window w is ``pieces[begin[w]:end[w]]`` of its row.

    Attributes:
        row: int32 [W], ascending.
        begin: int64 [W].
        end: int64 [W], exclusive.
    """

    row: Int32s
    begin: Int64s
    end: Int64s

    def take(self, index: Int32s) -> Spans:
        """The spans ``index``, in that order."""
        return Spans(self.row[index], self.begin[index], self.end[index])


def slide(counts: Int32s | Int64s, room: int | Int64s, stride: int | Int64s) -> Spans:
    """Cover every row's pieces with windows, each beginning ``room - stride`` pieces after the one before.

    Neighbours share exactly `stride` pieces. Every window but a row's last one is full, the last one ends with
    the row and holds a piece of its own, so no window lies inside another. A row without pieces gets one empty
    window. These are the windows of the reference's ``return_overflowing_tokens`` with the same stride.

    Args:
        counts: [N], pieces of each row, special tokens not counted.
        room: pieces that fit a window beside its special tokens; one number, or one a row, [N].
        stride: pieces that two neighbours share, from 0 to ``room - 1``; likewise.

    Raises:
        SettingsError: a stride that leaves no step forward.
    """
    counts = counts.astype(np.int64)
    room, stride = np.broadcast_to(room, counts.shape), np.broadcast_to(stride, counts.shape)
    for wrong in np.flatnonzero((stride < 0) | (stride >= room))[:1]:
        raise SettingsError(
            f"stride: {stride[wrong]} is outside 0 to {room[wrong] - 1}; "
            f"a window holds {room[wrong]} tokens beside its special ones"
        )
    step = room - stride
    windows = 1 + np.maximum(0, -(-(counts - room) // step))
    row = np.repeat(np.arange(len(counts), dtype=np.int32), windows)
    first_window = np.cumsum(windows) - windows
    begin = (np.arange(len(row), dtype=np.int64) - first_window[row]) * step[row]
    return Spans(row, begin, np.minimum(begin + room[row], counts[row]))


def cut(counts: Int64s, take: Int64s | int, keep: Literal["first", "last"]) -> Spans:
    """One window a row: its first, or its last, `take` pieces (int, or [N]), or all if it has no more."""
    taken = np.minimum(counts, take)
    begin = np.zeros_like(taken) if keep == "first" else counts - taken
    return Spans(np.arange(len(counts), dtype=np.int32), begin, begin + taken)


def share(first: Int64s, second: Int64s, room: int) -> tuple[Int64s, Int64s]:
    """How many pieces of each text of a pair fit `room` together: the longer text gives way first.

    A text of at most half the room stays whole; two longer ones get half each, the odd piece going to the longer
    (to the second, if equal). These are the lengths of the reference's truncation "longest_first".

    Args:
        first: [N], pieces of each pair's first text.
        second: [N], of its second.
        room: pieces that a window holds beside its special tokens.

    Returns:
        How many pieces to take of the first and of the second texts, [N] each.
    """
    shorter_taken = np.minimum(np.minimum(first, second), room // 2)
    first_is_longer = first > second
    too_long = first + second > room
    first_taken = np.where(first_is_longer, room - shorter_taken, shorter_taken)
    return (
        np.where(too_long, first_taken, first),
        np.where(too_long, room - first_taken, second),
    )


def interleaved(first: Spans, second: Spans) -> Spans:
    """Spans of both in turn: the two of a window side by side."""
    row = np.stack([first.row, second.row], axis=1).ravel()
    begin = np.stack([first.begin, second.begin], axis=1).ravel()
    return Spans(row, begin, np.stack([first.end, second.end], axis=1).ravel())


def of_pairs(spans: Spans, which: int) -> Spans:
    """Spans of the first (0) or second (1) texts of pairs, as those of all texts one after another."""
    return Spans(2 * spans.row + which, spans.begin, spans.end)


def beside(first: Int64s, second: Int64s, room: int, stride: int, limit: int | None) -> Int64s:
    """How many pieces of each pair's first text stand in every window over its second one.

    All of them, up to ``limit``; to half of the room where the second needs several windows and could not move on
    beside the whole first: where the reference fails.

    Args:
        first: [N], pieces of the first texts.
        second: [N], of the second ones.
        room: pieces that a window holds beside its special tokens.
        stride: pieces of the second text that neighbours share.
        limit: most pieces of a first text; None: no limit.
    """
    enough = np.maximum(room // 2, np.maximum(room - 1 - stride, room - second))
    kept: Int64s = np.minimum(first, np.clip(enough, 1, min(limit or room, room - 1)))
    return kept
