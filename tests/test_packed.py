"""Law 2: the packed form = the module form = transformers, on random models and on the real MiniLM."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.folder import open_checkpoint
from raybert.errors import DeviceError, UsageError
from raybert.model.architecture import BertModel
from raybert.model.kernels import Kernels, check_kernels, choose_kernels
from raybert.model.loading import load_trunk
from raybert.model.packed import Encoder, ModuleEncoder, PackedEncoder, TokenBatch, make_encoder, pack
from raybert.text.tokenizer import Tokenizer
from tests.oracle import assert_close, one_thread, pair, random_parameters, random_settings  # noqa: F401  one_thread is a fixture
from tests.tiny import stdlib_docstrings

CONFIGS = 40
CPU = torch.device("cpu")
TORCH = Kernels(linear="torch", attention="groups")
BLOCKS = Kernels(linear="torch", attention="blocks")
ONEDNN = Kernels(linear="onednn", attention="blocks")
DEMO_TEXTS = 12


def onednn_works(dtype: torch.dtype) -> bool:
    try:
        check_kernels(ONEDNN, CPU, dtype)
    except DeviceError:
        return False
    return True


KERNELS = [
    pytest.param(TORCH, id="torch"),
    pytest.param(BLOCKS, id="blocks"),
    pytest.param(
        ONEDNN,
        id="onednn",
        marks=pytest.mark.skipif(not onednn_works(torch.float32), reason="this machine's torch has no oneDNN linears"),
    ),
]


def packed_settings(seed: int, **fixed: Any) -> dict[str, Any]:
    return random_settings(seed, type_vocab_size=1 + seed % 2, **fixed)


def random_lengths(config: BertConfig, seed: int) -> np.ndarray:
    """Unequal and equal lengths in any order; 1 and the longest possible one are among them."""
    rng = np.random.default_rng([seed, 2])
    longest = config.max_position_embeddings
    lengths = [1, longest, *rng.integers(1, longest + 1, size=int(rng.integers(1, 6))), longest, 1]
    return rng.permutation(np.repeat(lengths, rng.integers(1, 3, size=len(lengths))))


def random_flat(config: BertConfig, lengths: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Flat ids and token types (None for every third model) of sequences of these lengths."""
    rng = np.random.default_rng([seed, 3])
    total = int(lengths.sum())
    ids = rng.integers(0, config.vocab_size, total).astype(np.int32)
    types = rng.integers(0, config.type_vocab_size, total).astype(np.int8)
    return ids, None if seed % 3 == 2 else types


def padded(values: np.ndarray | None, lengths: np.ndarray) -> Tensor | None:
    if values is None:
        return None
    rows = np.zeros((len(lengths), int(lengths.max())), np.int64)
    rows[padding_mask(lengths)] = values
    return torch.from_numpy(rows)


def padding_mask(lengths: np.ndarray) -> np.ndarray:
    return np.arange(int(lengths.max()))[None, :] < lengths[:, None]


def run_padded(model: Any, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray) -> Tensor:
    """Hidden states [T, D] at the real tokens of one padded batch."""
    mask = torch.from_numpy(padding_mask(lengths))
    with torch.no_grad():
        output = model(
            input_ids=padded(ids, lengths), token_type_ids=padded(types, lengths), attention_mask=mask.long()
        )
    return output.last_hidden_state[mask]


def run_packed(encoder: Encoder, ids: np.ndarray, types: np.ndarray | None, lengths: np.ndarray) -> Tensor:
    return encoder(TokenBatch.of(ids, lengths, types, CPU))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("seed", range(CONFIGS))
def test_packed_is_module_is_transformers(seed: int, kernels: Kernels) -> None:
    ours, theirs = pair(packed_settings(seed), seed, pooler=False)
    lengths = random_lengths(ours.config, seed)
    ids, types = random_flat(ours.config, lengths, seed)
    expected = run_padded(theirs, ids, types, lengths)
    assert_close(run_padded(ours, ids, types, lengths), expected, "module form")
    encoder = pack(ours, dtype=torch.float32, device=CPU, kernels=kernels)
    assert_close(run_packed(encoder, ids, types, lengths), expected, "packed form")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
def test_long_sequences_take_the_fused_attention(act: str, kernels: Kernels) -> None:
    # random_settings stays below the length from which attention is one fused operator.
    settings = packed_settings(1, hidden_act=act, max_position_embeddings=130, num_hidden_layers=3)
    ours, theirs = pair(settings, 1, pooler=False)
    lengths = np.array([130, 47, 48, 48, 49, 3, 130, 97])
    ids, types = random_flat(ours.config, lengths, 1)
    encoder = pack(ours, dtype=torch.float32, device=CPU, kernels=kernels)
    assert_close(run_packed(encoder, ids, types, lengths), run_padded(theirs, ids, types, lengths), act)


