"""Rerank: how well a document answers a query, as sentence-transformers' CrossEncoder scores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.digest import head_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.names import HEADS, POOLER
from raybert.config import one_of
from raybert.errors import CheckpointError, SettingsError
from raybert.tasks.arrays import Arrays
from raybert.tasks.base import Reduced, TextTask, named
from raybert.text.encoding import Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch

_ACTIVATIONS = ("auto", "sigmoid", "none")
_CLASSES = {"Sigmoid": "sigmoid", "Identity": "none"}


@dataclass(frozen=True)
class Ranked:
    """One document of a query.

    Attributes:
        index: its place in the list that was given, from 0.
        score: the higher, the better it answers.
    """

    index: int
    score: float


class Rerank(TextTask):
    """A score for a pair of query and document, by a cross-encoder with one label.

    Options:
        activation: sigmoid or none; auto takes what the checkpoint names, else sigmoid.
        max_length: tokens of query and document together, special tokens included; the longer one gives way first.
        truncation_side: which end of too long a text is left out: right or left; None takes the checkpoint's.
        windows: "truncate".
    """

    name = "rerank"
    version = 1
    takes = "pair"
    reads = "first"
    one_row = True
    width = 1
    WINDOWS = ("truncate",)
    OPTIONS = ("activation", "max_length", "truncation_side", "windows")

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        asked = one_of("rerank: activation", named(options, "activation", "auto"), _ACTIVATIONS)
        self.activation = _named_activation(checkpoint) if asked == "auto" else asked

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options."""
        return {"activation": self.activation}

    def head_contents(self) -> list[str]:
        """Pooler and classifier.

        Raises:
            CheckpointError: it has none.
            SettingsError: it has several labels.
        """
        digest = head_digest(self.checkpoint, (*POOLER, *HEADS["classifier"]))
        labels = self.checkpoint.config.num_labels
        if labels != 1:  # told behind the lack of a classifier, of which this number says nothing
            raise SettingsError(
                f"rerank: {self.checkpoint.path}: its classifier has {labels} labels, a reranker's has one; "
                "use the task classify"
            )
        return [digest]

    def module(self) -> nn.Module:
        """Pooler and classifier, loaded."""
        from raybert.model.first_head import ClassifierHead, load_head

        return load_head(self.checkpoint, lambda: ClassifierHead(self.checkpoint.config, self.activation, 1))

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> scores [N, 1] float32."""
        return module(hidden_TD, batch.layout), None

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> np.ndarray:
        """Scores [N] float32, of pairs in their order; `rank` makes a query's answer of them."""
        return arrays.values[:, 0]

    def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Scores of several calls, one after the other."""
        return np.concatenate([np.empty(0, np.float32), *pieces])

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: float32``."""
        import pyarrow as pa

        return [pa.field(name, pa.float32())]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The column of scores."""
        import pyarrow as pa

        return [pa.array(np.ascontiguousarray(arrays.values[:, 0]))]


def rank(scores: np.ndarray) -> list[Ranked]:
    """Documents of one query, best first; of equal scores the first document goes before."""
    return [Ranked(int(index), float(scores[index])) for index in np.argsort(-scores, kind="stable")]


def _named_activation(checkpoint: Checkpoint) -> str:
    """What the checkpoint says to do with the logit, in the words of sentence-transformers 4 and later, or before."""
    extra: BertConfig = checkpoint.config
    settings = extra.extra.get("sentence_transformers")
    named = settings.get("activation_fn") if isinstance(settings, Mapping) else None
    named = named or extra.extra.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid"
    place, _, kind = str(named).rpartition(".")
    if not place.startswith("torch.nn") or kind not in _CLASSES:
        raise CheckpointError(
            f"{checkpoint.path}: activation {named!r} of the reranker can't be honoured; pass activation='sigmoid' "
            "or 'none'"
        )
    return _CLASSES[kind]
