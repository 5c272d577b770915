"""Several encodings of the same items, and the windows that they have in common: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raybert.text.encoding import Int32s, Sequences, Windows


def share_windows(encodings: Sequence[Windows]) -> tuple[Sequences, list[Int32s | None]]:
    """Join encodings of the same items: a window that two of them cut of one item is there once.

    Windows are equal when their ids and token types are. Windows of one encoding are never joined, so that a head
    sees as many as it asked for.

    Args:
        encodings: one or more, of the same N items.

    Returns:
        The windows to compute, item by item; and for each encoding which of them are its own, int32 [W], in its
        order (None: all of them as they are).
    """
    if len(encodings) == 1:  # nothing but what a forward sees: it may go to another process
        only = encodings[0]
        return Sequences(ids=only.ids, lengths=only.lengths, type_ids=only.type_ids), [None]
    joined: dict[tuple[int, int, bytes, bytes], int] = {}
    sources: list[tuple[int, int]] = []
    found: list[list[int]] = []
    for number, windows in enumerate(encodings):
        seen: dict[tuple[int, bytes, bytes], int] = {}
        places = []
        for at, content in enumerate(_contents(windows)):
            turn = seen[content] = seen.get(content, -1) + 1
            row, ids, types = content
            place = joined.setdefault((row, turn, ids, types), len(sources))
            if place == len(sources):
                sources.append((number, at))
            places.append(place)
        found.append(places)
    # Item by item, so that which encoding came first decides nothing about the batches of a lone item.
    rows = [int(encodings[number].row_of_window[at]) for number, at in sources]
    order = np.argsort(np.array(rows, np.int64), kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    parts: list[Int32s | None] = [rank[np.array(places, np.int64)] for places in found]
    return _gathered(encodings, [sources[place] for place in order.tolist()]), parts


def _contents(windows: Windows) -> list[tuple[int, bytes, bytes]]:
    """(item, ids, token types) of each window, as bytes; types that are all 0 are none."""
    ids, types = windows.ids, windows.type_ids
    starts = windows.starts.tolist()
    contents = []
    for row, begin, length in zip(windows.row_of_window.tolist(), starts, windows.lengths.tolist(), strict=True):
        span = slice(begin, begin + length)
        segments = b"" if types is None or not types[span].any() else types[span].tobytes()
        contents.append((row, ids[span].tobytes(), segments))
    return contents


def _gathered(encodings: Sequence[Windows], sources: Sequence[tuple[int, int]]) -> Sequences:
    """The windows (encoding, place in it), in that order."""
    first_of = np.cumsum([0, *(windows.n_windows for windows in encodings)])
    typed = any(windows.type_ids is not None for windows in encodings)
    everything = Sequences(
        ids=np.concatenate([windows.ids for windows in encodings]),
        lengths=np.concatenate([windows.lengths for windows in encodings]),
        type_ids=np.concatenate([_types(windows) for windows in encodings]) if typed else None,
    )
    return everything.select(np.array([first_of[number] + at for number, at in sources], np.int64))


def _types(windows: Windows) -> np.ndarray:
    return np.zeros(len(windows.ids), np.int8) if windows.type_ids is None else windows.type_ids
