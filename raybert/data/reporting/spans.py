"""What a report says of answers that are pieces of texts: entities, answers to questions, words for masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.data.reporting.answers import (
    EXAMPLES,
    EXTREMES,
    KEY_CHARACTERS,
    LABELS,
    Batch,
    Labelled,
    Show,
    Tally,
    coded,
    known,
    label_rows,
)
from raybert.data.reporting.tallies import Counts, Drawn, Ints, Place, Unit

TEXTS = 10
"""So many of the most frequent texts are told of each label."""


class Entities(Tally):
    """Spans with labels: ner.

    Args:
        name: the head's.
    """

    kind = "entities"

    def __init__(self, name: str) -> None:
        self.columns = (name,)
        self._rows = self._without = 0
        self._labels, self._texts, self._drawn = Counts(), Counts(), Labelled()
        self._scores = Unit()

    def add(self, batch: Batch) -> None:
        """Count some rows."""
        column = batch.columns[self.columns[0]]
        spans = pc.list_flatten(column)
        found = {name: pc.struct_field(spans, name) for name in ("label", "score", "text")}
        labels, codes = coded(found["label"])
        self._rows += len(column)
        self._without += int((pc.list_value_length(column).to_numpy(zero_copy_only=False) == 0).sum())
        self._labels.add(labels, np.bincount(codes, minlength=len(labels)).tolist())
        texts = pa.table({"label": found["label"], "text": pc.utf8_slice_codeunits(found["text"], 0, KEY_CHARACTERS)})
        each = texts.group_by(["label", "text"]).aggregate([([], "count_all")])
        keys = zip(each["label"].to_pylist(), each["text"].to_pylist(), strict=True)
        self._texts.add(keys, each["count_all"].to_pylist())
        self._scores.add(found["score"].to_numpy(zero_copy_only=False))
        self._drawn.add(batch, labels, codes, pc.list_parent_indices(column).to_numpy().astype(np.int64))

    def merge(self, other: Entities) -> None:
        """Take in another one's rows."""
        self._rows, self._without = self._rows + other._rows, self._without + other._without
        self._labels.merge(other._labels)
        self._texts.merge(other._texts)
        self._scores.merge(other._scores)
        self._drawn.merge(other._drawn, self._labels)

    def places(self) -> list[Place]:
        """Rows that are shown."""
        return self._drawn.shown(self._labels)

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""
        by_label: dict[str, list[dict[str, Any]]] = {}
        for (label, text), count in self._texts.ranked():
            texts = by_label.setdefault(label, [])
            if len(texts) < TEXTS:
                texts.append({"text": text, "count": count})
        scores = self._scores.facts()
        total = scores["count"] + scores["non_finite"]
        labels = label_rows(
            self._labels, max(1, total), self._drawn, show, lambda label: {"texts": by_label.get(label, [])}
        )
        return {
            "kind": self.kind,
            "rows": self._rows,
            "without": self._without,
            "entities": total,
            "labels": labels,
            **known(self._labels, None),
            "texts_exact": self._texts.least == 0,
            "scores": scores,
        }


class Spans(Tally):
    """Answers out of a context: qa.

    Args:
        name: the head's.
    """

    kind = "spans"

    def __init__(self, name: str) -> None:
        self.columns = (name,)
        self._rows = self._without = 0
        self._scores = Unit()
        self._drawn, self._lowest = Drawn(2 * EXAMPLES), Drawn(EXTREMES)

    def add(self, batch: Batch) -> None:
        """Count some rows, the best answer of each."""
        column = batch.columns[self.columns[0]]
        at, best = _firsts(column)
        scores = pc.struct_field(best, "score").to_numpy(zero_copy_only=False).astype(np.float64)
        empty = pc.equal(pc.struct_field(best, "text"), "").to_numpy(zero_copy_only=False)
        self._rows += len(column)
        self._without += len(column) - len(at) + int(empty.sum())
        self._scores.add(scores)
        self._drawn.add(batch.keys[at], batch.file, batch.rows[at])
        finite = np.isfinite(scores)
        self._lowest.add(scores[finite], batch.file, batch.rows[at][finite])

    def merge(self, other: Spans) -> None:
        """Take in another one's rows."""
        self._rows, self._without = self._rows + other._rows, self._without + other._without
        self._scores.merge(other._scores)
        self._drawn.merge(other._drawn)
        self._lowest.merge(other._lowest)

    def places(self) -> list[Place]:
        """Rows that are shown."""
        return [*self._drawn.places, *self._lowest.places]

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""
        return {
            "kind": self.kind,
            "rows": self._rows,
            "without": self._without,
            "scores": self._scores.facts(),
            "examples": [show(place) for place in self._drawn.places],
            "lowest": [show(place) for place in self._lowest.places],
        }


class Words(Tally):
    """Words for masks: fill-mask.

    Args:
        name: the head's.
    """

    kind = "words"

    def __init__(self, name: str) -> None:
        self.columns = (name,)
        self._rows = self._without = 0
        self._scores, self._tokens = Unit(), Counts()
        self._drawn = Drawn(2 * EXAMPLES)

    def add(self, batch: Batch) -> None:
        """Count some rows, the best word of each mask."""
        column = batch.columns[self.columns[0]]
        filled = np.flatnonzero(pc.list_value_length(column).to_numpy(zero_copy_only=False))
        _, best = _firsts(pc.list_flatten(column))
        self._rows += len(column)
        self._without += len(column) - len(filled)
        self._scores.add(pc.struct_field(best, "score").to_numpy(zero_copy_only=False))
        tokens, codes = coded(pc.struct_field(best, "token"))
        self._tokens.add(tokens, np.bincount(codes, minlength=len(tokens)).tolist())
        self._drawn.add(batch.keys[filled], batch.file, batch.rows[filled])

    def merge(self, other: Words) -> None:
        """Take in another one's rows."""
        self._rows, self._without = self._rows + other._rows, self._without + other._without
        self._scores.merge(other._scores)
        self._tokens.merge(other._tokens)
        self._drawn.merge(other._drawn)

    def places(self) -> list[Place]:
        """Rows that are shown."""
        return self._drawn.places

    def facts(self, show: Show) -> dict[str, Any]:
        """As it stands in the report."""
        scores = self._scores.facts()
        return {
            "kind": self.kind,
            "rows": self._rows,
            "without": self._without,
            "masks": scores["count"] + scores["non_finite"],
            "scores": scores,
            "tokens": [{"text": token, "count": count} for token, count in self._tokens.ranked()[:LABELS]],
            "exact": self._tokens.least == 0,
            "examples": [show(place) for place in self._drawn.places],
        }


def _firsts(column: Any) -> tuple[Ints, Any]:
    """Of each list that is not empty: its position, and its first value."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    begins = np.cumsum(lengths) - lengths
    at = np.flatnonzero(lengths)
    return at, pc.list_flatten(column).take(pa.array(begins[at]))
