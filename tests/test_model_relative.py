"""Relative positions against the papers' formulas, written as loops: transformers 5 no longer has them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.names import canonical, trunk_names
from raybert.model.architecture import BertModel
from raybert.model.encoder import BertSelfAttention
from tests.oracle import MASKS, assert_close, one_thread, random_inputs, random_parameters, random_settings  # noqa: F401  one_thread is a fixture

KINDS = ("relative_key", "relative_key_query")


def relative_model(kind: str, seed: int, **fixed: object) -> BertModel:
    model = BertModel(BertConfig(**random_settings(seed, position_embedding_type=kind, **fixed)))
    random_parameters(model, seed)
    return model.eval()


def attention_by_loops(attention: BertSelfAttention, x_BSD: Tensor, keep_BSK: Tensor, kind: str) -> Tensor:
    """Self-attention's probabilities [B, H, S, K], one score after the other.

    Shaw et al., equation 4: the score of query i and key j is q_i (k_j + a_ij) / sqrt(d); Huang et al., method 4:
    q_i k_j + q_i a_ij + k_j a_ij. a_ij is the embedding of the distance i - j.
    """
    width, most = attention.head_width, attention.max_positions
    rows, positions, _ = x_BSD.shape
    scores = torch.zeros(rows, attention.heads, positions, positions)
    for row in range(rows):
        q_SD, k_SD = attention.query(x_BSD[row]), attention.key(x_BSD[row])
        for head in range(attention.heads):
            columns = slice(head * width, (head + 1) * width)
            for i in range(positions):
                for j in range(positions):
                    q, k = q_SD[i, columns], k_SD[j, columns]
                    a = attention.distance_embedding.weight[i - j + most - 1]
                    score = q @ k + q @ a
                    if kind == "relative_key_query":
                        score = score + k @ a
                    scores[row, head, i, j] = score / math.sqrt(width)
    return scores.masked_fill(~keep_BSK[:, None], torch.finfo(torch.float32).min).softmax(dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_equals_the_formula(kind: str, is_decoder: bool, mask: str) -> None:
    seed = 10 + MASKS.index(mask)
    model = relative_model(kind, seed, is_decoder=is_decoder)
    inputs = random_inputs(model.config, seed, mask=mask)
    inputs = {name: value if value is None else value[:2, :9] for name, value in inputs.items()}
    rows, positions = inputs["input_ids"].shape
    keep_BSK = torch.ones(rows, positions, positions, dtype=torch.bool)
    if inputs["attention_mask"] is not None:
        keep_BSK &= inputs["attention_mask"][:, None, :].bool()
    if is_decoder:
        keep_BSK &= torch.ones(positions, positions, dtype=torch.bool).tril()
    with torch.no_grad():
        out = model(**inputs, output_attentions=True, output_hidden_states=True, use_cache=False)
        for number, layer in enumerate(model.encoder.layer):
            states = out.hidden_states[number]
            expected = attention_by_loops(layer.attention.self, states, keep_BSK, kind)
            assert_close(out.attentions[number], expected, f"attentions[{number}]")
            found = out.hidden_states[number + 1]
            assert_close(found, layer_by_hand(layer, states, expected), f"hidden_states[{number + 1}]")


def layer_by_hand(layer: torch.nn.Module, states: Tensor, probs_BHSK: Tensor) -> Tensor:
    """A layer's output from its probabilities."""
    attention = layer.attention.self
    v_BHKE = attention.value(states).unflatten(-1, (attention.heads, attention.head_width)).transpose(1, 2)
    context = (probs_BHSK @ v_BHKE).transpose(1, 2).flatten(2)
    middle = layer.attention.output(context, states)
    return layer.output(layer.intermediate(middle), middle)


@pytest.mark.parametrize("kind", KINDS)
def test_absolute_positions_have_no_part(kind: str) -> None:
    model = relative_model(kind, 3)
    inputs = random_inputs(model.config, 3, mask="right") | {"position_ids": None}
    positions = inputs["input_ids"].shape[1]
    expected = model(**inputs).last_hidden_state
    moved = inputs | {"position_ids": torch.arange(positions).flip(0)[None]}
    assert torch.equal(model(**moved).last_hidden_state, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_reference_names_and_gradients(kind: str) -> None:
    model = relative_model(kind, 4, is_decoder=True, add_cross_attention=True)
    names = {canonical(name): tuple(value.shape) for name, value in model.named_parameters()}
    expected = trunk_names(model.config)
    assert {name: shape for name, shape in names.items() if "pooler" not in name} == expected
    inputs = random_inputs(model.config, 4, mask="right")
    model(**inputs).last_hidden_state.square().sum().backward()
    for layer in model.encoder.layer:
        assert layer.attention.self.distance_embedding.weight.grad.abs().max() > 0
        assert not hasattr(layer.crossattention.self, "distance_embedding")
