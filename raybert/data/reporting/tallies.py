"""What a report counts, in pieces that are made of one part each and then added up, in the parts' order.

No piece grows with the rows of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

Place: TypeAlias = tuple[int, int]
"""A row: number of its file, number in the file."""

UNIT_BINS = 20
SPREAD_BINS = 40
_FINEST = 7  # bins are no narrower than the 128th part of the largest value
LENGTH_EDGES = (1, *(edge for power in range(1, 21) for edge in (2**power, 3 * 2 ** (power - 1))))
"""Where bins of lengths begin: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on; the last takes all that is longer."""


def draw_keys(file: int, rows: Ints) -> npt.NDArray[np.uint64]:
    """A number for each row that looks like chance and is always the same: splitmix64 of file and row.

    The rows with the smallest numbers are a fair sample, whatever order they come in.
    """
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(file) * np.uint64(1 << 40) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


class Drawn:
    """The ``most`` rows with the smallest keys; of equal keys those of earlier rows."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._rows: list[tuple[Any, int, int]] = []

    def add(self, keys: npt.NDArray[Any], file: int, rows: Ints) -> None:
        """Look at rows of one file."""
        if len(keys) > self.most:
            chosen = np.lexsort((rows, keys))[: self.most]
            keys, rows = keys[chosen], rows[chosen]
        self._keep([(key, file, row) for key, row in zip(keys.tolist(), rows.tolist(), strict=True)])

    def merge(self, other: Drawn) -> None:
        """Take in what another one drew."""
        self._keep(other._rows)

    def _keep(self, rows: Iterable[tuple[Any, int, int]]) -> None:
        self._rows = sorted({*self._rows, *rows})[: self.most]

    @property
    def places(self) -> list[Place]:
        """The rows, smallest key first."""
        return [(file, row) for _, file, row in self._rows]


class Counts:
    """How often each key was seen; where there are very many keys, the frequent ones (Misra and Gries, 1982).

    Attributes:
        counts: by key.
        least: what a count may be short of; 0: every count is exact, and no key is missing.
    """

    MOST = 50_000

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        self.least = 0

    def add(self, keys: Iterable[Any], counts: Iterable[int]) -> None:
        """Count keys so many times each."""
        for key, count in zip(keys, counts, strict=True):
            self.counts[key] = self.counts.get(key, 0) + count
        if len(self.counts) > 2 * self.MOST:
            step = sorted(self.counts.values(), reverse=True)[self.MOST]
            self.counts = {key: count - step for key, count in self.counts.items() if count > step}
            self.least += step

    def merge(self, other: Counts) -> None:
        """Take in another one's counts."""
        self.least += other.least
        self.add(other.counts, other.counts.values())

    def ranked(self) -> list[tuple[Any, int]]:
        """Keys with their counts, most frequent first, equal ones by key."""
        return sorted(self.counts.items(), key=lambda each: (-each[1], each[0]))


class Moments:
    """Number, least, mean and greatest of finite values; others are counted apart."""

    def __init__(self) -> None:
        self.count = self.non_finite = 0
        self.sum = 0.0
        self.least, self.greatest = math.inf, -math.inf

    def add(self, values: Floats) -> Floats:
        """Take in values; the finite ones come back."""
        finite = values[np.isfinite(values)]
        self.non_finite += len(values) - len(finite)
        if len(finite):
            self.count += len(finite)
            self.sum += float(finite.sum())
            self.least = min(self.least, float(finite.min()))
            self.greatest = max(self.greatest, float(finite.max()))
        return finite

    def merge(self, other: Moments) -> None:
        """Take in another one's values."""
        self.count, self.non_finite = self.count + other.count, self.non_finite + other.non_finite
        self.sum += other.sum
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)

    def facts(self) -> dict[str, Any]:
        """As it stands in the report; None where there is no value."""
        none = self.count == 0
        return {
            "count": self.count,
            "non_finite": self.non_finite,
            "min": None if none else self.least,
            "mean": None if none else self.sum / self.count,
            "max": None if none else self.greatest,
        }


class Unit:
    """A histogram of scores from 0 to 1, in twentieths; what lies beyond counts with the outermost."""

    def __init__(self) -> None:
        self.moments = Moments()
        self._counts = np.zeros(UNIT_BINS, np.int64)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take in scores."""
        finite = np.clip(self.moments.add(values.astype(np.float64)), 0, 1)
        self._counts += np.histogram(finite, bins=UNIT_BINS, range=(0, 1))[0]

    def merge(self, other: Unit) -> None:
        """Take in another one's scores."""
        self.moments.merge(other.moments)
        self._counts += other._counts

    def facts(self) -> dict[str, Any]:
        """As it stands in the report."""
        edges = [step / UNIT_BINS for step in range(UNIT_BINS + 1)]
        return {**self.moments.facts(), "edges": edges, "counts": self._counts.tolist()}


