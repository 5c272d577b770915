"""Checks of a forward's arguments, made before the arithmetic: one clear line instead of a kernel's fault.

An id beyond a table is an index error on a CPU and an abort of the whole process's CUDA context on a GPU.
"""

# B rows, S positions, M positions of an encoder, D width, H heads, L layers

from __future__ import annotations

import torch
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.cache import KeyValueCache

_ID_DTYPES = (torch.int64, torch.int32)


def check_inputs(
    config: BertConfig,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    *,
    cache: KeyValueCache | None = None,
) -> None:
    """Refuse ids out of range, more positions than there are embeddings for, and shapes that don't fit.

    Raises:
        UsageError: one of these, or both or neither of ``input_ids`` and ``inputs_embeds``; or other rows than
            the cache has.
    """
    if (input_ids is None) == (inputs_embeds is None):
        how_many = "neither" if input_ids is None else "both"
        raise UsageError(f"input_ids and inputs_embeds: {how_many} given; pass exactly one")
    if input_ids is not None:
        shape = tuple(input_ids.shape)
        if len(shape) != 2 or not shape[1]:
            raise UsageError(f"input_ids: shape {shape}; expected (rows, at least 1 position)")
        _check_ids(input_ids, "input_ids", config.vocab_size)
    else:
        assert inputs_embeds is not None
        _check_states(inputs_embeds, "inputs_embeds", config.hidden_size)
        shape = tuple(inputs_embeds.shape[:2])
    past = 0 if cache is None else cache.get_seq_length()
    if past and cache is not None and cache.rows != shape[0]:
        raise UsageError(f"past_key_values: made with {cache.rows} rows; the inputs have {shape[0]}")
    if position_ids is None or config.position_embedding_type != "absolute":
        _check_positions(config, shape[1], past)
    _check_aligned(token_type_ids, "token_type_ids", shape, config.type_vocab_size)
    _check_aligned(position_ids, "position_ids", shape, config.max_position_embeddings)


def check_cache(
    config: BertConfig,
    cache: KeyValueCache | None,
    memory_BMD: Tensor | None,
    cache_position: Tensor | None,
) -> int:
    """How many positions the cache holds, 0 without one; refuse a cache that can't be continued.

    Raises:
        UsageError: an encoder is given a cache; or a decoder a cache that was made beside an encoder, but not
            the encoder; or ``cache_position`` doesn't start where the cache ends.
    """
    if cache is not None:
        if not isinstance(cache, KeyValueCache):
            raise TypeError(f"past_key_values: expected a KeyValueCache, not {type(cache).__name__}")
        if not config.is_decoder:
            raise UsageError("past_key_values: this model is an encoder; only is_decoder=True has a cache")
        if cache.has_memory and memory_BMD is None:
            raise UsageError("encoder_hidden_states: missing, but past_key_values was made with them; pass them again")
    past = cache.get_seq_length() if cache is not None else 0
    if cache_position is not None:
        expected = torch.arange(past, past + cache_position.numel(), device=cache_position.device)
        if cache_position.dim() != 1 or not torch.equal(cache_position, expected):
            raise UsageError(f"cache_position: must count on from the cache, which holds {past} positions")
    return past


def check_memory(config: BertConfig, memory_BMD: Tensor | None, *, rows: int) -> Tensor | None:
    """``encoder_hidden_states`` as they came.

    Raises:
        UsageError: the model has no cross-attention, or their shape doesn't fit.
    """
    if memory_BMD is None:
        return None
    if not config.add_cross_attention:
        raise UsageError(
            "encoder_hidden_states: this model has no cross-attention; set is_decoder and add_cross_attention"
        )
    _check_states(memory_BMD, "encoder_hidden_states", config.hidden_size)
    if memory_BMD.shape[0] != rows:
        raise UsageError(f"encoder_hidden_states: {memory_BMD.shape[0]} rows; the inputs have {rows}")
    return memory_BMD


def head_mask_by_layer(head_mask: Tensor | None, config: BertConfig, like: Tensor) -> Tensor | None:
    """A head mask [H] or [L, H] as [L, H], in the dtype and on the device of ``like``.

    Raises:
        UsageError: it has another shape.
    """
    if head_mask is None:
        return None
    shape_LH = (config.num_hidden_layers, config.num_attention_heads)
    if tuple(head_mask.shape) not in (shape_LH, shape_LH[1:]):
        raise UsageError(f"head_mask: shape {tuple(head_mask.shape)}; expected {shape_LH[1:]} or {shape_LH}")
    return head_mask.to(device=like.device, dtype=like.dtype).expand(shape_LH)


def _check_ids(ids: Tensor, name: str, limit: int) -> None:
    if ids.dtype not in _ID_DTYPES:
        raise UsageError(f"{name}: dtype {ids.dtype}; expected torch.int64 or torch.int32")
    if not ids.numel() or ids.is_meta:
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(ids))
    if lowest < 0 or highest >= limit:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(f"{name}: {wrong} is no id of this model; ids are 0 to {limit - 1}")


def _check_positions(config: BertConfig, positions: int, past: int) -> None:
    limit = config.max_position_embeddings
    if past + positions > limit:
        after = f" after {past} in the cache" if past else ""
        raise UsageError(
            f"sequence: {positions} positions{after} exceed max_position_embeddings {limit}; "
            "truncate the text or split it into windows"
        )


def _check_aligned(ids: Tensor | None, name: str, shape: tuple[int, ...], limit: int) -> None:
    if ids is None:
        return
    if tuple(ids.shape) not in (shape, (1, shape[1])):
        raise UsageError(f"{name}: shape {tuple(ids.shape)}; expected {shape}")
    _check_ids(ids, name, limit)


def _check_states(states: Tensor, name: str, width: int) -> None:
    if states.dim() != 3 or not states.shape[1] or states.shape[2] != width:
        raise UsageError(f"{name}: shape {tuple(states.shape)}; expected (rows, at least 1 position, {width})")
