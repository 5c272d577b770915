"""Texts from a decoder, word by word: the likeliest one, or a drawn one."""

# B rows, S positions, V words

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError


class Decoder(Protocol):
    """What can generate: `raybert.BertLMHeadModel`."""

    config: BertConfig

    def __call__(self, input_ids: Tensor, **inputs: Any) -> Any:
        """Run the model with the arguments of its ``forward``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the next word is chosen.

    Attributes:
        do_sample: draw it; False takes the likeliest.
        temperature: scores are divided by it before words are drawn.
        top_k: draw among the so many likeliest; 0: among all.
        top_p: then among the likeliest that together have this probability (Holtzman et al. 2020).
        generator: of the draws; None takes torch's own.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"temperature: {self.temperature}; takes a number above 0")
        if self.top_k < 0:
            raise UsageError(f"top_k: {self.top_k}; takes a whole number, 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p: {self.top_p}; takes a number above 0, up to 1")

    def next_word(self, logits_BV: Tensor) -> Tensor:
        """Ids [B]."""
        if not self.do_sample:
            return logits_BV.argmax(-1)
        scores_BV = keep_top_p(keep_top_k(logits_BV.float() / self.temperature, self.top_k), self.top_p)
        drawn_B1 = torch.multinomial(scores_BV.softmax(-1), 1, generator=self.generator)
        return drawn_B1[:, 0]


def keep_top_k(scores_BV: Tensor, top_k: int) -> Tensor:
    """Scores with minus infinity at all but the `top_k` highest, and ties of the last of them; 0 keeps all."""
    if not 0 < top_k < scores_BV.shape[-1]:
        return scores_BV
    lowest_B1 = scores_BV.topk(top_k).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < lowest_B1, -math.inf)


def keep_top_p(scores_BV: Tensor, top_p: float) -> Tensor:
    """Scores with minus infinity at the unlikeliest words that together have no more than ``1 - top_p``."""
    if top_p >= 1:
        return scores_BV
    sorted_BV, order_BV = scores_BV.sort(-1)
    drop_BV = sorted_BV.softmax(-1).cumsum(-1) <= 1 - top_p
    drop_BV[:, -1] = False  # the likeliest word stays whatever the limit
    return scores_BV.masked_fill(drop_BV.scatter(1, order_BV, drop_BV), -math.inf)


def generate(
    model: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    choice: Choice,
    *,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int] | None,
    pad_token_id: int | None,
    use_cache: bool,
    **memory: Any,
) -> Tensor:
    """Ids [B, S + new]; the arguments are those of `raybert.BertLMHeadModel.generate`."""
    config = model.config
    _check(config, input_ids, attention_mask, max_new_tokens)
    ends = config.eos_token_id if eos_token_id is None else eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = config.pad_token_id if pad_token_id is None else pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    end_ids = torch.tensor(ends, device=input_ids.device, dtype=input_ids.dtype)
    ids_BS = input_ids
    mask_BS = torch.ones_like(ids_BS) if attention_mask is None else attention_mask.to(ids_BS.dtype)
    types_BS = token_type_ids
    done_B = torch.zeros(len(ids_BS), dtype=torch.bool, device=ids_BS.device)
    cache = None
    with torch.no_grad():
        for _ in range(max_new_tokens):
            # Padding on the left has no positions: the first real token is at 0.
            position_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
            fresh = slice(None) if cache is None else slice(-1, None)
            output = model(
                ids_BS[:, fresh],
                attention_mask=mask_BS,
                token_type_ids=None if types_BS is None else types_BS[:, fresh],
                position_ids=position_BS[:, fresh],
                past_key_values=cache,
                use_cache=use_cache,
                logits_to_keep=1,
                return_dict=True,
                **memory,
            )
            cache = output.past_key_values
            word_B = choice.next_word(output.logits[:, -1]).to(ids_BS.dtype).masked_fill(done_B, pad)
            ids_BS = torch.cat([ids_BS, word_B[:, None]], dim=1)
            mask_BS = torch.cat([mask_BS, torch.ones_like(word_B)[:, None]], dim=1)
            if types_BS is not None:
                types_BS = torch.cat([types_BS, types_BS[:, -1:]], dim=1)
            done_B = done_B | torch.isin(word_B, end_ids)
            if bool(done_B.all()):
                break
    return ids_BS


def _check(config: BertConfig, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int) -> None:
    if not config.is_decoder:
        raise UsageError("generate: this model is an encoder, which sees later words; load it with is_decoder=True")
    if input_ids.dim() != 2 or not input_ids.shape[1]:
        raise UsageError(f"input_ids: shape {tuple(input_ids.shape)}; expected (rows, at least 1 position)")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise UsageError(f"attention_mask: shape {tuple(attention_mask.shape)}; expected {tuple(input_ids.shape)}")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens: {max_new_tokens}; takes a whole number from 1")
    room = config.max_position_embeddings - input_ids.shape[1]
    if max_new_tokens > room:
        raise UsageError(
            f"max_new_tokens: {max_new_tokens}; only {room} more positions fit max_position_embeddings "
            f"{config.max_position_embeddings}"
        )
