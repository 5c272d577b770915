"""From a checkpoint's modules after pooling to an `EmbedHead` with its weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from raybert.checkpoint.sentence import Dense
from raybert.checkpoint.sentence import Normalize as NormalizeEntry
from raybert.model.activations import activation
from raybert.model.heads import Activated, EmbedHead, Normalize, Truncate
from raybert.model.loading import load_linear


def build_embed_head(
    modes: Sequence[str],
    after: Sequence[Dense | NormalizeEntry],
    *,
    skip: int,
    normalize: bool,
    dimensions: int | None,
) -> EmbedHead:
    """Load the head.

    Args:
        modes: pooling modes, concatenated in this order.
        after: the checkpoint's modules behind pooling, in order.
        skip: leading tokens that pooling leaves out.
        normalize: whether vectors end at unit length; False drops a Normalize at the end.
        dimensions: numbers kept of each vector, scaled again where it is normalised.

    Raises:
        CheckpointError: a Dense module's weights are missing, misshapen or damaged.
    """
    modules: list[nn.Module] = []
    inner = list(after)
    while inner and isinstance(inner[-1], NormalizeEntry):
        inner.pop()
    for entry in inner:
        if isinstance(entry, NormalizeEntry):
            modules.append(Normalize())
            continue
        linear = load_linear(
            entry.folder, in_features=entry.in_features, out_features=entry.out_features, bias=entry.bias
        )
        modules.append(Activated(linear, activation(entry.activation)))
    if dimensions is not None:
        modules.append(Truncate(dimensions))
    if normalize:
        modules.append(Normalize())
    return EmbedHead(modes, modules, skip=skip)
