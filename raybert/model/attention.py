"""Attention over packed tokens, behind one small interface.

`Layout` says where each sequence of a token batch lies. Three kernels read it:

- `Varlen`: CUDA in half precision, one call for the whole batch (`torch.nn.attention.varlen`).
- `Groups`: CUDA in full precision; sequences of equal length form a dense [B, H, S, E] without a mask.
- `raybert.model.blocks.Blocks`: a CPU.
"""

# T tokens, N sequences, B of one group, S their length, D width, H heads, E width of a head

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Group:
    """Sequences of one length that lie together: tokens ``[begin, begin + count * length)``."""

    length: int
    count: int
    begin: int

    @property
    def tokens(self) -> slice:
        """Where the group's tokens lie."""
        return slice(self.begin, self.begin + self.length * self.count)


@dataclass(frozen=True)
class Layout:
    """How sequences of a token batch follow one another.

    Attributes:
        groups: runs of equal length, in order.
        positions_T: each token's position in its sequence, int64, on the encoder's device.
        lengths: of each sequence, int64 [N], on the CPU.
        firsts: where each sequence begins, int64 [N], on the encoder's device.
        starts: int32 [N + 1] cumulative lengths on the encoder's device; None where no kernel reads it.
        longest: longest sequence.
    """

    groups: tuple[Group, ...]
    positions_T: Tensor
    lengths: Tensor
    firsts: Tensor
    starts: Tensor | None
    longest: int


def layout_of(lengths: np.ndarray, device: torch.device) -> Layout:
    """The layout of sequences with these ``lengths``, in the order given.

    Args:
        lengths: int [N], every one at least 1; equal lengths side by side make large groups.
        device: where the index tensors go.
    """
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    begins = ends - lengths
    runs = [0, *(np.flatnonzero(lengths[1:] != lengths[:-1]) + 1).tolist(), len(lengths)]
    groups = tuple(Group(int(lengths[first]), behind - first, int(begins[first])) for first, behind in pairwise(runs))
    positions = np.arange(int(ends[-1])) - np.repeat(begins, lengths)
    starts = None
    if device.type == "cuda":
        starts = torch.from_numpy(np.r_[0, ends].astype(np.int32)).to(device, non_blocking=True)
    return Layout(
        groups=groups,
        positions_T=torch.from_numpy(positions).to(device, non_blocking=True),
        lengths=torch.from_numpy(lengths),
        firsts=torch.from_numpy(begins).to(device, non_blocking=True),
        starts=starts,
        longest=int(lengths.max()),
    )


class Attention(Protocol[Plan]):
    """Attention over packed tokens."""

    def plan(self, layout: Layout, dtype: torch.dtype) -> Plan:
        """What all layers of a batch share, for arithmetic in ``dtype``."""
        ...

    def attend(self, qkv_TF: Tensor, plan: Plan) -> Tensor:
        """Fused queries, keys and values [T, 3 D] -> context [T, D]; rows behind the last sequence become 0."""
        ...

    def attend_first(self, q_ND: Tensor, kv_TF: Tensor, plan: Plan) -> Tensor:
        """Queries of each sequence's first token [N, D], keys and values [T, 2 D] of all -> context [N, D]."""
        ...


class Groups:
    """Attention by groups of equal length: no mask, no padding.

    Args:
        n_heads: H.
    """

    def __init__(self, n_heads: int) -> None:
        self._n_heads = n_heads

    def plan(self, layout: Layout, dtype: torch.dtype) -> Layout:
        """The layout itself."""
        return layout

    def attend(self, qkv_TF: Tensor, plan: Layout) -> Tensor:
        """As `Attention.attend`."""
        width = qkv_TF.shape[1] // 3
        context_TD = qkv_TF.new_zeros((qkv_TF.shape[0], width))  # rows behind the last group stay 0
        for group in plan.groups:
            q, k, v = _heads(qkv_TF, group, 3, self._n_heads)
            context_BSHE = context_TD[group.tokens].view(group.count, group.length, self._n_heads, -1)
            context_BSHE.copy_(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))
        return context_TD

    def attend_first(self, q_ND: Tensor, kv_TF: Tensor, plan: Layout) -> Tensor:
        """As `Attention.attend_first`."""
        context_ND = torch.empty_like(q_ND)
        first = 0
        for group in plan.groups:
            rows = slice(first, first + group.count)
            first += group.count
            k, v = _heads(kv_TF, group, 2, self._n_heads)
            q = q_ND[rows].view(group.count, self._n_heads, 1, -1)
            context_ND[rows] = F.scaled_dot_product_attention(q, k, v).reshape(group.count, -1)
        return context_ND


def _heads(rows_TF: Tensor, group: Group, parts: int, n_heads: int) -> tuple[Tensor, ...]:
    """The parts of a fused linear's rows, as [B, H, S, E] each."""
    return rows_TF[group.tokens].view(group.count, group.length, parts, n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


class Varlen:
    """Attention of a whole batch by one variable-length kernel (CUDA, half precision).

    Args:
        n_heads: H.
    """

    def __init__(self, n_heads: int) -> None:
        # Absent from builds before 2.10 and meaningless on a CPU: imported where it is used.
        from torch.nn.attention.varlen import varlen_attn

        self._n_heads, self._kernel = n_heads, varlen_attn

    def plan(self, layout: Layout, dtype: torch.dtype) -> Layout:
        """The layout itself."""
        return layout

    def attend(self, qkv_TF: Tensor, plan: Layout) -> Tensor:
        """As `Attention.attend`, but nothing may lie behind the last sequence."""
        tokens, fused_width = qkv_TF.shape
        q, k, v = qkv_TF.view(tokens, 3, self._n_heads, -1).unbind(1)
        context = self._attend(q, k, v, None, plan, plan.longest)
        return context.reshape(tokens, fused_width // 3)

    def attend_first(self, q_ND: Tensor, kv_TF: Tensor, plan: Layout) -> Tensor:
        """As `Attention.attend_first`."""
        sequences, width = q_ND.shape
        k, v = kv_TF.view(kv_TF.shape[0], 2, self._n_heads, -1).unbind(1)
        each = torch.arange(sequences + 1, dtype=torch.int32, device=q_ND.device)
        context = self._attend(q_ND.view(sequences, self._n_heads, -1), k, v, each, plan, 1)
        return context.reshape(sequences, width)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, plan: Layout, most: int) -> Tensor:
        """Where queries begin is told where keys don't begin there too."""
        assert plan.starts is not None, "made for CUDA, where every layout has them"
        # Seven positional arguments: the keywords behind them differ between torch 2.10, 2.11 and 2.12.
        context = self._kernel(q, k, v, plan.starts if starts is None else starts, plan.starts, most, plan.longest)
        assert isinstance(context, Tensor)
        return context
