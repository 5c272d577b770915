"""Classify: the label of a text or of a pair of texts, as transformers' text-classification pipeline gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.digest import head_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.names import HEADS, POOLER
from raybert.config import one_of
from raybert.errors import SettingsError
from raybert.tasks.arrays import Arrays, per_item
from raybert.tasks.base import Reduced, TextTask, named
from raybert.text.encoding import Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch

_ACTIVATIONS = ("auto", "softmax", "sigmoid", "none")


@dataclass(frozen=True)
class Classification:
    """The answer to one text.

    Attributes:
        label: of the highest score.
        score: its score.
        scores: label -> score, highest first; the best ``top_k``.
        labels: multi-label: all with a score of ``threshold`` or more, highest first. Else None.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: list[str] | None = None


class Classify(TextTask):
    """Text classification: single-label, multi-label and regression.

    Options:
        activation: softmax, sigmoid or none; auto takes none for a regression, sigmoid for multi-label or a
            lone label, else softmax, as the pipeline does.
        aggregation: with sliding windows: mean of their scores, weighted by tokens, or max.
        max_length: tokens of a window, special tokens included; None takes the checkpoint's.
        stride: with sliding windows: tokens that neighbours share; 0.
        threshold: multi-label: the lowest score of a label that is given; 0.5.
        top_k: how many scores an answer holds; None: all. Columns always hold all.
        truncation_side: which end of too long a text is left out: right or left; None takes the checkpoint's.
        windows: what happens to a longer text: truncate, or slide; of pairs, truncate.
    """

    name = "classify"
    version = 1
    takes = "either"
    reads = "first"
    one_row = True
    OPTIONS = ("activation", "aggregation", "max_length", "stride", "threshold", "top_k", "truncation_side", "windows")

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        config = checkpoint.config
        self.labels = config.labels
        self.is_multi_label = config.problem_type == "multi_label_classification"
        asked = one_of("classify: activation", named(options, "activation", "auto"), _ACTIVATIONS)
        self.activation = _activation(config) if asked == "auto" else asked
        top_k = options.get("top_k")
        self.top_k = None if top_k is None else self.whole_number("top_k", top_k, 1, len(self.labels))
        self.threshold = _threshold(options.get("threshold", 0.5))
        self.width = len(self.labels)

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options; ``top_k`` decides no column."""
        return {
            "activation": self.activation,
            "labels": list(self.labels),
            "threshold": self.threshold if self.is_multi_label else None,
        }

    def head_contents(self) -> list[str]:
        """Pooler and classifier."""
        return [head_digest(self.checkpoint, (*POOLER, *HEADS["classifier"]))]

    def module(self) -> nn.Module:
        """Pooler and classifier, loaded."""
        from raybert.model.first_head import ClassifierHead, load_head

        config = self.checkpoint.config
        return load_head(self.checkpoint, lambda: ClassifierHead(config, self.activation, config.num_labels))

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> scores [N, labels] float32."""
        return module(hidden_TD, batch.layout), None

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[Classification]:
        """An answer an item."""
        return [self._answer(scores) for scores in per_item(windows, arrays.values, self.aggregation)]

    def _answer(self, scores: np.ndarray) -> Classification:
        labels = self._over_threshold(scores) if self.is_multi_label else None
        return best_first(self.labels, scores, top_k=self.top_k, over=labels)

    def _over_threshold(self, scores: np.ndarray) -> list[str]:
        order = np.argsort(-scores, kind="stable")
        return [self.labels[place] for place in order if scores[place] >= self.threshold]

    @property
    def _is_number(self) -> bool:
        """Whether an answer is one number without a label: a regression's."""
        return self.activation == "none" and self.width == 1

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: float32`` for a lone number; else the label or labels, and all scores in the labels' order.

        The order of the labels stands in the metadata of the scores' field, as JSON under ``labels``.
        """
        import pyarrow as pa

        if self._is_number:
            return [pa.field(name, pa.float32())]
        label, score, scores = label_fields(name, self.labels)
        if self.is_multi_label:
            return [pa.field(f"{name}_labels", pa.list_(pa.string())), scores]
        return [label, score, scores]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The columns' values."""
        import pyarrow as pa

        scores_NK = per_item(windows, arrays.values, self.aggregation)
        if self._is_number:
            return [pa.array(scores_NK[:, 0], pa.float32())]
        if self.is_multi_label:
            found = [self._over_threshold(row) for row in scores_NK]
            return [pa.array(found, pa.list_(pa.string())), score_lists(scores_NK)]
        return labelled(self.labels, scores_NK)


def best_first(
    labels: Sequence[str], scores: np.ndarray, *, top_k: int | None = None, over: list[str] | None = None
) -> Classification:
    """The answer of these labels' scores; of equal scores the first label goes before."""
    order = np.argsort(-scores, kind="stable")
    best: dict[str, float] = {}
    for place in order[:top_k]:
        best.setdefault(labels[place], float(scores[place]))  # of equal names the higher score counts
    return Classification(labels[order[0]], float(scores[order[0]]), best, over)


def score_lists(scores_NK: np.ndarray) -> pa.Array:
    """Scores [N, K] as a column of lists."""
    import pyarrow as pa

    offsets = pa.array(np.arange(len(scores_NK) + 1, dtype=np.int32) * scores_NK.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(scores_NK.reshape(-1), pa.float32()))


def labelled(labels: Sequence[str], scores_NK: np.ndarray) -> list[pa.Array]:
    """The columns of one label a row: the best one, its score, all scores."""
    import pyarrow as pa

    best = scores_NK.argmax(1)
    names = pa.array(labels, pa.string()).take(pa.array(best, pa.int64()))
    score = pa.array(scores_NK[np.arange(len(scores_NK)), best], pa.float32())
    return [names, score, score_lists(scores_NK)]


def label_fields(name: str, labels: Sequence[str] | None) -> list[pa.Field]:
    """The fields of `labelled`; the labels' order stands in the scores' metadata, as JSON under ``labels``."""
    import pyarrow as pa

    metadata = None if labels is None else {"labels": json.dumps(list(labels))}
    return [
        pa.field(f"{name}_label", pa.string()),
        pa.field(f"{name}_score", pa.float32()),
        pa.field(f"{name}_scores", pa.list_(pa.float32()), metadata=metadata),
    ]


def _activation(config: BertConfig) -> str:
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _threshold(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SettingsError(f"classify: threshold {value!r}: takes a number from 0 to 1")
    return float(value)
