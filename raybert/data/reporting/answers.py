"""What a report says of a head's answers: one tally a kind of columns, fed with batches of parts.

Here stand those of labels and numbers.

Rows shown as examples are those with the smallest `draw_keys` of each label, or of all rows: a fair sample that is the
same in every report of a folder. The lowest and highest are by score, of equal scores the first in the input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from raybert.data.reporting.tallies import Counts, Drawn, Ints, Moments, Place, Spread, Unit, grouped

Example: TypeAlias = dict[str, Any]
Show: TypeAlias = Callable[[Place], Example]
"""A row as an example, see `raybert.data.reporting.examples`."""

EXAMPLES = 3
EXTREMES = 8
LABELS = 50
_SHOWN_LABELS = 20  # so many get examples
KEY_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of a part.

    Attributes:
        file: number of their file.
        rows: int64 [N], their numbers in it.
        keys: uint64 [N], their `draw_keys`.
        columns: arrays by name.
    """

    file: int
    rows: Ints
    keys: npt.NDArray[np.uint64]
    columns: Mapping[str, Any]


class Tally(ABC):
    """What is counted of one head's answers.

    Attributes:
        kind: its name in the report.
        columns: the columns that it reads.
        is_large: whether a sample of parts is to be enough.
    """

    kind: ClassVar[str]
    is_large: ClassVar[bool] = False
    columns: tuple[str, ...]

    @abstractmethod
    def add(self, batch: Batch) -> None:
        """Count some rows."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in what another tally of the same head counted."""

    @abstractmethod
    def places(self) -> list[Place]:
        """Rows that `facts` shows."""

    @abstractmethod
    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""


class Labelled:
    """Rows drawn for each of some labels."""

    def __init__(self) -> None:
        self._drawn: dict[str, Drawn] = {}

    def add(self, batch: Batch, labels: Sequence[str], codes: Ints, at: Ints) -> None:
        """Draw of the rows at these positions, whose labels are numbered."""
        pairs = np.unique(codes * len(batch.rows) + at)  # a row may have one label several times
        codes, at = np.divmod(pairs, len(batch.rows))
        for position in grouped(codes, batch.keys[at], EXAMPLES).tolist():
            row = at[position : position + 1]
            drawn = self._drawn.setdefault(labels[codes[position]], Drawn(EXAMPLES))
            drawn.add(batch.keys[row], batch.file, batch.rows[row])

    def merge(self, other: Labelled, counts: Counts) -> None:
        """Take in what another one drew, of labels that are still counted."""
        for label, drawn in other._drawn.items():
            self._drawn.setdefault(label, Drawn(EXAMPLES)).merge(drawn)
        self._drawn = {label: drawn for label, drawn in self._drawn.items() if label in counts.counts}

    def of(self, label: str) -> list[Place]:
        """The rows of a label."""
        return self._drawn[label].places if label in self._drawn else []

    def shown(self, counts: Counts) -> list[Place]:
        """The rows of the labels that are shown."""
        return [place for label, _ in counts.ranked()[:_SHOWN_LABELS] for place in self.of(label)]


def coded(column: Any) -> tuple[list[str], Ints]:
    """Distinct texts, and the number of each row's own."""
    encoded = pc.utf8_slice_codeunits(column, 0, KEY_CHARACTERS).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def label_rows(counts: Counts, total: int, drawn: Labelled, show: Show, more: Callable[[str], dict[str, Any]]) -> Any:
    """The most frequent labels as they stand in the report; ``more`` says what a kind adds to one."""
    return [
        {
            "label": label,
            "count": count,
            "share": count / total,
            **more(label),
            "examples": [show(place) for place in drawn.of(label)] if at < _SHOWN_LABELS else [],
        }
        for at, (label, count) in enumerate(counts.ranked()[:LABELS])
    ]


def known(counts: Counts, labels: Sequence[str] | None) -> dict[str, Any]:
    """How many labels were seen, and which never."""
    names = [] if labels is None or counts.least else list(dict.fromkeys(labels))
    never = [label for label in names if label[:KEY_CHARACTERS] not in counts.counts]
    return {"distinct": len(counts.counts), "exact": counts.least == 0, "never": never[:LABELS]}


