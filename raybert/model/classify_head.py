"""The classifier of texts over packed hidden states: first token, pooler, classifier, activation."""

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


class ClassifyHead(nn.Module):
    """Scores of texts, in fp32 whatever the trunk's dtype."""

    def __init__(self, config: BertConfig, activation: str) -> None:
        super().__init__()
        self.pooler = BertPooler(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.activation = ACTIVATIONS[activation]

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """Return scores [N, K], float32, in the layout's order."""
        first_ND = hidden_TD[layout.positions_T == 0].float()
        return self.activation(self.classifier(self.pooler(first_ND[:, None])))


def load_classify_head(checkpoint: Checkpoint, activation: str) -> ClassifyHead:
    """Load pooler and classifier of a checkpoint.

    Raises:
        CheckpointError: it lacks them, or they don't fit its config.
    """
    head, _ = build_filled(
        lambda: ClassifyHead(checkpoint.config, activation),
        WeightReader(checkpoint.weight_files),
        place=checkpoint.path,
        part=True,
    )
    return head
