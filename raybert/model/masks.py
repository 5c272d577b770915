"""Attention masks of every shape, turned into one number that is added to the attention scores."""

# B rows, S positions (queries), K keys

from __future__ import annotations

import torch
from torch import Tensor

from raybert.errors import UsageError


def blocked_where_not(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may look at a key, else the lowest finite number.

    Finite, not minus infinity: a row that may look nowhere then looks everywhere evenly, as in the
    reference, where minus infinity would give NaN.
    """
    return torch.zeros((), dtype=dtype, device=keep.device).where(keep, torch.finfo(dtype).min)


def has_blind_query(bias: Tensor | None) -> bool:
    """Whether some query may look at no key at all."""
    return bias is not None and bool((bias.amax(dim=-1) <= torch.finfo(bias.dtype).min).any())


def self_attention_bias(mask: Tensor | None, *, heads: int, past: int, causal: bool, x_BSD: Tensor) -> Tensor | None:
    """What is added to self-attention's scores, broadcastable to [B, H, S, K] with K = past + S.

    Args:
        mask: None; [B, K] nonzero where a key is a real token (any pattern; cut to what lies before the query
            when ``causal``); [B, S, K] nonzero where a query may look at a key, used as given; or [B or 1, H
            or 1, S, K], as given too, where a floating dtype means numbers to add.
        heads: H.
        past: positions that a cache holds before these.
        causal: whether a query sees only keys at or before its own position.
        x_BSD: what enters the first layer.

    Raises:
        UsageError: the mask has another shape.
    """
    rows, positions, _ = x_BSD.shape
    keys, dtype, device = past + positions, x_BSD.dtype, x_BSD.device
    if mask is not None and mask.dim() != 2:
        return _as_given(mask.to(device), "attention_mask", (rows, heads, positions, keys), dtype)
    keep = None
    if causal and positions > 1:
        query_S1 = torch.arange(past, keys, device=device)[:, None]
        keep = (torch.arange(keys, device=device) <= query_S1)[None, None]
    if mask is not None:
        _check_shape(mask, "attention_mask", (rows, keys))
        real_B11K = (mask.to(device) != 0)[:, None, None, :]
        keep = real_B11K if keep is None else keep & real_B11K
    return None if keep is None else blocked_where_not(keep, dtype)


def cross_attention_bias(mask: Tensor | None, *, heads: int, memory_BMD: Tensor | None, x_BSD: Tensor) -> Tensor | None:
    """What is added to cross-attention's scores, never causal; the mask as in `self_attention_bias`.

    Raises:
        UsageError: the mask has another shape.
    """
    if mask is None or memory_BMD is None:
        return None
    rows, positions, _ = x_BSD.shape
    keys = memory_BMD.shape[1]
    mask, dtype = mask.to(x_BSD.device), x_BSD.dtype
    if mask.dim() != 2:
        return _as_given(mask, "encoder_attention_mask", (rows, heads, positions, keys), dtype)
    _check_shape(mask, "encoder_attention_mask", (rows, keys))
    return blocked_where_not((mask != 0)[:, None, None, :], dtype)


def _as_given(mask: Tensor, name: str, shape_BHSK: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A mask that already says what every query sees: [B, S, K], or with an axis of heads."""
    rows, heads, positions, keys = shape_BHSK
    if mask.dim() != 4:
        _check_shape(mask, name, (rows, positions, keys))
        return blocked_where_not((mask != 0)[:, None], dtype)
    if mask.shape[0] not in {1, rows} or mask.shape[1] not in {1, heads} or mask.shape[2:] != shape_BHSK[2:]:
        raise UsageError(f"{name}: shape {tuple(mask.shape)}; expected {shape_BHSK}")
    return mask.to(dtype) if mask.is_floating_point() else blocked_where_not(mask != 0, dtype)


def _check_shape(mask: Tensor, name: str, expected: tuple[int, ...]) -> None:
    if tuple(mask.shape) != expected:
        raise UsageError(f"{name}: shape {tuple(mask.shape)}; expected {expected}")
