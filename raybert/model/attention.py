"""Attention over packed tokens, behind one small interface.

`Layout` says where each sequence of a token batch lies. Two kernels read it:

- `grouped`: sequences of equal length lie together and form a dense [B, H, S, E] block without a mask; any
  device and dtype.
- `varlen`: CUDA in half precision, one call for the whole batch (`torch.nn.attention.varlen`).
"""

# T tokens, B sequences of one group, S their length, D width, H heads, E width of a head

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# On one Zen 4 core, 12 heads of 32, fp32: 32 positions cost 1.10 us a token by matrix products and 1.25 by
# scaled_dot_product_attention, 128 positions 4.4 and 3.4. In bf16 the products win at every length (2.3 against
# 4.1 us at 128), because the CPU kernel of scaled_dot_product_attention converts to fp32 and back.
_FUSED_FROM_POSITIONS = 48

# The CPU's softmax takes whole vectors of so many numbers and the rest of a row one by one, in bf16 at 5 to 7 ns a
# number against 1. Rows are filled up with -inf where the rest, weighed so, costs more than the copy: 28 positions
# in bf16 go from 2.5 to 0.9 us a token, 47 from 2.5 to 1.4, 8 in fp32 from 2.4 to 0.9.
_VECTORS = {torch.bfloat16: (32, 5), torch.float32: (16, 1)}  # numbers of a vector, weight of the rest


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
        blocks: the same in the pieces that `grouped` computes one by one.
        positions_T: each token's position in its sequence, int64, on the encoder's device.
        lengths: of each sequence, int64 [N], on the CPU.
        firsts: where each sequence begins, int64 [N], on the encoder's device.
        starts: int32 [N + 1] cumulative lengths on the encoder's device; None where no kernel reads it.
        longest: longest sequence.
    """

    groups: tuple[Group, ...]
    blocks: tuple[Group, ...]
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
    first_of_run = np.flatnonzero(np.r_[True, lengths[1:] != lengths[:-1]])
    counts = np.diff(np.r_[first_of_run, lengths.size])
    begins = (ends - lengths)[first_of_run]
    groups = tuple(
        Group(int(length), int(count), int(begin))
        for length, count, begin in zip(lengths[first_of_run], counts, begins, strict=True)
    )
    positions = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
    starts = None
    if device.type == "cuda":
        starts = torch.from_numpy(np.r_[0, ends].astype(np.int32)).to(device, non_blocking=True)
    blocks = groups if device.type == "cuda" else tuple(_by_powers_of_two(groups))
    return Layout(
        groups=groups,
        blocks=blocks,
        positions_T=torch.from_numpy(positions).to(device, non_blocking=True),
        lengths=torch.from_numpy(lengths),
        firsts=torch.from_numpy(ends - lengths).to(device, non_blocking=True),
        starts=starts,
        longest=int(lengths.max()),
    )


Attention = Callable[[Tensor, Layout], Tensor]
"""Fused queries, keys and values [T, 3 D] and the layout -> context [T, D]."""

FirstAttention = Callable[[Tensor, Tensor, Layout], Tensor]
"""Queries of each sequence's first token [N, D], fused keys and values [T, 2 D] and the layout -> context [N, D]."""