@pytest.fixture(scope="module")
def demo() -> tuple[BertModel, np.ndarray, np.ndarray, Tensor]:
    """The real MiniLM, windows of real texts (ids and lengths), and transformers' hidden states."""
    checkpoint = open_checkpoint("demo")
    ours, _ = load_trunk(checkpoint)
    theirs = transformers.BertModel.from_pretrained(checkpoint.path, attn_implementation="eager").eval()
    texts = sorted(stdlib_docstrings(1000), key=len)[:: 1000 // (DEMO_TEXTS - 1)]
    random.Random(0).shuffle(texts)
    windows = Tokenizer.from_files(checkpoint.path, max_length=checkpoint.max_length).encode(texts)
    return ours, windows.ids, windows.lengths, run_padded(theirs, windows.ids, None, windows.lengths)


@pytest.mark.parametrize("kernels", KERNELS)
def test_real_model(demo: tuple[BertModel, np.ndarray, np.ndarray, Tensor], kernels: Kernels) -> None:
    ours, ids, lengths, expected = demo
    order = np.argsort(-lengths, kind="stable")
    assert lengths.max() == 256
    assert lengths.min() < 12
    encoder = pack(ours, dtype=torch.float32, device=CPU, kernels=kernels)
    assert_close(run_packed(encoder, ids, None, lengths), expected, "in the texts' order")
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    by_length = np.concatenate([rows[row] for row in order])
    wanted = torch.cat([torch.split(expected, lengths.tolist())[row] for row in order])
    assert_close(run_packed(encoder, by_length, None, lengths[order]), wanted, "longest first")


@pytest.mark.parametrize("seed", range(8))
def test_bfloat16_stays_near(seed: int) -> None:
    """bf16 keeps 8 bits: relative error of a rounding 2^-9, so a few per cent after some layers of random weights."""
    ours, theirs = pair(packed_settings(seed), seed, pooler=False)
    lengths = random_lengths(ours.config, seed)
    ids, types = random_flat(ours.config, lengths, seed)
    expected = run_padded(theirs, ids, types, lengths)
    for kernels in (TORCH, ONEDNN) if onednn_works(torch.bfloat16) else (TORCH,):
        encoder = pack(ours, dtype=torch.bfloat16, device=CPU, kernels=kernels)
        found = run_packed(encoder, ids, types, lengths)
        assert found.dtype == torch.bfloat16
        error = (found.float() - expected).norm() / expected.norm()
        assert error < 0.03, (kernels.linear, float(error))


def test_real_model_in_module_form(demo: tuple[BertModel, np.ndarray, np.ndarray, Tensor]) -> None:
    ours, ids, lengths, expected = demo
    assert_close(run_padded(ours, ids, None, lengths), expected, "module form")


def test_real_model_in_bfloat16(demo: tuple[BertModel, np.ndarray, np.ndarray, Tensor]) -> None:
    ours, ids, lengths, expected = demo
    kernels = choose_kernels(CPU, torch.bfloat16)
    found = run_packed(pack(ours, dtype=torch.bfloat16, device=CPU, kernels=kernels), ids, None, lengths).float()
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert float(torch.cosine_similarity(found, expected).min()) > 0.98


REFUSED = {
    "decoder": ({"is_decoder": True}, "decoder"),
    "cross-attention": ({"is_decoder": True, "add_cross_attention": True}, "decoder"),
    "relative_key": ({"position_embedding_type": "relative_key"}, "relative_key"),
    "relative_key_query": ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
    "token types": ({"type_vocab_size": 3}, "3 token types"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_have_no_packed_form_run_as_modules(name: str) -> None:
    settings, reason = REFUSED[name]
    model = BertModel(BertConfig(**random_settings(5, **{"type_vocab_size": 2} | settings)), add_pooling_layer=False)
    random_parameters(model, 5)
    model.eval()
    with pytest.raises(UsageError, match=f"{reason}.*run the module form"):
        pack(model, dtype=torch.float32, device=CPU, kernels=TORCH)
    encoder = make_encoder(model, dtype=torch.float32, device=CPU, kernels=TORCH)
    assert isinstance(encoder, ModuleEncoder)
    lengths = random_lengths(model.config, 4)
    ids, types = random_flat(model.config, lengths, 4)
    assert types is not None
    found = run_packed(encoder, ids, types, lengths)
    assert_close(found, run_padded(model, ids, types, lengths), name)
    first = run_packed(encoder, ids, None, lengths)
    assert_close(first, run_padded(model, ids, np.zeros_like(types), lengths), f"{name}, no token types")


def test_make_encoder_packs_what_it_can() -> None:
    model = BertModel(BertConfig(**packed_settings(0)), add_pooling_layer=False)
    assert isinstance(make_encoder(model, dtype=torch.float32, device=CPU, kernels=TORCH), PackedEncoder)


@pytest.mark.parametrize("kernels", KERNELS)
def test_pack_copies_every_parameter(kernels: Kernels) -> None:
    model, _ = pair(packed_settings(3), 3, pooler=False)
    lengths = random_lengths(model.config, 3)
    ids, types = random_flat(model.config, lengths, 3)
    encoder = pack(model, dtype=torch.float32, device=CPU, kernels=kernels)
    before = run_packed(encoder, ids, types, lengths)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert torch.equal(run_packed(encoder, ids, types, lengths), before)


@pytest.mark.parametrize("kernels", KERNELS)
def test_no_gradient_is_ever_asked_for(kernels: Kernels) -> None:
    # oneDNN's prepacked operators have none, and drop it silently.
    model, _ = pair(packed_settings(4), 4, pooler=False)
    lengths = random_lengths(model.config, 4)
    encoder = pack(model, dtype=torch.float32, device=CPU, kernels=kernels)
    with torch.enable_grad():
        found = run_packed(encoder, *random_flat(model.config, lengths, 4), lengths)
    assert not found.requires_grad
    assert found.is_inference()
