"""Pairs of one BERT, ours and transformers' (eager attention), with equal random parameters, and inputs for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.model.architecture import BertModel
from tests.tiny import random_tensor

HIDDEN_ACTS = ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh", "quick_gelu", "tanh", "mish")
MASKS = ("none", "right", "left", "holes", "empty row")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run ten times faster on one thread than on several that wait for one another.

    Holds in every test module that imports it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_settings(seed: int, **fixed: Any) -> dict[str, Any]:
    """Settings of a tiny BERT, of random sizes; `fixed` overrides."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    settings = {
        "vocab_size": int(rng.integers(11, 60)),
        "hidden_size": heads * int(rng.integers(2, 10)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "intermediate_size": int(rng.integers(3, 50)),
        "hidden_act": HIDDEN_ACTS[seed % len(HIDDEN_ACTS)],
        "max_position_embeddings": int(rng.integers(20, 40)),
        "type_vocab_size": int(rng.integers(1, 4)),
        "layer_norm_eps": float(rng.choice([1e-12, 1e-6, 1e-3])),
        "pad_token_id": None if rng.random() < 0.2 else int(rng.integers(0, 11)),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return settings | fixed


def random_parameters(model: torch.nn.Module, seed: int) -> None:
    """Set every parameter, biases and LayerNorms included, to numbers that its name, shape and `seed` decide."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(random_tensor(name, parameter.shape, seed)))


def pair(settings: dict[str, Any], seed: int, *, pooler: bool = True) -> tuple[BertModel, Any]:
    """Ours and transformers', in eval mode; each takes the other's names, all of them."""
    ours = BertModel(BertConfig(**settings), add_pooling_layer=pooler)
    random_parameters(ours, seed)
    theirs = transformers.BertModel(
        transformers.BertConfig(**settings, attn_implementation="eager"), add_pooling_layer=pooler
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def random_mask(kind: str, rows: int, positions: int, rng: np.random.Generator) -> Tensor | None:
    """An attention mask of a kind of `MASKS`, rows of unequal lengths."""
    if kind == "none":
        return None
    lengths = rng.integers(1, positions + 1, size=rows)
    numbers = np.arange(positions)[None, :]
    if kind == "right":
        mask = numbers < lengths[:, None]
    elif kind == "left":
        mask = numbers >= positions - lengths[:, None]
    else:
        mask = rng.random((rows, positions)) < 0.7
        mask[:, rng.integers(positions)] = True
    if kind == "empty row":
        mask[0] = False
    return torch.from_numpy(mask.astype(np.int64))


def random_inputs(config: BertConfig, seed: int, *, mask: str, embeds: bool = False) -> dict[str, Any]:
    """Arguments of a forward that both models take."""
    rng = np.random.default_rng([seed, 1])
    rows, positions = int(rng.integers(1, 5)), int(rng.integers(2, 20))

    def ids(limit: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, limit, size=(rows, positions)))

    inputs: dict[str, Any] = {"attention_mask": random_mask(mask, rows, positions, rng)}
    if embeds:
        shape = (rows, positions, config.hidden_size)
        inputs["inputs_embeds"] = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    else:
        inputs["input_ids"] = ids(config.vocab_size)
    if rng.random() < 0.7:
        inputs["token_type_ids"] = ids(config.type_vocab_size)
    if rng.random() < 0.4:
        inputs["position_ids"] = ids(config.max_position_embeddings)
    return inputs


def assert_close(found: Tensor | None, expected: Tensor | None, what: str, *, atol: float = 1e-5) -> None:
    """Equal within `atol`, or of the largest number if that exceeds 1."""
    assert (found is None) == (expected is None), what
    if found is None or expected is None:
        return
    assert found.shape == expected.shape, what
    if not found.numel():
        return
    assert torch.isfinite(expected).all(), f"{what}: the oracle is not finite"
    found, expected = found.detach(), expected.detach()
    worst = float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert worst <= atol, f"{what}: off by {worst}"
