"""Attention on a CPU: sequences of nearly one length side by side, two matrix products a block.

    q, k, v of a block's tokens ── a copy ──> softmax(q k^T + bias) v ── a copy ──> context of all blocks' tokens

Keys are filled up to whole vectors, which the bias takes out again: the softmax costs 5 to 7 ns for each number behind
the last whole vector in bf16 and 1 ns for others, and oneDNN compiles a kernel for every shape, 0.3 ms each, so that
few shapes are worth some idle numbers. Few calls matter beside that: each of them takes Python's lock again, for which
the streams of a service wait.
"""

# T tokens, N sequences of a batch, C of a block, H heads, E width of a head, Q queries and S keys of a block

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raybert.model.attention import Layout

_VECTOR = 64  # bytes
_QUERIES = 8  # the number of queries is a multiple of it
# Bytes of a block's scores: what a core's second cache holds (1 MB on Zen 4 and 5, 2 MB on Xeons).
_SCORES = 1 << 20
# On one Zen 4 core, 12 heads of 32, fp32: a sequence of 128 positions costs 3.7 us a token by products and 4.8 by
# scaled_dot_product_attention, one of 256 costs 5.7 and 5.5. In bf16 the products win at every length, because the
# CPU kernel of scaled_dot_product_attention converts to fp32 and back.
_FUSED_FROM = 160


@dataclass(frozen=True)
class Block:
    """Sequences that are computed at once.

    Attributes:
        count: sequences, C.
        queries: rows of queries that each gets, Q.
        keys: rows of keys and of values that each gets, S.
        taken: tokens that the rows of keys are, int64 [C S]; a slice where it is one sequence that
            scaled_dot_product_attention computes.
        bias: [C H, 1, S] that takes out those which are filled up; None where none is.
    """

    count: int
    queries: int
    keys: int
    taken: Tensor | slice
    bias: Tensor | None


@dataclass(frozen=True)
class BlockPlan:
    """How the sequences of a batch are computed.

    Attributes:
        blocks: each sequence is in one.
        order: the sequences, block by block, int64 [N].
        back: where in the blocks' rows of queries each token is, int64 [T].
    """

    blocks: tuple[Block, ...]
    order: Tensor
    back: Tensor


