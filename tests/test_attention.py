"""Where sequences lie in a token batch, and the attention kernels against a dense one with a mask."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raybert.model.attention import Attention, Group, Groups, Layout, Varlen, layout_of
from raybert.model.blocks import Blocks, plan_blocks
from tests.oracle import assert_close, one_thread  # noqa: F401  a fixture

CPU = torch.device("cpu")
LENGTHS = (
    [1],
    [1, 1, 1],
    [128],
    [5, 5, 3, 3, 3, 1],
    [3, 5, 3, 5, 5],
    [47, 48, 48, 49, 1, 100, 100],
    [28] * 13 + [8] * 7,
    [9, 17, 16, 33, 300, 64, 65, 159, 160, 160, 31],
)
KERNELS = (Groups, Blocks)


def dense_attention(qkv_TF: Tensor, lengths: list[int], heads: int) -> Tensor:
    """Softmax attention over all tokens in fp64, other sequences masked: [T, 3 D] -> [T, D]."""
    tokens, width = qkv_TF.shape[0], qkv_TF.shape[1] // 3
    q, k, v = qkv_TF.double().view(tokens, 3, heads, width // heads).permute(1, 2, 0, 3)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores = q @ k.transpose(1, 2) / math.sqrt(width // heads)
    scores = scores.masked_fill(owner[:, None] != owner[None, :], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens, width)


def random_qkv(lengths: list[int], width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn((sum(lengths), 3 * width), generator=generator).to(dtype)


def attend(kernel: Attention[Any], qkv_TF: Tensor, layout: Layout) -> Tensor:
    with torch.inference_mode():
        return kernel.attend(qkv_TF, kernel.plan(layout, qkv_TF.dtype))


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "width"), [(1, 3), (4, 32), (12, 384)])
def test_kernels_equal_dense_attention(kind: type[Groups | Blocks], lengths: list[int], heads: int, width: int) -> None:
    qkv = random_qkv(lengths, width)
    found = attend(kind(heads), qkv, layout_of(np.array(lengths), CPU))
    assert_close(found.double(), dense_attention(qkv, lengths, heads), "fp32", atol=1e-5)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_kernels_in_other_dtypes_and_with_rows_behind_them(kind: type[Groups | Blocks], lengths: list[int]) -> None:
    qkv = torch.cat([random_qkv(lengths, 32).double(), torch.full((5, 96), torch.nan, dtype=torch.float64)])
    found = attend(kind(4), qkv, layout_of(np.array(lengths), CPU))
    assert_close(found[:-5], dense_attention(qkv[:-5], lengths, 4), "fp64", atol=1e-12)
    assert not found[-5:].any()


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_kernels_in_bfloat16_stay_near_dense_attention(kind: type[Groups | Blocks], lengths: list[int]) -> None:
    qkv = random_qkv(lengths, 32, torch.bfloat16)
    found = attend(kind(4), qkv, layout_of(np.array(lengths), CPU))
    assert found.dtype == torch.bfloat16
    assert_close(found.double(), dense_attention(qkv, lengths, 4), "bf16", atol=0.03)


@pytest.mark.parametrize("kind", KERNELS)
def test_attention_leaves_its_input_alone(kind: type[Groups | Blocks]) -> None:
    lengths = [4, 4, 60]
    qkv = random_qkv(lengths, 32)
    before = qkv.clone()
    attend(kind(4), qkv, layout_of(np.array(lengths), CPU))
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spoilt", [0, 1])
def test_a_sequence_sees_no_other_one_of_its_block(dtype: torch.dtype, spoilt: int) -> None:
    lengths = [20, 31]  # filled up to one number of keys, and so computed together
    qkv = random_qkv(lengths, 32, dtype)
    layout = layout_of(np.array(lengths), CPU)
    expected = attend(Blocks(4), qkv, layout)
    (block,) = plan_blocks(layout, 4, dtype).blocks
    assert block.count == 2
    own = [slice(0, 20), slice(20, 51)]
    qkv[own[spoilt]] = torch.nan
    found = attend(Blocks(4), qkv, layout)
    assert found[own[spoilt]].isnan().all()
    assert torch.equal(found[own[1 - spoilt]], expected[own[1 - spoilt]])


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.sampled_from([1, 4, 12]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_blocks_have_every_sequence_once_and_few_shapes(lengths: list[int], heads: int, dtype: torch.dtype) -> None:
    plan = plan_blocks(layout_of(np.array(lengths), CPU), heads, dtype)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    assert sum(block.count for block in plan.blocks) == len(lengths)
    begins = np.cumsum([0, *lengths])
    sequences = iter(plan.order.tolist())
    row = 0
    for block in plan.blocks:
        fused = isinstance(block.taken, slice)
        taken = torch.arange(begins[-1])[block.taken].view(block.count, block.keys).tolist()
        scores = block.count * heads * block.keys**2 * dtype.itemsize
        assert block.count & (block.count - 1) == 0
        assert block.count == 1 or scores <= 2**20
        assert fused or (block.queries % 8 == 0 and block.keys % 8 == 0)
        for at, sequence in zip(range(block.count), sequences, strict=False):
            begin, length = begins[sequence], lengths[sequence]
            assert length <= block.queries <= block.keys < length + 32
            assert taken[at][:length] == list(range(begin, begin + length))
            assert set(taken[at][length:]) <= {begin + length - 1}
            assert plan.back[begin : begin + length].tolist() == list(range(row, row + length))
            row += block.queries


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30), st.sampled_from([np.int32, np.int64]))
def test_layout_says_where_every_token_lies(lengths: list[int], dtype: type[np.integer[Any]]) -> None:
    layout = layout_of(np.array(lengths, dtype), CPU)
    covered = [
        (group.length, group.begin + group.length * row) for group in layout.groups for row in range(group.count)
    ]
    begins = np.cumsum([0, *lengths])[:-1].tolist()
    assert covered == list(zip(lengths, begins, strict=True))
    assert layout.positions_T.tolist() == [position for length in lengths for position in range(length)]
    assert layout.positions_T.dtype == torch.int64
    assert layout.longest == max(lengths)
    assert layout.starts is None  # no kernel of a CPU reads them
    neighbours = zip(layout.groups, layout.groups[1:], strict=False)
    assert all(one.length != next_one.length for one, next_one in neighbours), "a run of equal lengths is one group"
    assert [group.tokens for group in layout.groups] == [
        slice(group.begin, group.begin + group.length * group.count) for group in layout.groups
    ]


class RecordingVarlen:
    """Stands in for torch's kernel, which only CUDA has: same contract, its arguments kept."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Tensor:
        self.calls.append(args)
        q, k, v, starts_q, starts_k, max_q, max_k = args
        assert torch.equal(starts_q, starts_k)
        assert max_q == max_k == int(starts_q.diff().max())
        pieces = []
        for begin, end in zip(starts_q[:-1].tolist(), starts_q[1:].tolist(), strict=True):
            q_HSE, k_HSE, v_HSE = (x[begin:end].transpose(0, 1) for x in (q, k, v))
            probs = (q_HSE @ k_HSE.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
            pieces.append((probs @ v_HSE).transpose(0, 1))
        return torch.cat(pieces)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_varlen_hands_the_kernel_its_seven_positional_arguments(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    kernel = RecordingVarlen()
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    heads, width = 4, 32
    qkv = random_qkv(lengths, width)
    layout = layout_of(np.array(lengths), CPU)
    starts = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
    layout = replace(layout, starts=starts)  # as layout_of makes it for CUDA
    found = attend(Varlen(heads), qkv, layout)
    assert found.shape == (sum(lengths), width)
    assert found.is_contiguous()
    assert_close(found.double(), dense_attention(qkv, lengths, heads), "varlen", atol=1e-5)
    ((q, k, v, starts_q, starts_k, max_q, max_k),) = kernel.calls
    for x in (q, k, v):
        assert x.shape == (sum(lengths), heads, width // heads)
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert starts_q.shape == (len(lengths) + 1,)
    assert type(max_q) is type(max_k) is int


def test_torch_still_takes_seven_positional_arguments() -> None:
    parameters = inspect.signature(torch.nn.attention.varlen.varlen_attn).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) >= 7
    assert [name[:1] for name in positional[:3]] == ["q", "k", "v"]
    assert all(p.default is not inspect.Parameter.empty for p in list(parameters)[7:])


def test_layouts_of_cuda_carry_starts() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    layout = layout_of(np.array([2, 3]), torch.device("cuda"))
    assert layout.starts is not None
    assert layout.starts.dtype == torch.int32
    assert layout.starts.tolist() == [0, 2, 5]


def test_group_tokens() -> None:
    assert Group(length=3, count=2, begin=4).tokens == slice(4, 10)
