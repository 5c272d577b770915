"""Tags of tokens and how they make spans: IOB1, IOB2, BIOES, BILOU, or bare types.

Tjong Kim Sang and Veenstra 1999 (IOB1, IOB2); Ratinov and Roth 2009 (BILOU).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

_SINGLE, _LAST = ("S", "U"), ("E", "L")


class Tags:
    """The tags of a token classifier.

    A tag is "O", ``PREFIX-TYPE`` or a bare type. In IOB a span goes on while the type stays the same and no B stands
    there, which reads IOB1 and IOB2 alike, and is what transformers does with all tags. Labels with E or L, and S or
    U, beside B or I are BIOES or BILOU: there a span also ends behind E and L, and S and U are spans of their own.
    A span that such tags leave open, or do not open, counts all the same: models are not always consistent.

    Args:
        labels: the classifier's tags by number.

    Attributes:
        types: what a span of each tag is called.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        known: tuple[str, ...] = ("B", "I")
        prefixes = {label[0] if label[1:2] == "-" else label for label in labels if label != "O"}
        if prefixes <= {*known, *_SINGLE, *_LAST} and prefixes & {*known}:
            known = (*known, *_SINGLE, *_LAST)
        split = [(label[0], label[2:]) if label[1:2] == "-" and label[0] in known else ("I", label) for label in labels]
        # What a span is called, and what decides whether it goes on, differ only for bare types with a hyphen.
        self.types = [label.split("-", 1)[-1] for label in labels]
        names = {name: number for number, name in enumerate(dict.fromkeys(name for _, name in split))}
        self._group = np.array([names[name] for _, name in split], np.int64)
        self._opens = np.array([prefix == "B" or prefix in _SINGLE for prefix, _ in split])
        self._closes = np.array([prefix in _SINGLE or prefix in _LAST for prefix, _ in split])

    def kept(self, labels: np.ndarray, ignored: Collection[str]) -> np.ndarray:
        """Places of the tags whose spans are not of an ignored type."""
        wanted = np.array([name not in ignored for name in self.types])
        return np.flatnonzero(wanted[labels])

    def groups(
        self,
        *,
        units: np.ndarray,
        labels: np.ndarray,
        scores: np.ndarray,
        rows: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
    ) -> list[tuple[int, str, float, int, int]]:
        """Spans of the units (tokens or words) that are looked at.

        Args:
            units: places of these, ascending; a place left out ends a span.
            labels: int [U], each unit's tag.
            scores: float32 [U].
            rows: int [U], the text that it is of.
            starts: int [U], where it begins.
            ends: int [U], where it ends.

        Returns:
            (row, type, mean score, start, end) of each span.
        """
        if not len(units):
            return []
        tags, row = labels[units], rows[units]
        follows = (np.diff(units) == 1) & (row[1:] == row[:-1])
        same = self._group[tags[1:]] == self._group[tags[:-1]]
        goes_on = follows & same & ~self._opens[tags[1:]] & ~self._closes[tags[:-1]]
        first = np.flatnonzero(np.r_[True, ~goes_on])
        counts = np.diff(np.append(first, len(units)))
        means = np.add.reduceat(scores[units].astype(np.float64), first) / counts
        last = first + counts - 1
        return [
            (text, self.types[tag], score, start, end)
            for text, tag, score, start, end in zip(
                row[first].tolist(),
                tags[first].tolist(),
                means.astype(np.float32).tolist(),
                starts[units[first]].tolist(),
                ends[units[last]].tolist(),
                strict=True,
            )
        ]
