"""Heads on each sequence's first token over packed hidden states: pooler, linear layer, activation."""

# T tokens, N sequences, D width, K labels

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.folder import Checkpoint
from raybert.model.attention import Layout
from raybert.model.encoder import BertPooler
from raybert.model.filling import build_filled
from raybert.model.initialise import Linear
from raybert.model.readers import WeightReader

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_NK: logits_NK.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits_NK: logits_NK,
}
"""What makes scores of logits."""


class FirstTokenHead(nn.Module):
    """Scores of sequences, in fp32 whatever the trunk's dtype."""

    def __init__(self, config: BertConfig, activation: str) -> None:
        super().__init__()
        self.pooler = BertPooler(config)
        self.activation = ACTIVATIONS[activation]

    def linear(self) -> nn.Module:
        """The layer behind the pooler."""
        raise AssertionError("each head has its own")

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """Return scores [N, K], float32, in the layout's order."""
        first_ND = hidden_TD[layout.firsts].float()
        return self.activation(self.linear()(self.pooler(first_ND[:, None])))


class ClassifierHead(FirstTokenHead):
    """The classifier of texts, pairs and choices."""

    def __init__(self, config: BertConfig, activation: str, labels: int) -> None:
        super().__init__(config, activation)
        self.classifier = Linear(config.hidden_size, labels)

    def linear(self) -> nn.Module:
        """The classifier."""
        return self.classifier


class NextSentenceHead(FirstTokenHead):
    """Whether one text goes on in another: the second objective of pretraining."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, "softmax")
        self.cls = nn.ModuleDict({"seq_relationship": Linear(config.hidden_size, 2)})

    def linear(self) -> nn.Module:
        """The layer of two classes."""
        return self.cls["seq_relationship"]


def load_head(checkpoint: Checkpoint, build: Callable[[], nn.Module]) -> nn.Module:
    """Load the head that ``build`` makes from a checkpoint, its trunk passed by.

    Raises:
        CheckpointError: it lacks the head, or the head doesn't fit its config.
    """
    head, _ = build_filled(build, WeightReader(checkpoint.weight_files), place=checkpoint.path, part=True)
    return head
