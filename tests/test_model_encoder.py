"""Law 2, the module form: equal to transformers over random models, masks and inputs, gradients included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.architecture import BertModel
from raybert.model.cache import KeyValueCache
from raybert.model.encoder import Surroundings
from raybert.model.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from tests.oracle import MASKS, assert_close, one_thread, pair, random_inputs, random_parameters, random_settings  # noqa: F401  one_thread is a fixture

CONFIGS = 45
FIELDS = ("last_hidden_state", "pooler_output")
LISTS = ("hidden_states", "attentions")


@pytest.mark.parametrize("seed", range(CONFIGS))
def test_outputs_and_gradients_equal_transformers(seed: int) -> None:
    pooler = seed % 7 != 0
    ours, theirs = pair(random_settings(seed), seed, pooler=pooler)
    inputs = random_inputs(ours.config, seed, mask=MASKS[seed % len(MASKS)], embeds=seed % 4 == 3)
    with torch.no_grad():
        expected = theirs(**inputs, output_hidden_states=True, output_attentions=True)
        eager = ours(**inputs, output_hidden_states=True, output_attentions=True)
        fused = ours(**inputs, output_hidden_states=True)
    for name in FIELDS:
        assert_close(eager.get(name), getattr(expected, name), f"{name}, eager")
        assert_close(fused.get(name), getattr(expected, name), f"{name}, fused")
    for name in LISTS:
        assert len(getattr(eager, name)) == len(getattr(expected, name))
        for number, (found, wanted) in enumerate(zip(eager[name], expected[name], strict=True)):
            assert_close(found, wanted, f"{name}[{number}]")
    assert fused.attentions is None
    for number, (found, wanted) in enumerate(zip(fused.hidden_states, expected.hidden_states, strict=True)):
        assert_close(found, wanted, f"hidden_states[{number}], fused")

    ours.train(seed % 2 == 0)
    theirs.train(seed % 2 == 0)
    wanted = gradients(theirs, inputs, seed)
    found = gradients(ours, inputs, seed)
    assert found.keys() == wanted.keys() == dict(ours.named_parameters()).keys()
    for name, gradient in found.items():
        assert_close(gradient, wanted[name], f"gradient of {name}")


def gradients(model: torch.nn.Module, inputs: dict[str, Any], seed: int) -> dict[str, Tensor | None]:
    """Of a random projection of all outputs, to every parameter."""
    model.zero_grad()
    output = model(**inputs)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for name in FIELDS:
        value = getattr(output, name)
        if value is not None:
            weights = torch.randn(value.shape, generator=generator) / value.numel() ** 0.5
            total = total + (weights * value).sum()
    total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("seed", range(6))
def test_masks_of_queries_equal_transformers_prepared_masks(seed: int) -> None:
    # transformers 5 takes what each query sees only as numbers to add, [B, 1, S, S].
    ours, theirs = pair(random_settings(seed), seed)
    inputs = random_inputs(ours.config, seed, mask="none")
    rows, positions = inputs["input_ids"].shape
    keep = torch.from_numpy(np.random.default_rng(seed).random((rows, positions, positions)) < 0.6)
    keep[0, 0] = False
    added = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)[:, None]
    with torch.no_grad():
        expected = theirs(**inputs | {"attention_mask": added}).last_hidden_state
        for name, mask in {"3-D": keep.int(), "4-D kept": keep[:, None], "4-D added": added}.items():
            found = ours(**inputs | {"attention_mask": mask}).last_hidden_state
            assert_close(found, expected, name)


@pytest.mark.parametrize("shape", ["one for all layers", "each layer its own"])
def test_a_head_mask_removes_heads(shape: str) -> None:
    settings = random_settings(3, num_attention_heads=4, hidden_size=16, num_hidden_layers=2)
    model, _ = pair(settings, 3)
    inputs = random_inputs(model.config, 3, mask="holes")
    mask = torch.tensor([1.0, 0.0, 1.0, 0.5])
    layers = (0, 1)
    if shape == "each layer its own":
        mask = torch.stack([torch.ones(4), mask])
        layers = (1,)
    with torch.no_grad():
        masked = model(**inputs, head_mask=mask, output_attentions=True)
        # A head's factor is the same factor of the columns that read it.
        for layer in layers:
            dense = model.encoder.layer[layer].attention.output.dense
            dense.weight.mul_(torch.tensor([1.0, 0.0, 1.0, 0.5]).repeat_interleave(4))
        expected = model(**inputs, output_attentions=True)
    assert_close(masked.last_hidden_state, expected.last_hidden_state, "last_hidden_state")
    # The reference of transformers 4.57 reports the probabilities as they were used, times the factors.
    factors = torch.tensor([1.0, 0.0, 1.0, 0.5])[:, None, None]
    assert_close(masked.attentions[-1], expected.attentions[-1] * factors, "attentions")


@pytest.mark.parametrize("seed", range(8))
def test_train_mode_drops_what_transformers_drops(seed: int) -> None:
    settings = random_settings(seed, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
    settings |= {"is_decoder": seed % 2 == 1, "add_cross_attention": seed % 2 == 1}
    ours, theirs = pair(settings, seed)
    inputs = random_inputs(ours.config, seed, mask=MASKS[seed % len(MASKS)])
    if seed % 2:
        rows = inputs["input_ids"].shape[0]
        inputs["encoder_hidden_states"] = torch.randn(rows, 3, ours.config.hidden_size)
    with torch.no_grad():
        expected = ours(**inputs).last_hidden_state
        assert torch.equal(ours(**inputs).last_hidden_state, expected), "eval mode is deterministic"
        ours.train()
        theirs.train()
        # The same draws for the same tensors in the same order: with probabilities in memory, as in eager mode.
        torch.manual_seed(seed)
        found = ours(**inputs, output_attentions=True)
        torch.manual_seed(seed)
        wanted = theirs(**inputs, output_attentions=True)
        assert_close(found.last_hidden_state, wanted.last_hidden_state, "last_hidden_state")
        assert_close(found.attentions[0], wanted.attentions[0], "attentions")
        assert not torch.allclose(found.last_hidden_state, expected, atol=1e-2)
        for part in ours.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        assert_close(ours(**inputs).last_hidden_state, expected, "p = 0")


@pytest.mark.parametrize("attentions", [False, True])
def test_dropout_of_attention_keeps_the_mean(attentions: bool) -> None:
    # One layer's attention before anything nonlinear: its mean over many draws is its value in eval mode.
    model, _ = pair(random_settings(8, attention_probs_dropout_prob=0.3), 8)
    attention = model.encoder.layer[0].attention.self.train()
    x_BSD = torch.randn(1, 6, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    around = Surroundings(want_attentions=attentions)
    torch.manual_seed(2)
    with torch.no_grad():
        draws = attention(x_BSD.expand(4000, -1, -1), around)[0]
        expected = attention.eval()(x_BSD, around)[0][0]
    error = draws.std(dim=0) / 4000**0.5
    assert (draws.std(dim=0) > 0.01).all()
    assert ((draws.mean(dim=0) - expected).abs() <= 5 * error).all()


def test_outputs_are_read_by_name_by_position_and_as_a_tuple() -> None:
    model, theirs = pair(random_settings(1), 1)
    inputs = random_inputs(model.config, 1, mask="right")
    out = model(**inputs, output_hidden_states=True)
    assert isinstance(out, BaseModelOutputWithPoolingAndCrossAttentions)
    assert out[0] is out["last_hidden_state"] is out.last_hidden_state
    assert out[1] is out.pooler_output
    assert out[:2] == (out.last_hidden_state, out.pooler_output)
    assert list(out) == list(theirs(**inputs, output_hidden_states=True)) == list(out.keys())
    assert len(out) == 3
    assert "attentions" not in out
    assert out.attentions is None
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert [type(value) for value in as_tuple] == [Tensor, Tensor, tuple]
    assert torch.equal(as_tuple[0], out.to_tuple()[0])
    with pytest.raises(KeyError):
        out["attentions"]


def test_flags_default_to_the_config() -> None:
    settings = random_settings(2, output_attentions=True, output_hidden_states=True, return_dict=False)
    model, _ = pair(random_settings(2), 2)
    flagged = BertModel(BertConfig(**settings)).eval()
    flagged.load_state_dict(model.state_dict())
    inputs = random_inputs(model.config, 2, mask="left")
    state, _, states, attentions = flagged(**inputs)
    assert len(states) == len(attentions) + 1
    plain = flagged(**inputs, output_attentions=False, output_hidden_states=False, return_dict=True)
    assert_close(plain.last_hidden_state, state, "last_hidden_state")
    assert len(plain) == 2


def test_half_precision_rows_without_any_key_are_finite() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model, _ = pair(random_settings(4, hidden_act="gelu"), 4)
        model.to(dtype)
        with torch.no_grad():
            model.encoder.layer[0].attention.self.query.weight.mul_(40)
        inputs = random_inputs(model.config, 4, mask="empty row")
        with torch.no_grad():
            for attentions in (False, True):
                out = model(**inputs, output_attentions=attentions)
                assert out.last_hidden_state.dtype == dtype
                assert torch.isfinite(out.last_hidden_state).all()


@pytest.mark.parametrize("mask", MASKS)
def test_autocast_keeps_masked_rows_finite(mask: str) -> None:
    model, _ = pair(random_settings(4, hidden_act="gelu"), 4)
    inputs = random_inputs(model.config, 4, mask=mask)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=dtype):
                found = model(**inputs).last_hidden_state
            assert torch.isfinite(found).all()
            assert_close(found.float(), expected, f"{dtype}", atol=0.1)


def test_embeddings_of_another_dtype_are_taken() -> None:
    model, _ = pair(random_settings(7), 7)
    inputs = random_inputs(model.config, 7, mask="right", embeds=True)
    expected = model(**inputs).last_hidden_state
    found = model.to(torch.bfloat16)(**inputs).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, "bf16", atol=0.1)


def test_fresh_weights_follow_initializer_range_and_the_seed() -> None:
    config = BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.05
    )
    torch.manual_seed(0)
    model = BertModel(config)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), BertModel(config).parameters(), strict=True))
    for name, parameter in model.named_parameters():
        if "LayerNorm.weight" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        elif "token_type" not in name:
            assert 0.045 < float(parameter.detach().std()) < 0.055, name
    assert (model.embeddings.word_embeddings.weight[0] == 0).all()


IDS = torch.tensor([[1, 2, 3]])
BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "neither given"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.zeros(1, 3, 8)}, "both given"),
    "too high": ({"input_ids": torch.tensor([[1, 20]])}, "20 is no id of this model; ids are 0 to 19"),
    "negative": ({"input_ids": torch.tensor([[1, -2]])}, "-2 is no id"),
    "floats": ({"input_ids": torch.zeros(1, 3)}, "dtype torch.float32"),
    "one axis": ({"input_ids": torch.tensor([1, 2])}, r"shape \(2,\)"),
    "no position": ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"shape \(2, 0\)"),
    "too long": ({"input_ids": torch.zeros(1, 13, dtype=torch.long)}, "13 positions exceed .* 12"),
    "embeds": ({"inputs_embeds": torch.zeros(1, 3, 7)}, r"expected \(rows, at least 1 position, 8\)"),
    "types": ({"input_ids": IDS, "token_type_ids": IDS}, "3 is no id of this model; ids are 0 to 1"),
    "types' shape": ({"input_ids": IDS, "token_type_ids": IDS[:, :2]}, r"token_type_ids: shape \(1, 2\)"),
    "positions": ({"input_ids": IDS, "position_ids": IDS + 10}, "position_ids: 13 is no id"),
    "mask": ({"input_ids": IDS, "attention_mask": torch.ones(1, 2)}, r"attention_mask: shape \(1, 2\)"),
    "mask of queries": ({"input_ids": IDS, "attention_mask": torch.ones(1, 2, 3)}, r"expected \(1, 3, 3\)"),
    "mask of heads": ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 2, 3)}, r"expected \(1, 2, 3, 3\)"),
    "mask of 3 heads": ({"input_ids": IDS, "attention_mask": torch.ones(1, 3, 3, 3)}, r"\(1, 2, 3, 3\)"),
    "mask of one axis": ({"input_ids": IDS, "attention_mask": torch.ones(3)}, r"attention_mask: shape \(3,\)"),
    "head mask": ({"input_ids": IDS, "head_mask": torch.ones(3)}, r"head_mask: shape \(3,\)"),
    "encoder": ({"input_ids": IDS, "encoder_hidden_states": torch.zeros(1, 2, 8)}, "no cross-attention"),
    "cache": ({"input_ids": IDS, "past_key_values": KeyValueCache()}, "this model is an encoder"),
    "cache position": ({"input_ids": IDS, "cache_position": torch.tensor([1, 2, 3])}, "must count on"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_arguments_that_cannot_be_meant_are_one_clear_line(case: str) -> None:
    arguments, message = BAD_CALLS[case]
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
    )
    with pytest.raises(UsageError, match=message) as caught:
        BertModel(config)(**arguments)
    assert "\n" not in str(caught.value)


def test_a_batch_without_rows_is_answered() -> None:
    model, _ = pair(random_settings(0), 0)
    out = model(input_ids=torch.zeros(0, 4, dtype=torch.long), attention_mask=torch.zeros(0, 4))
    assert out.last_hidden_state.shape == (0, 4, model.config.hidden_size)


def test_int32_ids_and_one_row_of_positions_are_taken() -> None:
    model, _ = pair(random_settings(6), 6)
    ids = torch.tensor([[1, 2, 3], [3, 2, 1]])
    expected = model(ids).last_hidden_state
    assert torch.equal(model(ids.int()).last_hidden_state, expected)
    assert_close(model(ids, position_ids=torch.arange(3)[None]).last_hidden_state, expected, "positions")
    assert_close(model(ids, cache_position=torch.arange(3)).last_hidden_state, expected, "cache_position")


def test_random_parameters_reach_everything() -> None:
    model, _ = pair(random_settings(0), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_parameters(model, 1)
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
