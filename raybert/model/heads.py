"""Heads over packed hidden states: hidden_TD and the layout -> one small array per sequence."""

# T tokens, B sequences of one group, S their length, N sequences, D width of the trunk, V width of the vector

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybert.model.activations import Activation
from raybert.model.attention import Group, Layout


def _tokens(x_BSD: Tensor, skip: int) -> Tensor:
    return x_BSD[:, skip:]


def _cls(x_BSD: Tensor, skip: int) -> Tensor:
    # With the prompt left out the first token that remains is taken, as sentence-transformers does.
    return x_BSD[:, skip]


def _mean(x_BSD: Tensor, skip: int) -> Tensor:
    return _tokens(x_BSD, skip).mean(1)


def _max(x_BSD: Tensor, skip: int) -> Tensor:
    return _tokens(x_BSD, skip).amax(1)


def _mean_sqrt_len(x_BSD: Tensor, skip: int) -> Tensor:
    kept_BSD = _tokens(x_BSD, skip)
    return kept_BSD.sum(1) / math.sqrt(kept_BSD.shape[1])


def _weighted_mean(x_BSD: Tensor, skip: int) -> Tensor:
    """Weights are positions counted from 1 at the sequence's first token, prompt included."""
    weights_S = torch.arange(skip + 1, x_BSD.shape[1] + 1, device=x_BSD.device, dtype=x_BSD.dtype)
    return torch.einsum("bsd,s->bd", _tokens(x_BSD, skip), weights_S / weights_S.sum())


def _last_token(x_BSD: Tensor, skip: int) -> Tensor:
    return x_BSD[:, -1]


POOLINGS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "cls": _cls,
    "mean": _mean,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last_token,
}
"""Pooling modes under sentence-transformers' names: ([B, S, D] fp32, tokens to leave out) -> [B, D]."""


class Normalize(nn.Module):
    """Scale to unit length; a zero vector stays zero."""

    def forward(self, x_NV: Tensor) -> Tensor:
        """[N, V] -> [N, V]."""
        return F.normalize(x_NV, dim=-1)


class Activated(nn.Module):
    """A linear layer and what follows it: sentence-transformers' Dense."""

    def __init__(self, linear: nn.Linear, function: Activation) -> None:
        super().__init__()
        self.linear, self.function = linear, function

    def forward(self, x_NV: Tensor) -> Tensor:
        """[N, V] -> [N, out_features]."""
        return self.function(self.linear(x_NV))


class Truncate(nn.Module):
    """Keep the first ``dimensions`` of each vector (Matryoshka embeddings, Kusupati et al. 2022)."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x_NV: Tensor) -> Tensor:
        """[N, V] -> [N, dimensions]."""
        return x_NV[:, : self.dimensions]


class EmbedHead(nn.Module):
    """Pooling, then what follows it (Dense, Normalize, Truncate), in fp32 whatever the trunk's dtype.

    Half precision loses the vectors' last bits in the sum over tokens and turns long norms into infinity.
    """

    def __init__(self, modes: Sequence[str], after: Sequence[nn.Module], *, skip: int = 0) -> None:
        """Make the head.

        Args:
            modes: keys of `POOLINGS`; several are concatenated in this order.
            after: modules on [N, V], in order.
            skip: leading tokens (special token and prompt) that pooling leaves out.
        """
        super().__init__()
        self.poolings = [POOLINGS[mode] for mode in modes]
        self.after = nn.Sequential(*after)
        self.skip = skip

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """Return vectors [N, V], float32, in the layout's order."""
        pooled_ND = _side_by_side([self._pool(hidden_TD, group) for group in layout.groups], 0)
        vectors_NV: Tensor = self.after(pooled_ND)
        return vectors_NV

    def _pool(self, hidden_TD: Tensor, group: Group) -> Tensor:
        x_BSD = hidden_TD[group.tokens].view(group.count, group.length, -1).float()
        # A sequence cut shorter than its prompt still has its last token to stand for it.
        skip = min(self.skip, group.length - 1)
        return _side_by_side([pool(x_BSD, skip) for pool in self.poolings], -1)


def _side_by_side(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)