class Spread:
    """A histogram of numbers of any range: at most `SPREAD_BINS` bins, as wide as the same power of two.

    Bins begin at multiples of their width, so two neighbours of one width are one bin of the next: what comes out
    does not depend on the order in which numbers come in.
    """

    def __init__(self) -> None:
        self.moments = Moments()
        self._power = -1100
        self._bins: dict[int, int] = {}

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take in numbers."""
        finite = self.moments.add(values.astype(np.float64))
        if len(finite):
            self._widen()
            bins = np.floor(finite / 2.0**self._power).astype(np.int64)
            first = int(bins.min())
            counts = np.bincount(bins - first).tolist()
            self._count((first + at, number) for at, number in enumerate(counts) if number)

    def merge(self, other: Spread) -> None:
        """Take in another one's numbers."""
        self.moments.merge(other.moments)
        if other.moments.count:
            self._widen()
            shift = self._power - other._power
            self._count((number >> shift, count) for number, count in other._bins.items())

    def _widen(self) -> None:
        """Make bins as wide as the range of all numbers asks for."""
        low, high = self.moments.least, self.moments.greatest
        largest = max(abs(low), abs(high))
        power = max(self._power, (math.frexp(largest)[1] if largest else 0) - _FINEST)
        while math.floor(high / 2.0**power) - math.floor(low / 2.0**power) >= SPREAD_BINS:
            power += 1
        bins, self._bins, shift = self._bins, {}, power - self._power
        self._power = power
        self._count((number >> shift, count) for number, count in bins.items())

    def _count(self, counted: Iterable[tuple[int, int]]) -> None:
        for number, count in counted:
            self._bins[number] = self._bins.get(number, 0) + count

    def facts(self) -> dict[str, Any]:
        """As it stands in the report."""
        if not self._bins:
            return {**self.moments.facts(), "edges": [], "counts": []}
        numbers = range(min(self._bins), max(self._bins) + 1)
        width = 2.0**self._power
        edges = [number * width for number in (*numbers, numbers[-1] + 1)]
        return {**self.moments.facts(), "edges": edges, "counts": [self._bins.get(number, 0) for number in numbers]}


class Lengths:
    """Tokens of rows: a histogram, how many rows were cut, and what padding would have cost.

    Args:
        longest: tokens that a window holds.
    """

    BATCH = 32
    """Rows of the padded batch that packing is compared with."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.moments = Moments()
        self.truncated = 0
        self.capped = 0
        self.padded = 0
        self._counts = np.zeros(len(LENGTH_EDGES), np.int64)

    def add(self, tokens: Ints, truncated: int) -> None:
        """Take in all rows of a part, in their order; batches begin anew with each part."""
        self.moments.add(tokens.astype(np.float64))
        self.truncated += truncated
        bins = np.searchsorted(LENGTH_EDGES, np.maximum(tokens, 1), side="right") - 1
        self._counts += np.bincount(bins, minlength=len(LENGTH_EDGES))
        capped = np.minimum(tokens, self.longest)
        self.capped += int(capped.sum())
        if len(capped):
            begins = np.arange(0, len(capped), self.BATCH)
            rows = np.diff(np.append(begins, len(capped)))
            self.padded += int((np.maximum.reduceat(capped, begins) * rows).sum())

    def merge(self, other: Lengths) -> None:
        """Take in another one's rows."""
        self.moments.merge(other.moments)
        self.truncated += other.truncated
        self.capped += other.capped
        self.padded += other.padded
        self._counts += other._counts

    def facts(self) -> dict[str, Any]:
        """The histogram as it stands in the report, from the first bin with a row to the last."""
        seen = np.flatnonzero(self._counts)
        if not len(seen):
            return {**self.moments.facts(), "edges": [], "counts": []}
        first, last = int(seen[0]), int(seen[-1])
        edges = list(LENGTH_EDGES[first : last + 2])
        if len(edges) == last - first + 1:
            edges.append(2 * edges[-1])
        return {**self.moments.facts(), "edges": edges, "counts": self._counts[first : last + 1].tolist()}


def grouped(codes: Ints, keys: npt.NDArray[Any], most: int) -> Ints:
    """Positions of the ``most`` smallest keys of each code, code by code, ascending."""
    order = np.lexsort((keys, codes))
    ordered = codes[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    chosen: Ints = order[rank < most].astype(np.int64)
    return chosen
