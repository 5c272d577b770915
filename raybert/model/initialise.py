"""Fresh weights as BERT draws them, and layers that draw nothing before they are asked to.

torch's own layers draw weights when they are made. A model that is loaded throws those away, and on the meta
device, where loading builds it, drawing them imports torch's compiler: 1.2 s and 100 MB for nothing.
"""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Linear):
    """A linear layer with memory, but no numbers yet."""

    def reset_parameters(self) -> None:
        """Leave the numbers to `initialise` or to loading."""


class Embedding(nn.Embedding):
    """An embedding table with memory, but no numbers yet."""

    def reset_parameters(self) -> None:
        """Leave the numbers to `initialise` or to loading."""


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Draw matrices from N(0, std²) and zero biases and padding rows; LayerNorms begin as the identity.

    Numbers come from torch's global generator: seed it to repeat them. On the meta device nothing is drawn.
    """
    for part in module.modules():
        if not isinstance(part, (nn.Linear, nn.Embedding)) or part.weight.is_meta:
            continue
        part.weight.normal_(std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            part.bias.zero_()
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx].zero_()
