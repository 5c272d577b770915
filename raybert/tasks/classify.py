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
from raybert.tasks.base import TextTask
from raybert.text.encoding import Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.attention import Layout

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
        max_length: tokens a text is cut to, special tokens included; None takes the checkpoint's.
        threshold: multi-label: the lowest score of a label that is given; 0.5.
        top_k: how many scores an answer holds; None: all. Columns always hold all.
        windows: "truncate", what happens to a longer text.
    """

    name = "classify"
    version = 1
    takes_pairs = True
    OPTIONS = ("activation", "max_length", "threshold", "top_k", "windows")

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        config = checkpoint.config
        self.labels = config.labels
        self.is_multi_label = config.problem_type == "multi_label_classification"
        asked = one_of("classify: activation", str(options.get("activation") or "auto"), _ACTIVATIONS)
        self.activation = _activation(config) if asked == "auto" else asked
        top_k = options.get("top_k")
        self.top_k = None if top_k is None else self.whole_number("top_k", top_k, 1, len(self.labels))
        self.threshold = _threshold(options.get("threshold", 0.5))
        self.width = len(self.labels)

    @property
    def options(self) -> dict[str, Any]:
        """Every option that decides a column, resolved; ``top_k`` decides none."""
        return {
            "activation": self.activation,
            "labels": list(self.labels),
            "lower_case": self.lower_case,
            "max_length": self.max_length,
            "threshold": self.threshold if self.is_multi_label else None,
            "windows": self.windows,
        }

    def head_contents(self) -> list[str]:
        """Pooler and classifier."""
        return [head_digest(self.checkpoint, (*POOLER, *HEADS["classifier"]))]

    def encode(self, items: Sequence[Any]) -> Windows:
        """One window a text or pair."""
        if any(isinstance(item, tuple | list) for item in items):
            return self._tokenizer.encode_pairs(items)
        return self._tokenizer.encode(items)

    def module(self) -> nn.Module:
        """Pooler and classifier, loaded."""
        from raybert.model.classify_head import load_classify_head

        return load_classify_head(self.checkpoint, self.activation)

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, layout: Layout) -> torch.Tensor:
        """Hidden states -> scores [N, labels] float32."""
        scores: torch.Tensor = module(hidden_TD, layout)
        return scores

    def decode(self, windows: Windows, arrays: np.ndarray) -> list[Classification]:
        """An answer a text; a text has one window."""
        assert windows.n_windows == len(arrays)
        return [self._answer(scores) for scores in arrays]

    def _answer(self, scores: np.ndarray) -> Classification:
        order = np.argsort(-scores, kind="stable")  # of equal scores the first label goes before
        best: dict[str, float] = {}
        for place in order[: self.top_k]:
            best.setdefault(self.labels[place], float(scores[place]))  # of equal names the higher score counts
        return Classification(self.labels[order[0]], float(scores[order[0]]), best, self._over_threshold(scores))

    def _over_threshold(self, scores: np.ndarray) -> list[str] | None:
        if not self.is_multi_label:
            return None
        order = np.argsort(-scores, kind="stable")
        return [self.labels[place] for place in order if scores[place] >= self.threshold]

    def join(self, pieces: Sequence[list[Classification]]) -> list[Classification]:
        """Answers of several calls, one after the other."""
        return [answer for piece in pieces for answer in piece]

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
        labels = {"labels": json.dumps(list(self.labels))}
        scores = pa.field(f"{name}_scores", pa.list_(pa.float32()), metadata=labels)
        if self.is_multi_label:
            return [pa.field(f"{name}_labels", pa.list_(pa.string())), scores]
        return [pa.field(f"{name}_label", pa.string()), pa.field(f"{name}_score", pa.float32()), scores]

    def arrow(self, windows: Windows, arrays: np.ndarray, vector_type: str) -> list[pa.Array]:
        """The columns' values."""
        import pyarrow as pa

        rows = len(arrays)
        if self._is_number:
            return [pa.array(arrays[:, 0], pa.float32())]
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * self.width)
        scores = pa.ListArray.from_arrays(offsets, pa.array(arrays.reshape(-1), pa.float32()))
        if self.is_multi_label:
            found = [self._over_threshold(row) for row in arrays]
            return [pa.array(found, pa.list_(pa.string())), scores]
        best = arrays.argmax(1)
        labels = pa.array(self.labels, pa.string()).take(pa.array(best, pa.int64()))
        return [labels, pa.array(arrays[np.arange(rows), best], pa.float32()), scores]


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
