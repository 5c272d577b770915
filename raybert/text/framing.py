"""The special tokens around one text, or around and between the two of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import tokenizers

from raybert.text.encoding import Bools, Int8s, Int32s, Int64s


class Part(NamedTuple):
    """One special token, or the place of a text (`special_id` is None), with its token type."""

    special_id: int | None
    type_id: int


class Framed(NamedTuple):
    """Framed windows, as the fields of `Windows` of the same names."""

    ids: Int32s
    lengths: Int32s
    type_ids: Int8s | None
    offsets: Int32s | None


@dataclass(frozen=True)
class Frame:
    """What a tokenizer's template says, part by part."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, text: str, pair: str | None = None) -> Frame:
        """Ask a tokenizer how it frames one text or a pair, by framing these, whatever its template is."""
        encoding = backend.encode(text, pair)
        places = zip(encoding.sequence_ids, encoding.ids, encoding.type_ids, strict=True)
        parts: list[Part] = []
        for which, run in groupby(places, key=lambda place: place[0]):
            tokens = list(run)
            if which is None:
                parts.extend(Part(special_id, type_id) for _, special_id, type_id in tokens)
            else:
                parts.append(Part(None, tokens[0][2]))
        return cls(tuple(parts))

    @cached_property
    def size(self) -> int:
        """How many special tokens there are."""
        return sum(part.special_id is not None for part in self.parts)

    @property
    def lead(self) -> int:
        """How many special tokens stand before the first text."""
        return next(place for place, part in enumerate(self.parts) if part.special_id is None)

    @property
    def second_lead(self) -> int:
        """How many special tokens stand before the second text of a pair."""
        _, second = (place for place, part in enumerate(self.parts) if part.special_id is None)
        return second - 1

    def around(self, inner: Int64s, ids: Int32s, offsets: Int32s | None) -> Framed:
        """Put W windows' texts into the frame.

        Args:
            inner: [W, 1 or 2], pieces of each window's text or texts.
            ids: the pieces, text after text, window after window.
            offsets: their offsets, if wanted; special tokens get (0, 0).
        """
        n_windows = len(inner)
        part_lengths = np.ones((n_windows, len(self.parts)), np.int64)
        part_lengths[:, self._are_texts] = inner

        def spread(values: np.ndarray) -> np.ndarray:
            return np.repeat(np.tile(values, n_windows), part_lengths.ravel())

        is_text = spread(self._are_texts)
        framed = np.empty(len(is_text), np.int32)
        framed[is_text] = ids
        framed[~is_text] = np.tile(self._special_ids, n_windows)
        placed = None
        if offsets is not None:
            placed = np.zeros((len(is_text), 2), np.int32)
            placed[is_text] = offsets
        lengths = part_lengths.sum(axis=1).astype(np.int32)
        return Framed(framed, lengths, spread(self._type_ids) if self._type_ids.any() else None, placed)

    @cached_property
    def _are_texts(self) -> Bools:
        return np.array([part.special_id is None for part in self.parts])

    @cached_property
    def _special_ids(self) -> Int32s:
        return np.array([part.special_id for part in self.parts if part.special_id is not None], np.int32)

    @cached_property
    def _type_ids(self) -> Int8s:
        return np.array([part.type_id for part in self.parts], np.int8)
