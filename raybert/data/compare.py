"""Answers of two computations side by side: how far apart they are, and whether that is rounding.

Both sides come in one form, a dict a row: what is a text, a number of a place or a token is an exact value; a score is
a ``float``, a vector an array, the scores of labels a dict by label, the weights of words a `Weights`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.tasks.classify import Classification
from raybert.tasks.embed_tokens import SparseVector

Form = dict[str, Any]
"""One row's values by column."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far rounding may lead.

    Attributes:
        score: greatest difference of two scores, as a share of the stored one where that is above 1.
        cosine: least cosine of two vectors.
        length: greatest difference of their lengths, as a share.
    """

    score: float
    cosine: float
    length: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(score=1e-5, cosine=0.999999, length=1e-4),
    "bfloat16": Tolerance(score=2e-2, cosine=0.9998, length=1e-2),
    "float16": Tolerance(score=2e-3, cosine=0.99999, length=1e-3),
}
"""By the dtype of the arithmetic.

With the run's own operators on its kind of CPU every difference was 0, whatever shared a batch with a row. With
other operators in bfloat16 the least cosine of 1,000 docstrings' vectors (MiniLM) was 0.99995. How far other hardware
may lead in 16 bits is told by the distance to float32: over 1,500 docstrings (MiniLM's vectors; scores of labels, tags
and words of tiny random models) at most 0.0067 in scores, 1 - 0.99984 in cosines and 0.0016 in lengths in bfloat16,
and 0.0007, 1 - 0.999997 and 0.0002 in float16 (300 of them). Two computations may both be that far off, each to its
side. Vectors that are stored as float16 are rounded on both sides, which moves a cosine by less than 1e-6.
"""

EXACT = Tolerance(score=0.0, cosine=1.0, length=0.0)
"""For what is carried and not computed."""


@dataclass(frozen=True)
class Weights:
    """Weights of words by their ids; a word that is not there weighs nothing."""

    by_id: Mapping[int, float]


class Comparison:
    """Compares values and remembers the worst of what it saw.

    Attributes:
        worst_cosine: of all vectors; None before the first.
        largest_difference: of all scores, measured as `Tolerance.score` is; None before the first.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.worst_cosine: float | None = None
        self.largest_difference: float | None = None

    def equal(self, stored: Any, computed: Any) -> bool:
        """Whether two values are the same, numbers within the tolerance."""
        if type(stored) is not type(computed):
            return False
        kinds: dict[type, Callable[[Any, Any], bool]] = {
            dict: self._dicts,
            float: self._scores,
            list: self._lists,
            np.ndarray: self._vectors,
            Weights: self._weights,
        }
        of_kind = kinds.get(type(stored))
        return bool(stored == computed) if of_kind is None else of_kind(stored, computed)

    def _dicts(self, stored: Mapping[str, Any], computed: Mapping[str, Any]) -> bool:
        if stored.keys() != computed.keys():
            return False
        found = [self.equal(value, computed[key]) for key, value in stored.items()]
        return all(found)  # one that differs does not end the search for the worst

    def _lists(self, stored: Sequence[Any], computed: Sequence[Any]) -> bool:
        if len(stored) != len(computed):
            return False
        found = [self.equal(*pair) for pair in zip(stored, computed, strict=True)]
        return all(found)

    def _scores(self, stored: float, computed: float) -> bool:
        if not (math.isfinite(stored) and math.isfinite(computed)):
            return stored == computed or (math.isnan(stored) and math.isnan(computed))
        difference = abs(stored - computed) / max(1.0, abs(stored))
        self.largest_difference = max(difference, self.largest_difference or 0.0)
        return difference <= self.tolerance.score

    def _weights(self, stored: Weights, computed: Weights) -> bool:
        one, other = stored.by_id, computed.by_id
        found = [self._scores(one.get(key, 0.0), other.get(key, 0.0)) for key in {*one, *other}]
        return all(found)

    def _vectors(self, stored: np.ndarray, computed: np.ndarray) -> bool:
        """One vector, or one a token."""
        if stored.shape != computed.shape:
            return False
        found = [cosine_and_ratio(*pair) for pair in zip(np.atleast_2d(stored), np.atleast_2d(computed), strict=True)]
        for cosine, _ in found:
            self.worst_cosine = min(cosine, 1.0 if self.worst_cosine is None else self.worst_cosine)
        # A cosine of a vector with itself may come out a rounding below 1.
        lowest, furthest = self.tolerance.cosine - 1e-12, self.tolerance.length + 1e-12
        return all(cosine >= lowest and abs(ratio - 1) <= furthest for cosine, ratio in found)


def innermost(tolerance: Tolerance, name: str, stored: Any, computed: Any) -> tuple[str, Any, Any]:
    """Where two values that differ do so first: ``people[2]['score']``, and what stands there on both sides."""
    if type(stored) is type(computed):
        for key, one, other in _members(stored, computed):
            if not Comparison(tolerance).equal(one, other):
                return innermost(tolerance, f"{name}[{key!r}]", one, other)
    return name, stored, computed


