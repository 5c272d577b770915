"""From a checkpoint to modules: what the engine calls."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.weights import find_weights
from raybert.errors import CheckpointError
from raybert.model.architecture import BertModel
from raybert.model.filling import LoadReport, build_filled
from raybert.model.initialise import Linear
from raybert.model.readers import WeightReader

__all__ = ["LoadReport", "load_linear", "load_trunk"]


def load_trunk(
    checkpoint: Checkpoint, *, pooler: bool = False, dtype: torch.dtype | None = None
) -> tuple[BertModel, LoadReport]:
    """Load embeddings and encoder of a checkpoint, whatever heads lie beside them, in eval mode.

    Args:
        checkpoint: an open checkpoint.
        pooler: whether the pooler is needed too; then a checkpoint without one is an error.
        dtype: of the parameters; None means float32, whatever the files'.

    Returns:
        The model, and where every name of the checkpoint went.

    Raises:
        CheckpointError: a weight is missing, unknown, misshapen, or can't be read.
    """
    return BertModel.from_checkpoint(checkpoint, pooler=pooler, dtype=dtype)


def load_linear(folder: Path, *, in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """Load the one linear layer of a folder, as sentence-transformers' Dense modules keep it, in float32.

    Args:
        folder: holds a weight file with ``linear.weight`` and, if there is one, ``linear.bias``.
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.

    Raises:
        CheckpointError: there is no weight file, or its names and shapes are not exactly these.
    """
    files = find_weights(folder)
    layers, report = build_filled(
        lambda: nn.ModuleDict({"linear": Linear(in_features, out_features, bias=bias)}),
        WeightReader(files),
        place=folder,
    )
    if report.unused_heads or report.buffers:
        raise CheckpointError(f"{files[0]}: holds parts of a BERT beside linear.weight; expected it alone")
    linear = layers["linear"]
    assert isinstance(linear, nn.Linear)
    return linear
