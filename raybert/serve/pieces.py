"""Pieces of requests that share a forward: joined to one call of a trunk, its arrays cut for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raybert.tasks import Task
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Int32s, Sequences

Parts = Mapping[str, Int32s | None]
"""Head name, or key of a reading -> which windows it reads, each at most once; None: all of them."""
Found = dict[str, Arrays]
"""By head name, or key of a reading: what it makes of its windows, in its order of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Windows, and the heads that read them.

    Attributes:
        sequences: the windows, one or more.
        parts: of these windows.
    """

    sequences: Sequences
    parts: Parts


def run_together(run: Callable[[Sequences, Parts], Mapping[str, Arrays]], pieces: Sequence[Asked]) -> list[Found]:
    """What each piece gets, of all of them computed at once.

    Args:
        run: computes, as `raybert.engine.Trunk.run`.
        pieces: one or more.
    """
    begins = np.cumsum([0, *(piece.sequences.n_windows for piece in pieces)])
    own: dict[str, list[tuple[int, np.ndarray]]] = {}
    for place, piece in enumerate(pieces):
        for name, part in piece.parts.items():
            windows = np.arange(piece.sequences.n_windows) if part is None else part
            own.setdefault(name, []).append((place, begins[place] + windows))
    parts = {
        name: np.concatenate([windows for _, windows in each]).astype(np.int32, copy=False)
        for name, each in own.items()
    }
    found: list[Found] = [{} for _ in pieces]
    for name, arrays in run(_joined([piece.sequences for piece in pieces]), parts).items():
        cut = _split(arrays, [len(windows) for _, windows in own[name]])
        for (place, _), of_piece in zip(own[name], cut, strict=True):
            found[place][name] = of_piece
    return found


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
    ends = np.cumsum(windows)
    if arrays.counts is None:
        return [Arrays(values=values) for values in np.split(arrays.values, ends[:-1])]
    counts = np.split(arrays.counts, ends[:-1])
    rows = np.cumsum([int(each.sum()) for each in counts])
    values = np.split(arrays.values, rows[:-1])
    return [Arrays(values=each, counts=own) for each, own in zip(values, counts, strict=True)]
