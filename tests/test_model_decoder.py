"""The module form as a decoder: causal masks, cross-attention and the cache, equal to transformers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.architecture import BertModel
from raybert.model.cache import KeyValueCache
from tests.oracle import MASKS, assert_close, one_thread, pair, random_inputs, random_mask, random_settings  # noqa: F401  one_thread is a fixture

CONFIGS = 30


def decoder_inputs(config: BertConfig, seed: int) -> dict[str, Any]:
    """Inputs with an encoder's hidden states, if the config has cross-attention; masks of all kinds for both."""
    inputs = random_inputs(config, seed, mask=MASKS[seed % len(MASKS)])
    if config.add_cross_attention:
        rng = np.random.default_rng([seed, 2])
        rows, memory = inputs["input_ids"].shape[0], int(rng.integers(1, 12))
        states = rng.standard_normal((rows, memory, config.hidden_size)).astype(np.float32)
        inputs["encoder_hidden_states"] = torch.from_numpy(states)
        kind = MASKS[(seed + seed // len(MASKS)) % len(MASKS)]
        inputs["encoder_attention_mask"] = random_mask(kind, rows, memory, rng)
    return inputs


@pytest.mark.parametrize("seed", range(CONFIGS))
def test_outputs_and_gradients_equal_transformers(seed: int) -> None:
    settings = random_settings(seed, is_decoder=True, add_cross_attention=seed % 3 != 0)
    ours, theirs = pair(settings, seed, pooler=seed % 2 == 0)
    inputs = decoder_inputs(ours.config, seed)
    flags = {"output_hidden_states": True, "output_attentions": True, "use_cache": seed % 2 == 0}
    expected = theirs(**inputs, **flags)
    found = ours(**inputs, **flags)
    fused = ours(**inputs, use_cache=False)
    assert_close(found.last_hidden_state, expected.last_hidden_state, "last_hidden_state")
    assert_close(fused.last_hidden_state, expected.last_hidden_state, "last_hidden_state, fused")
    assert_close(found.pooler_output, expected.pooler_output, "pooler_output")
    for name in ("hidden_states", "attentions", "cross_attentions"):
        pairs = zip(found.get(name, ()), getattr(expected, name) or (), strict=True)
        for number, (ours_part, theirs_part) in enumerate(pairs):
            assert_close(ours_part, theirs_part, f"{name}[{number}]")
    assert (found.past_key_values is not None) == (expected.past_key_values is not None)

    weights = torch.randn(fused.last_hidden_state.shape, generator=torch.Generator().manual_seed(seed))
    for output in (fused, expected):
        ((output.last_hidden_state * weights).sum() / weights.numel() ** 0.5).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, wanted[name].grad, f"gradient of {name}")


@pytest.mark.parametrize("seed", range(CONFIGS))
def test_step_by_step_with_a_cache_equals_all_at_once_and_transformers(seed: int) -> None:
    kind = ("absolute", "relative_key", "relative_key_query")[seed % 5 if seed % 5 < 3 else 0]
    settings = random_settings(seed, is_decoder=True, add_cross_attention=seed % 2 == 0)
    ours, theirs = pair(settings, seed)
    if kind != "absolute":
        # transformers 5 has no relative positions: there only our own two ways are compared.
        settings |= {"position_embedding_type": kind}
        torch.manual_seed(seed)
        ours, theirs = BertModel(BertConfig(**settings, initializer_range=0.5)).eval(), None
    inputs = decoder_inputs(ours.config, seed)
    inputs.pop("position_ids", None)
    mask = inputs.pop("attention_mask")
    by_position = {name: inputs.pop(name) for name in ("input_ids", "token_type_ids") if name in inputs}
    positions = by_position["input_ids"].shape[1]
    with torch.no_grad():
        whole = ours(**inputs, **by_position, attention_mask=mask, use_cache=False).last_hidden_state
        cache: KeyValueCache | None = None
        their_cache = None
        third = max(1, positions // 3)
        cuts = sorted({0, third, *range(min(positions, 2 * third), positions + 1)})
        for begin, end in pairwise(cuts):
            piece = {name: ids[:, begin:end] for name, ids in by_position.items()}
            seen = None if mask is None else mask[:, :end]
            step = inputs | piece | {"attention_mask": seen, "use_cache": True}
            found = ours(**step, past_key_values=cache)
            cache = found.past_key_values
            assert cache.get_seq_length() == end
            if theirs is not None:
                expected = theirs(**step, past_key_values=their_cache)
                their_cache = expected.past_key_values
                assert_close(found.last_hidden_state, expected.last_hidden_state, f"step to {end}")
            seeing = sees_a_key(mask, begin, end, found.last_hidden_state)
            assert_close(found.last_hidden_state[seeing], whole[:, begin:end][seeing], f"all at once, {end}")


def sees_a_key(mask: Tensor | None, begin: int, end: int, states: Tensor) -> Tensor:
    """Which of the positions see a key: the others see all keys evenly, also later ones if these are there."""
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool)
    return mask.cumsum(dim=1)[:, begin:end] > 0


def test_a_position_depends_on_no_later_one() -> None:
    model, _ = pair(random_settings(1, is_decoder=True, vocab_size=20), 1)
    ids = torch.arange(1, 9)[None]
    changed = ids.clone()
    changed[0, 5] = 15
    before, after = (model(tokens).last_hidden_state for tokens in (ids, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_a_decoder_without_an_encoder_skips_cross_attention() -> None:
    ours, theirs = pair(random_settings(2, is_decoder=True, add_cross_attention=True), 2)
    inputs = random_inputs(ours.config, 2, mask="right")
    found = ours(**inputs, output_attentions=True)
    assert_close(found.last_hidden_state, theirs(**inputs).last_hidden_state, "last_hidden_state")
    assert found.cross_attentions is None


def test_an_encoder_of_another_dtype_is_attended_to() -> None:
    model, _ = pair(random_settings(7, is_decoder=True, add_cross_attention=True), 7)
    inputs = decoder_inputs(model.config, 7)
    expected = model(**inputs).last_hidden_state
    found = model.to(torch.bfloat16)(**inputs).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, "bf16", atol=0.1)


def test_use_cache_defaults_to_the_config() -> None:
    for keep in (True, False):
        model = BertModel(BertConfig(**random_settings(3, is_decoder=True, use_cache=keep)))
        ids = torch.ones(1, 3, dtype=torch.long)
        assert (model(ids).past_key_values is not None) == keep
        assert (model(ids, use_cache=not keep).past_key_values is not None) != keep
    encoder = BertModel(BertConfig(**random_settings(3)))
    assert encoder(torch.ones(1, 3, dtype=torch.long), use_cache=True).past_key_values is None


def test_a_cache_continues_only_what_it_began() -> None:
    settings = random_settings(4, is_decoder=True, add_cross_attention=True, max_position_embeddings=20, vocab_size=20)
    model = BertModel(BertConfig(**settings)).eval()
    ids = torch.arange(1, 13)[None]
    memory = torch.zeros(1, 4, model.config.hidden_size)
    cache = model(ids, encoder_hidden_states=memory).past_key_values
    refused = {
        "pass them again": {"input_ids": ids[:, :1]},
        "12 positions after 12 in the cache exceed": {"input_ids": ids, "encoder_hidden_states": memory},
        r"expected \(1, 13\)": {
            "input_ids": ids[:, :1],
            "encoder_hidden_states": memory,
            "attention_mask": torch.ones(1, 1),
        },
        "made with 1 rows; the inputs have 2": {
            "input_ids": ids[:, :1].expand(2, 1),
            "encoder_hidden_states": memory.expand(2, -1, -1),
        },
        "holds 12 positions": {
            "input_ids": ids[:, :1],
            "encoder_hidden_states": memory,
            "cache_position": torch.tensor([0]),
        },
    }
    for message, arguments in refused.items():
        with pytest.raises(UsageError, match=message):
            model(**arguments, past_key_values=cache)
    assert cache.get_seq_length() == 12, "a refused call leaves the cache as it was"
    with pytest.raises(TypeError, match="expected a KeyValueCache, not tuple"):
        model(ids, past_key_values=())


def test_cross_attention_needs_a_decoder_and_states_that_fit() -> None:
    with pytest.raises(UsageError, match="add_cross_attention needs is_decoder"):
        BertModel(BertConfig(**random_settings(0, add_cross_attention=True)))
    model = BertModel(BertConfig(**random_settings(0, is_decoder=True, add_cross_attention=True)))
    ids = torch.ones(2, 3, dtype=torch.long)
    width = model.config.hidden_size
    with pytest.raises(UsageError, match="encoder_hidden_states: 1 rows; the inputs have 2"):
        model(ids, encoder_hidden_states=torch.zeros(1, 3, width))
    with pytest.raises(UsageError, match="encoder_hidden_states: shape"):
        model(ids, encoder_hidden_states=torch.zeros(2, 3, width + 1))
    with pytest.raises(UsageError, match=r"encoder_attention_mask: shape \(2, 4\); expected \(2, 3\)"):
        model(
            ids,
            encoder_hidden_states=torch.zeros(2, 3, width),
            encoder_attention_mask=torch.ones(2, 4),
        )


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_queries_are_used_as_given(seed: int) -> None:
    settings = random_settings(seed, is_decoder=True, add_cross_attention=True)
    ours, _ = pair(settings, seed)
    inputs = decoder_inputs(ours.config, seed)
    rows, positions = inputs["input_ids"].shape
    memory = inputs["encoder_hidden_states"].shape[1]
    padding = torch.ones(rows, positions) if inputs["attention_mask"] is None else inputs["attention_mask"]
    other = torch.ones(rows, memory) if inputs["encoder_attention_mask"] is None else inputs["encoder_attention_mask"]
    spelt = inputs | {
        "attention_mask": padding[:, None, :] * torch.ones(positions, positions).tril(),
        "encoder_attention_mask": other[:, None, :].expand(rows, positions, memory),
    }
    with torch.no_grad():
        found, expected = ours(**spelt).last_hidden_state, ours(**inputs).last_hidden_state
    assert_close(found, expected, "last_hidden_state")