def _members(stored: Any, computed: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Members of both sides with their key; none where the sides have not the same keys."""
    if isinstance(stored, dict) and stored.keys() == computed.keys():
        yield from ((key, value, computed[key]) for key, value in stored.items())
    elif isinstance(stored, Weights):
        ids = sorted({*stored.by_id, *computed.by_id})
        yield from ((key, stored.by_id.get(key, 0.0), computed.by_id.get(key, 0.0)) for key in ids)
    elif (isinstance(stored, list) or np.ndim(stored) == 2) and len(stored) == len(computed):
        yield from ((at, *pair) for at, pair in enumerate(zip(stored, computed, strict=True)))


def shown(value: Any) -> str:
    """A value for a message of one line."""
    if isinstance(value, np.ndarray):
        if value.ndim == 2:
            return f"{len(value)} vectors"
        return f"a vector of length {np.linalg.norm(value.astype(np.float64)):.6g}"
    text = f"{value:.7g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def told(stored: Any, computed: Any) -> str:
    """A computed value for a message of one line, with the cosine to the stored one where they are vectors."""
    pair = (stored, computed)
    if all(isinstance(value, np.ndarray) and value.ndim == 1 for value in pair) and stored.shape == computed.shape:
        return f"{shown(computed)} (cosine {cosine_and_ratio(stored, computed)[0]:.7f})"
    return shown(computed)


def cosine_and_ratio(stored: np.ndarray, computed: np.ndarray) -> tuple[float, float]:
    """Cosine of two vectors, and the length of the second as a multiple of the first's.

    Equal vectors give 1 and 1, those of zeros and those with infinite numbers too; else the latter give 0.
    """
    if np.array_equal(stored, computed, equal_nan=True):
        return 1.0, 1.0
    one, other = stored.astype(np.float64), computed.astype(np.float64)
    lengths = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    if not all(np.isfinite(length) and length > 0 for length in lengths):
        return 0.0, 0.0
    return float(one @ other) / (lengths[0] * lengths[1]), lengths[1] / lengths[0]


def stored_forms(name: str, columns: Sequence[pa.Field], table: pa.Table, items: Sequence[Any]) -> list[Form]:
    """A head's columns as forms.

    Args:
        name: the head's.
        columns: its columns, as the part's schema has them.
        table: rows of parts.
        items: what the head read for these rows: of a choice, its labels.
    """
    by_name = {field.name: _values(table[field.name]) for field in columns}
    ids, weights, scores = f"{name}_ids", f"{name}_weights", f"{name}_scores"
    if ids in by_name:
        pairs = zip(by_name[ids], by_name[weights], strict=True)
        return [{name: Weights(dict(zip(*pair, strict=True)))} for pair in pairs]
    if scores in by_name:
        metadata = table.schema.field(scores).metadata or {}
        labels = json.loads(metadata[b"labels"]) if b"labels" in metadata else None  # else an item's own choices
        by_name[scores] = [
            _by_label(item[1] if labels is None else labels, of_row)
            for item, of_row in zip(items, by_name[scores], strict=True)
        ]
    return [dict(zip(by_name, row, strict=True)) for row in zip(*by_name.values(), strict=True)]


def answer_form(name: str, columns: Sequence[pa.Field], answer: Any, vector_type: str) -> Form:
    """A predictor's answer to one item in the form of its row; vectors rounded as they are stored."""
    names = [field.name for field in columns]
    if isinstance(answer, np.ndarray):
        return {name: answer.astype(vector_type, copy=False)}
    if isinstance(answer, SparseVector):
        return {name: Weights(dict(zip(answer.ids.tolist(), answer.weights.tolist(), strict=True)))}
    if isinstance(answer, Classification):
        if names == [name]:
            return {name: float(answer.score)}
        given = {"label": answer.label, "labels": answer.labels, "score": answer.score, "scores": answer.scores}
        return {each: given[each.removeprefix(f"{name}_")] for each in names}
    return {name: _plain(answer) if isinstance(answer, list) else float(answer)}


def first_difference(comparison: Comparison, stored: Form, computed: Form) -> str | None:
    """The first column of a row that differs; all are looked at, so that the worst is known."""
    differing = [column for column, value in stored.items() if not comparison.equal(value, computed.get(column))]
    return differing[0] if differing else None


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; those of vectors as arrays."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        return [_array(row.values, kind.list_size)[0] for row in column]
    if pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type):
        return [_array(row.values.flatten(), kind.value_type.list_size) for row in column]
    values: list[Any] = column.to_pylist()
    return values


def _array(numbers: pa.Array, width: int) -> np.ndarray:
    found: np.ndarray = numbers.to_numpy(zero_copy_only=False).reshape(-1, width)
    return found


def _by_label(labels: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Scores by label; of equal labels the higher score counts, as in a `Classification`."""
    found: dict[str, float] = {}
    for label, score in zip(labels, scores, strict=True):
        found[label] = max(score, found.get(label, score))
    return found


def _plain(value: Any) -> Any:
    """An answer as a column gives it back: dataclasses as dicts, without what is None."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if is_dataclass(value):
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: _plain(each) for name, each in given.items() if each is not None}
    return value.item() if isinstance(value, np.generic) else value