def grouped(n_heads: int) -> Attention:
    """Attention by groups of equal length: no mask, no padding."""

    def attend(qkv_TF: Tensor, layout: Layout) -> Tensor:
        width = qkv_TF.shape[1] // 3
        context_TD = qkv_TF.new_zeros((qkv_TF.shape[0], width))  # rows behind the last group stay 0
        for group in layout.blocks:
            shape = (group.count, group.length, 3, n_heads, width // n_heads)
            qkv = qkv_TF[group.tokens].view(shape).permute(2, 0, 3, 1, 4)
            context_BSHE = context_TD[group.tokens].view(group.count, group.length, n_heads, -1)
            context_BSHE.copy_(_attend_dense(*qkv).transpose(1, 2))
        return context_TD

    return attend


def grouped_first(n_heads: int) -> FirstAttention:
    """The same for the first token of each sequence alone."""

    def attend(q_ND: Tensor, kv_TF: Tensor, layout: Layout) -> Tensor:
        width = q_ND.shape[1]
        context_ND = q_ND.new_zeros(q_ND.shape)  # rows behind the last sequence stay 0
        first = 0
        for group in layout.blocks:
            rows = slice(first, first + group.count)
            first += group.count
            shape = (group.count, group.length, 2, n_heads, width // n_heads)
            k, v = kv_TF[group.tokens].view(shape).permute(2, 0, 3, 1, 4)
            q = q_ND[rows].view(group.count, 1, n_heads, -1).transpose(1, 2)
            context_ND[rows] = _attend_dense(q, k, v).reshape(group.count, width)
        return context_ND

    return attend


def _by_powers_of_two(groups: Iterable[Group]) -> Iterator[Group]:
    """The same groups in pieces of 2^k sequences: 13 become 8, 4 and 1.

    oneDNN compiles a kernel for every shape, 0.3 ms each; fresh texts bring fresh shapes all the time, unless the
    counts are few.
    """
    for group in groups:
        done = 0
        while done < group.count:
            count = 1 << ((group.count - done).bit_length() - 1)
            yield Group(group.length, count, group.begin + done * group.length)
            done += count


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, as `torch.softmax`, by whole vectors on a CPU."""
    positions = scores.shape[-1]
    lanes, weight = _VECTORS.get(scores.dtype, (1, 0))
    rest = positions % lanes
    if rest * weight < positions:
        return scores.softmax(-1)
    return F.pad(scores, (0, lanes - rest), value=-math.inf).softmax(-1)[..., :positions]


def _attend_dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of one group: queries [B, H, Q, E], keys and values [B, H, S, E] -> [B, H, Q, E]."""
    B, H, Q, E = q.shape
    S = k.shape[2]
    fused = q.device.type != "cpu" or (q.dtype == torch.float32 and S >= _FUSED_FROM_POSITIONS)
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.reshape(B * H, -1, E) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0.0, alpha=1.0 / math.sqrt(E))
    return torch.bmm(_softmax(scores), v).view(B, H, Q, E)


def varlen(n_heads: int) -> Attention:
    """Attention of a whole batch by one variable-length kernel (CUDA, half precision)."""
    # Absent from builds before 2.10 and meaningless on a CPU: imported where it is used.
    from torch.nn.attention.varlen import varlen_attn

    def attend(qkv_TF: Tensor, layout: Layout) -> Tensor:
        assert layout.starts is not None, "made for CUDA, where every layout has them"
        tokens, fused_width = qkv_TF.shape
        q, k, v = qkv_TF.view(tokens, 3, n_heads, fused_width // (3 * n_heads)).unbind(1)
        # Seven positional arguments: the keywords behind them differ between torch 2.10, 2.11 and 2.12.
        context = varlen_attn(q, k, v, layout.starts, layout.starts, layout.longest, layout.longest)
        assert isinstance(context, Tensor)
        return context.reshape(tokens, fused_width // 3)

    return attend


def varlen_first(n_heads: int) -> FirstAttention:
    """The same for the first token of each sequence alone."""
    from torch.nn.attention.varlen import varlen_attn

    def attend(q_ND: Tensor, kv_TF: Tensor, layout: Layout) -> Tensor:
        assert layout.starts is not None, "made for CUDA, where every layout has them"
        sequences, width = q_ND.shape
        k, v = kv_TF.view(kv_TF.shape[0], 2, n_heads, width // n_heads).unbind(1)
        q = q_ND.view(sequences, n_heads, width // n_heads)
        each = torch.arange(sequences + 1, dtype=torch.int32, device=q_ND.device)
        context = varlen_attn(q, k, v, each, layout.starts, 1, layout.longest)
        assert isinstance(context, Tensor)
        return context.reshape(sequences, width)

    return attend