class Labels(Tally):
    """One label a row: classify, next-sentence, multiple-choice.

    Args:
        name: the head's.
        scores: an empty histogram for the scores.
        known: all labels that there are, where they are known.
    """

    kind = "labels"

    def __init__(self, name: str, scores: Unit | Spread, known: Sequence[str] | None) -> None:
        self.columns = (f"{name}_label", f"{name}_score")
        self._known = known
        self._scores = scores
        self._counts = Counts()
        self._sums: dict[str, tuple[float, int]] = {}
        self._drawn, self._lowest = Labelled(), Drawn(EXTREMES)

    def add(self, batch: Batch) -> None:
        """Count some rows."""
        labels, codes = coded(batch.columns[self.columns[0]])
        scores = batch.columns[self.columns[1]].to_numpy(zero_copy_only=False).astype(np.float64)
        self._counts.add(labels, np.bincount(codes, minlength=len(labels)).tolist())
        finite = np.isfinite(scores)
        sums = np.bincount(codes[finite], weights=scores[finite], minlength=len(labels)).tolist()
        counts = np.bincount(codes[finite], minlength=len(labels)).tolist()
        self._add_sums(dict(zip(labels, zip(sums, counts, strict=True), strict=True)))
        self._scores.add(scores)
        self._drawn.add(batch, labels, codes, np.arange(len(codes)))
        self._lowest.add(scores[finite], batch.file, batch.rows[finite])

    def _add_sums(self, sums: Mapping[str, tuple[float, int]]) -> None:
        for label, (total, count) in sums.items():
            before = self._sums.get(label, (0.0, 0))
            self._sums[label] = (before[0] + total, before[1] + count)

    def merge(self, other: Labels) -> None:
        """Take in another one's rows."""
        self._counts.merge(other._counts)
        self._add_sums(other._sums)
        self._sums = {label: each for label, each in self._sums.items() if label in self._counts.counts}
        self._scores.merge(other._scores)  # type: ignore[arg-type]  # of one kind: of one head
        self._drawn.merge(other._drawn, self._counts)
        self._lowest.merge(other._lowest)

    def places(self) -> list[Place]:
        """Rows that are shown."""
        return [*self._drawn.shown(self._counts), *self._lowest.places]

    def _mean(self, label: str) -> dict[str, Any]:
        total, count = self._sums.get(label, (0.0, 0))
        return {"mean_score": total / count if count else None}

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""
        scores = self._scores.facts()
        total = scores["count"] + scores["non_finite"]
        return {
            "kind": self.kind,
            "rows": total,
            "labels": label_rows(self._counts, max(1, total), self._drawn, show, self._mean),
            **known(self._counts, self._known),
            "scores": scores,
            "lowest": [show(place) for place in self._lowest.places],
        }


class ManyLabels(Tally):
    """Any number of labels a row: multi-label classify.

    Args:
        name: the head's.
        known: all labels that there are, where they are known.
    """

    kind = "multi-label"

    def __init__(self, name: str, known: Sequence[str] | None) -> None:
        self.columns = (f"{name}_labels",)
        self._known = known
        self._counts, self._drawn = Counts(), Labelled()
        self._of_row = Moments()
        self._without = 0

    def add(self, batch: Batch) -> None:
        """Count some rows."""
        column = batch.columns[self.columns[0]]
        labels, codes = coded(pc.list_flatten(column))
        at = pc.list_parent_indices(column).to_numpy().astype(np.int64)
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        self._counts.add(labels, np.bincount(codes, minlength=len(labels)).tolist())
        self._drawn.add(batch, labels, codes, at)
        self._of_row.add(lengths.astype(np.float64))
        self._without += int((lengths == 0).sum())

    def merge(self, other: ManyLabels) -> None:
        """Take in another one's rows."""
        self._counts.merge(other._counts)
        self._drawn.merge(other._drawn, self._counts)
        self._of_row.merge(other._of_row)
        self._without += other._without

    def places(self) -> list[Place]:
        """Rows that are shown."""
        return self._drawn.shown(self._counts)

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report; a label's share is that of all rows."""
        rows = self._of_row.count
        return {
            "kind": self.kind,
            "rows": rows,
            "without": self._without,
            "of_row": self._of_row.facts(),
            "labels": label_rows(self._counts, max(1, rows), self._drawn, show, lambda _: {}),
            **known(self._counts, self._known),
        }


class Numbers(Tally):
    """One number a row: rerank, regression.

    Args:
        name: the head's.
        scores: an empty histogram for them.
    """

    kind = "number"

    def __init__(self, name: str, scores: Unit | Spread) -> None:
        self.columns = (name,)
        self._scores = scores
        self._lowest, self._highest = Drawn(EXTREMES), Drawn(EXTREMES)

    def add(self, batch: Batch) -> None:
        """Count some rows."""
        scores = batch.columns[self.columns[0]].to_numpy(zero_copy_only=False).astype(np.float64)
        self._scores.add(scores)
        finite = np.isfinite(scores)
        self._lowest.add(scores[finite], batch.file, batch.rows[finite])
        self._highest.add(-scores[finite], batch.file, batch.rows[finite])

    def merge(self, other: Numbers) -> None:
        """Take in another one's rows."""
        self._scores.merge(other._scores)  # type: ignore[arg-type]  # of one kind: of one head
        self._lowest.merge(other._lowest)
        self._highest.merge(other._highest)

    def places(self) -> list[Place]:
        """Rows that are shown."""
        return [*self._lowest.places, *self._highest.places]

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""
        scores = self._scores.facts()
        return {
            "kind": self.kind,
            "rows": scores["count"] + scores["non_finite"],
            "scores": scores,
            "lowest": [show(place) for place in self._lowest.places],
            "highest": [show(place) for place in self._highest.places],
        }
