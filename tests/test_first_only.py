"""The last layer of first tokens alone: the hidden states that the whole layer gives there, for less work."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import raybert
from raybert.config import heads_from
from raybert.engine import Trunk, choose_settings
from raybert.model.attention import Groups, Varlen, layout_of
from raybert.model.blocks import Blocks
from raybert.model.kernels import Kernels
from raybert.model.packed import Encoder, ModuleEncoder, TokenBatch, pack
from raybert.tasks.program import open_program
from tests.oracle import assert_close, one_thread, pair  # noqa: F401  one_thread is a fixture
from tests.test_attention import LENGTHS, attend, random_qkv
from tests.test_packed import CPU, KERNELS, TORCH, packed_settings, random_flat, random_lengths, run_packed, run_padded
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint


def firsts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("seed", range(20))
def test_equal_to_transformers(seed: int, kernels: Kernels) -> None:
    ours, theirs = pair(packed_settings(seed), seed, pooler=False)
    lengths = random_lengths(ours.config, seed)
    ids, types = random_flat(ours.config, lengths, seed)
    expected = run_padded(theirs, ids, types, lengths)[firsts(lengths)]
    encoder = pack(ours, dtype=torch.float32, device=CPU, kernels=kernels)
    assert_close(run_packed(partial(encoder, first_only=True), ids, types, lengths), expected, "first tokens")


def test_the_module_form_gives_them_too() -> None:
    ours, theirs = pair(packed_settings(3), 3, pooler=False)
    lengths = random_lengths(ours.config, 3)
    ids, types = random_flat(ours.config, lengths, 3)
    encoder = partial(ModuleEncoder(ours, dtype=torch.float32, device=CPU), first_only=True)
    expected = run_padded(theirs, ids, types, lengths)[firsts(lengths)]
    assert_close(run_packed(encoder, ids, types, lengths), expected, "module form")


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_kernel_gives_what_the_whole_attention_gives_there(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    width, heads = 32, 4
    qkv = random_qkv(lengths, width)
    layout = layout_of(np.array(lengths), CPU)
    expected = attend(Groups(heads), qkv, layout)[layout.firsts]
    q_ND, kv_TF = qkv[layout.firsts, :width], qkv[:, width:].contiguous()
    for kernel in (Groups(heads), Blocks(heads)):
        found = kernel.attend_first(q_ND, kv_TF, kernel.plan(layout, qkv.dtype))
        assert_close(found, expected, type(kernel).__name__)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", first_queries)
    starts = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
    found = Varlen(heads).attend_first(q_ND, kv_TF, replace(layout, starts=starts))
    assert_close(found, expected, "varlen")


def first_queries(*args: Any) -> Tensor:
    """Stands in for torch's kernel, which only CUDA has: one query a sequence."""
    q, k, v, starts_q, starts_k, max_q, max_k = args
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert starts_q.tolist() == list(range(len(q) + 1))
    assert (max_q, max_k) == (1, int(starts_k.diff().max()))
    pieces = []
    for row, (begin, end) in enumerate(zip(starts_k[:-1].tolist(), starts_k[1:].tolist(), strict=True)):
        scores = torch.einsum("he,she->hs", q[row], k[begin:end]) / math.sqrt(q.shape[-1])
        pieces.append(torch.einsum("hs,she->he", scores.softmax(-1), v[begin:end]))
    return torch.stack(pieces)


def test_it_is_less_work() -> None:
    # 12 D^2 products a token and layer of which 2 D^2 are left in the last: of 6 layers 5/36 + attention go.
    sizes = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": 40}
    ours, _ = pair(packed_settings(0, **sizes), 0, pooler=False)
    lengths = np.full(20, 40)
    ids = np.arange(lengths.sum(), dtype=np.int32) % ours.config.vocab_size
    flops = []
    encoder = pack(ours, dtype=torch.float32, device=CPU, kernels=TORCH)
    for first_only in (False, True):
        with FlopCounterMode(display=False) as counter:
            encoder(TokenBatch.of(ids, lengths, None, CPU), first_only=first_only)
        flops.append(counter.get_total_flops())
    assert 0.83 < flops[1] / flops[0] < 0.87


class Seen:
    """An encoder that says how it was called."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.device, self.dtype = encoder, encoder.device, encoder.dtype
        self.first_only: list[bool] = []

    def __call__(self, batch: TokenBatch, *, first_only: bool = False) -> Tensor:
        self.first_only.append(first_only)
        return self.encoder(batch, first_only=first_only)


def test_a_trunk_does_so_where_no_head_reads_another_token(tmp_path: Path) -> None:
    folder = str(write_tiny_checkpoint(tmp_path, heads=("classifier", "next-sentence")))
    texts = stdlib_docstrings(40)
    settings = choose_settings(device="cpu", dtype="float32")
    only = {"c": (folder, "classify"), "v": (folder, "embed", {"pooling": "cls"})}
    for heads, expected in ((only, True), (only | {"n": (folder, "ner")}, False)):
        program = open_program(heads_from(heads))
        trunk = Trunk(program.tasks, settings)
        seen = trunk._encoder = Seen(trunk._encoder)
        windows = program.tasks["c"].encode(texts)
        trunk.run(windows, dict.fromkeys(heads))
        trunk.run(windows, {"c": None})
        assert seen.first_only == [expected, True]
        trunk.close()
    alone = raybert.load_heads(only, dtype="float32", device="cpu")(texts)
    beside = raybert.load_heads(only | {"n": (folder, "ner")}, dtype="float32", device="cpu")(texts)
    np.testing.assert_allclose(alone["v"], beside["v"], rtol=0, atol=1e-5)
    assert [answer.label for answer in alone["c"]] == [answer.label for answer in beside["c"]]
    for one, other in zip(alone["c"], beside["c"], strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_a_prompt_that_is_left_out_moves_the_first_token(tmp_path: Path) -> None:
    sentence = {"pooling": "cls", "include_prompt": False, "prompts": {"query": "query: "}}
    folder = str(write_tiny_checkpoint(tmp_path, sentence=sentence))
    heads = {"plain": (folder, "embed"), "asked": (folder, "embed", {"prompt_name": "query"})}
    tasks = open_program(heads_from(heads)).tasks
    assert (tasks["plain"].reads, tasks["asked"].reads) == ("first", "tokens")
