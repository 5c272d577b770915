"""What a report says of vectors: their lengths, and whether some are zero or not numbers at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybert.data.reporting.answers import Batch, Show, Tally
from raybert.data.reporting.tallies import Moments, Place, Spread


class _Norms:
    """Lengths of vectors."""

    def __init__(self) -> None:
        self.count = self.zero = self.non_finite = 0
        self._lengths = Spread()

    def add(self, squares: npt.NDArray[np.float64]) -> None:
        """Take in squared lengths; one of a vector with a number that is none is none either."""
        self.count += len(squares)
        self.zero += int((squares == 0).sum())
        self.non_finite += int((~np.isfinite(squares)).sum())
        self._lengths.add(np.sqrt(squares))

    def merge(self, other: _Norms) -> None:
        """Take in another one's."""
        self.count, self.zero = self.count + other.count, self.zero + other.zero
        self.non_finite += other.non_finite
        self._lengths.merge(other._lengths)

    def facts(self) -> dict[str, Any]:
        """As it stands in the report."""
        many = max(1, self.count)
        return {
            "vectors": self.count,
            "zero": self.zero,
            "zero_share": self.zero / many,
            "non_finite": self.non_finite,
            "non_finite_share": self.non_finite / many,
            "lengths": self._lengths.facts(),
        }


class Vectors(Tally):
    """A vector a row, or one a token: embed.

    Args:
        name: the head's.
        kind: type of its column.
    """

    kind = "vectors"
    is_large = True

    def __init__(self, name: str, kind: pa.DataType) -> None:
        self.columns = (name,)
        self._of_tokens = not pa.types.is_fixed_size_list(kind)
        self._type = kind.value_type if self._of_tokens else kind
        self._parts = self._rows = 0
        self._norms = _Norms()

    @property
    def bytes(self) -> int:
        """Of one vector."""
        return int(self._type.list_size * self._type.value_type.bit_width // 8)

    @property
    def of_tokens(self) -> bool:
        """Whether a row has one a token."""
        return self._of_tokens

    def begin(self) -> None:
        """Another part is looked into."""
        self._parts += 1

    def add(self, batch: Batch) -> None:
        """Look at some rows."""
        column = batch.columns[self.columns[0]]
        vectors = pc.list_flatten(column) if self._of_tokens else column
        numbers = pc.list_flatten(vectors).to_numpy(zero_copy_only=False).reshape(-1, self._type.list_size)
        self._rows += len(column)
        with np.errstate(invalid="ignore", over="ignore"):
            self._norms.add(np.einsum("ij,ij->i", numbers, numbers, dtype=np.float64, casting="same_kind"))

    def merge(self, other: Vectors) -> None:
        """Take in another one's rows."""
        self._parts, self._rows = self._parts + other._parts, self._rows + other._rows
        self._norms.merge(other._norms)

    def places(self) -> list[Place]:
        """None is shown: a vector says nothing to the eye."""
        return []

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report: of how many parts and rows, and what was found."""
        return {
            "kind": self.kind,
            "of_tokens": self._of_tokens,
            "dimensions": self._type.list_size,
            "type": str(self._type.value_type),
            "parts": self._parts,
            "rows": self._rows,
            **self._norms.facts(),
        }


class Weights(Tally):
    """Weights of words: sparse embed.

    Args:
        name: the head's.
    """

    kind = "sparse"

    def __init__(self, name: str) -> None:
        self.columns = (f"{name}_weights",)
        self._words, self._weights = Moments(), Spread()
        self._empty = 0

    def add(self, batch: Batch) -> None:
        """Look at some rows."""
        column = batch.columns[self.columns[0]]
        words = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.float64)
        self._words.add(words)
        self._empty += int((words == 0).sum())
        self._weights.add(pc.list_flatten(column).to_numpy(zero_copy_only=False))

    def merge(self, other: Weights) -> None:
        """Take in another one's rows."""
        self._words.merge(other._words)
        self._weights.merge(other._weights)
        self._empty += other._empty

    def places(self) -> list[Place]:
        """None is shown: ids say nothing to the eye."""
        return []

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""
        return {
            "kind": self.kind,
            "rows": self._words.count,
            "words": self._words.facts(),
            "empty": self._empty,
            "weights": self._weights.facts(),
        }
