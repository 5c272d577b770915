"""From a checkpoint to modules: what the engine calls."""

from __future__ import annotations

from pathlib import Path

import torch
from raybert.checkpoint.folder import Checkpoint
from torch import nn

from raybert.errors import CheckpointError
from raybert.model.architecture import BertModel
from raybert.model.filling import LoadReport, build_filled
from raybert.model.initialise import Linear
from raybert.model.readers import WeightReader

__all__ = ["LoadReport", "load_linear", "load_trunk"]

_LINEAR_FILES = ("model.safetensors", "pytorch_model.bin")


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


def load_linear(
    folder: Path, *, in_features: int, out_features: int, bias: bool, prefix: str = "linear."
) -> nn.Linear:
    """Load the one linear layer of a folder, as sentence-transformers' Dense modules keep it, in float32.

    Args:
        folder: holds ``model.safetensors`` or ``pytorch_model.bin`` with ``weight`` and maybe ``bias``.
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.
        prefix: what comes before ``weight`` and ``bias`` in the file.

    Raises:
        CheckpointError: no such file, or its names and shapes are not exactly these.
    """
    files = [folder / name for name in _LINEAR_FILES if (folder / name).is_file()]
    if not files:
        raise CheckpointError(f"{folder}: holds no weights; expected {' or '.join(_LINEAR_FILES)}")
    root = prefix.removesuffix(".")
    layers, report = build_filled(
        lambda: nn.ModuleDict({root: Linear(in_features, out_features, bias=bias)}),
        WeightReader(files[:1]),
        place=folder,
    )
    if report.unused_heads:
        raise CheckpointError(f"{files[0]}: holds {sorted(report.unused_heads)} beside {root!r}; expected it alone")
    linear = layers[root]
    assert isinstance(linear, nn.Linear)
    return linear
