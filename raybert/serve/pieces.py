"""Pieces of requests that share a forward: joined to one call of a trunk, its arrays cut for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from raybert.tasks import Task
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Int32s, Sequences

Parts = Mapping[str, Int32s | None]
"""Head name, or key of a reading -> which windows it reads, each at most once; None: all of them."""
Found = dict[str, Arrays]
"""By head name, or key of a reading: what it makes of its windows, in its order of them."""


class Asked(NamedTuple):
    """Windows, and the heads that read them.

    Attributes:
        sequences: the windows, one or more.
        parts: of these windows.
    """

    sequences: Sequences
    parts: Parts


class Together:
    """Pieces as one, computed at once, and what was found cut for each of them.

    Args:
        pieces: one or more.

    Attributes:
        asked: all of their windows.
    """

    def __init__(self, pieces: Sequence[Asked]) -> None:
        self._pieces = len(pieces)
        self._readers: dict[str, list[_Reader]] = {}
        begin = 0
        for place, piece in enumerate(pieces):
            windows = piece.sequences.n_windows
            for name, part in piece.parts.items():
                self._readers.setdefault(name, []).append(_Reader(place, begin, windows, part))
            begin += windows
        parts = {name: self._part(readers) for name, readers in self._readers.items()}
        self.asked = Asked(sequences=_joined([piece.sequences for piece in pieces]), parts=parts)

    def _part(self, readers: Sequence[_Reader]) -> Int32s | None:
        if len(readers) == self._pieces and all(reader.part is None for reader in readers):
            return None
        return np.concatenate([reader.read() for reader in readers]).astype(np.int32, copy=False)

    def parted(self, found: Found) -> list[Found]:
        """What each piece gets of what was found of all, in their order."""
        if self._pieces == 1:
            return [found]
        cut: list[Found] = [{} for _ in range(self._pieces)]
        for name, arrays in found.items():
            readers = self._readers[name]
            counts = [reader.windows if reader.part is None else len(reader.part) for reader in readers]
            for reader, own in zip(readers, _split(arrays, counts), strict=True):
                cut[reader.place][name] = own
        return cut


class _Reader(NamedTuple):
    """A head of a piece: the piece's place, its first window among all, its windows, and which of them are read."""

    place: int
    begin: int
    windows: int
    part: Int32s | None

    def read(self) -> np.ndarray:
        return self.begin + (np.arange(self.windows) if self.part is None else self.part)


def unknown_words(task: Task, count: int, length: int) -> Sequences:
    """So many windows of so many tokens each."""
    tokenizer = task.tokenizer()
    row = np.full(length, tokenizer.unk_id, np.int32)
    row[0], row[-1] = tokenizer.cls_id, tokenizer.sep_id
    return Sequences(ids=np.tile(row, count), lengths=np.full(count, length, np.int32))


def _joined(cut: Sequence[Sequences]) -> Sequences:
    if len(cut) == 1:
        return cut[0]
    types = None
    if any(each.type_ids is not None for each in cut):
        types = np.concatenate([np.zeros(len(c.ids), np.int8) if c.type_ids is None else c.type_ids for c in cut])
    ids, lengths = np.concatenate([c.ids for c in cut]), np.concatenate([c.lengths for c in cut])
    return Sequences(ids=ids, lengths=lengths, type_ids=types)


def _split(arrays: Arrays, windows: Sequence[int]) -> list[Arrays]:
    """Arrays of consecutive groups of so many windows."""
    ends = list(accumulate(windows))
    begins = [0, *ends[:-1]]
    if arrays.counts is None:
        return [Arrays(values=arrays.values[begin:end]) for begin, end in zip(begins, ends, strict=True)]
    rows = [0, *np.cumsum(arrays.counts).tolist()]
    return [
        Arrays(values=arrays.values[rows[begin] : rows[end]], counts=arrays.counts[begin:end])
        for begin, end in zip(begins, ends, strict=True)
    ]