def _pieces(lengths: np.ndarray, n_heads: int, dtype: torch.dtype) -> Iterator[tuple[np.ndarray, int, int, bool]]:
    """The sequences of each block, the shortest first, its queries and keys, and whether it is fused."""
    order = np.argsort(lengths, kind="stable")
    begin = 0
    for (S, is_fused), alike in groupby(_keys(length, dtype) for length in lengths[order].tolist()):
        left = len(list(alike))
        most = 1 if is_fused else max(1, _SCORES // (n_heads * S * S * dtype.itemsize))
        while left:
            # 2^k of them: 13 become 8, 4 and 1, so that there are few shapes.
            count = 1 << min(most, left).bit_length() - 1
            piece = order[begin : begin + count]
            begin, left = begin + count, left - count
            longest = int(lengths[piece[-1]])
            yield piece, longest if is_fused else -(-longest // _QUERIES) * _QUERIES, S, is_fused


def _keys(length: int, dtype: torch.dtype) -> tuple[int, bool]:
    """Rows of keys for a sequence, and whether it is fused."""
    if dtype == torch.float32 and length >= _FUSED_FROM:
        return length, True
    if dtype == torch.bfloat16 and length <= 16:  # the copies would cost more than the softmax
        return 8 if length <= 8 else 16, False
    lanes = _VECTOR // dtype.itemsize
    return -(-length // lanes) * lanes, False


def plan_blocks(layout: Layout, n_heads: int, dtype: torch.dtype) -> BlockPlan:
    """The blocks of a batch.

    Args:
        layout: of the batch.
        n_heads: of the attention.
        dtype: of its arithmetic.
    """
    lengths, begins = layout.lengths.numpy(), layout.firsts.numpy()
    first_rows = np.empty_like(lengths)
    blocks, order = [], []
    row = 0
    for piece, Q, S, fused in _pieces(lengths, n_heads, dtype):
        C = len(piece)
        first_rows[piece] = np.arange(row, row + C * Q, Q)
        row += C * Q
        order.append(piece)
        if fused:
            begin = int(begins[piece[0]])
            blocks.append(Block(C, Q, S, slice(begin, begin + S), None))
            continue
        positions, own = np.arange(S), lengths[piece, None]
        taken = begins[piece, None] + np.minimum(positions, own - 1)
        bias = None
        if own[0, 0] < S:  # the shortest
            bias_CS = torch.from_numpy(np.where(positions < own, np.float32(0.0), np.float32(-math.inf))).to(dtype)
            bias = bias_CS[:, None, None].expand(C, n_heads, 1, S).reshape(C * n_heads, 1, S)
        blocks.append(Block(C, Q, S, torch.from_numpy(taken.ravel()), bias))
    back = np.repeat(first_rows, lengths) + layout.positions_T.numpy()
    return BlockPlan(tuple(blocks), torch.from_numpy(np.concatenate(order)), torch.from_numpy(back))


class Blocks:
    """Attention of a batch by a `BlockPlan`.

    Args:
        n_heads: H.
    """

    def __init__(self, n_heads: int) -> None:
        self._n_heads = n_heads

    def plan(self, layout: Layout, dtype: torch.dtype) -> BlockPlan:
        """As `raybert.model.attention.Attention.plan`."""
        return plan_blocks(layout, self._n_heads, dtype)

    def attend(self, qkv_TF: Tensor, plan: BlockPlan) -> Tensor:
        """As `raybert.model.attention.Attention.attend`."""
        H, width = self._n_heads, qkv_TF.shape[1] // 3
        rows = qkv_TF.new_empty((sum(block.count * block.queries for block in plan.blocks), width))
        begin = 0
        for block in plan.blocks:
            q, k, v = _heads(qkv_TF, block, 3, H)
            context = _attend(q[..., : block.queries, :], k, v, block)
            end = begin + block.count * block.queries
            rows[begin:end].view(block.count, block.queries, H, -1).copy_(context.transpose(1, 2))
            begin = end
        context_TD = qkv_TF.new_empty((qkv_TF.shape[0], width))
        tokens = len(plan.back)
        torch.index_select(rows, 0, plan.back, out=context_TD[:tokens])
        context_TD[tokens:].zero_()
        return context_TD

    def attend_first(self, q_ND: Tensor, kv_TF: Tensor, plan: BlockPlan) -> Tensor:
        """As `raybert.model.attention.Attention.attend_first`."""
        H = self._n_heads
        found = []
        counts = [block.count for block in plan.blocks]
        for block, q in zip(plan.blocks, torch.split(q_ND[plan.order], counts), strict=True):
            k, v = _heads(kv_TF, block, 2, H)
            found.append(_attend(q.view(block.count, H, 1, -1), k, v, block).reshape(block.count, -1))
        context_ND = torch.empty_like(q_ND)
        context_ND[plan.order] = torch.cat(found)
        return context_ND


def _heads(rows_TF: Tensor, block: Block, parts: int, n_heads: int) -> tuple[Tensor, ...]:
    """The parts of a fused linear's rows, as [C, H, S, E] each."""
    shape = (block.count, block.keys, parts, n_heads, -1)
    if isinstance(block.taken, slice):
        return rows_TF[block.taken].view(shape).permute(2, 0, 3, 1, 4).unbind(0)
    return rows_TF.index_select(0, block.taken).view(shape).permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def _attend(q: Tensor, k: Tensor, v: Tensor, block: Block) -> Tensor:
    """Softmax attention of a block: queries [C, H, Q, E], keys and values [C, H, S, E] -> like the queries."""
    if isinstance(block.taken, slice):
        return F.scaled_dot_product_attention(q, k, v)
    C, H, Q, E = q.shape
    q, k, v = (x.reshape(C * H, -1, E) for x in (q, k, v))
    added, beta = (q.new_empty(()), 0.0) if block.bias is None else (block.bias, 1.0)
    scores = torch.baddbmm(added, q, k.transpose(1, 2), beta=beta, alpha=1.0 / math.sqrt(E))
    return torch.bmm(scores.softmax(-1), v).view(C, H, Q, E)
