"""The operators of the packed form: equal to plain ones, chosen by rule, refused where they are not to be had."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor, nn

from raybert.errors import DeviceError
from raybert.model import kernels
from raybert.model.activations import ACTIVATIONS, activation
from raybert.model.kernels import Kernels, check_kernels, choose_kernels, make_linear
from tests.oracle import assert_close, one_thread  # noqa: F401  a fixture

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def onednn_works(dtype: torch.dtype) -> bool:
    try:
        check_kernels(Kernels(linear="onednn", attention="groups"), CPU, dtype)
    except DeviceError:
        return False
    return True


KINDS = [
    "torch",
    pytest.param(
        "onednn",
        marks=pytest.mark.skipif(not onednn_works(torch.float32), reason="this machine's torch has no oneDNN linears"),
    ),
]


def random_linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
        linear.bias.copy_(torch.randn(linear.bias.shape, generator=generator))
    return linear


def random_rows(rows: int, width: int) -> Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (5, 32, 64), (33, 31, 17), (300, 48, 96)], ids=str)
def test_linears_equal_torch(kind: str, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    module = random_linear(inputs, outputs, 0)
    x, residual = random_rows(rows, inputs), random_rows(rows, outputs)
    kept = residual.clone()
    with torch.inference_mode():
        expected = module(x)
        linear = make_linear(kind, module, dtype=torch.float32, device=CPU)
        assert_close(linear(x), expected, "plain")
        assert_close(linear.added(x, residual), expected + residual, "with a residual")
        for name in ACTIVATIONS:
            assert_close(linear.activated(x, name), activation(name)(expected), name)
    assert torch.equal(residual, kept), "the residual is only read"


@pytest.mark.parametrize("kind", KINDS)
def test_linears_side_by_side(kind: str) -> None:
    modules = [random_linear(8, width, width) for width in (8, 8, 5)]
    x = random_rows(11, 8)
    with torch.inference_mode():
        expected = torch.cat([module(x) for module in modules], dim=1)
        assert_close(make_linear(kind, *modules, dtype=torch.float32, device=CPU)(x), expected, "fused")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_in_half_precision_runs_varlen(dtype: torch.dtype) -> None:
    assert choose_kernels(CUDA, dtype) == Kernels(linear="torch", attention="varlen")


def test_cuda_in_full_precision_runs_groups() -> None:
    assert choose_kernels(CUDA, torch.float32) == Kernels(linear="torch", attention="groups")


@pytest.mark.parametrize(("head_width", "attention"), [(8, "varlen"), (256, "varlen"), (12, "groups"), (264, "groups")])
def test_varlen_takes_heads_of_certain_widths(head_width: int, attention: str) -> None:
    assert choose_kernels(CUDA, torch.bfloat16, head_widths=[64, head_width]).attention == attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_chosen_on_this_machine_runs_on_it(dtype: torch.dtype) -> None:
    chosen = choose_kernels(CPU, dtype)
    assert chosen.attention == "blocks"
    check_kernels(chosen, CPU, dtype)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's blocked layouts are x86's")
def test_onednn_is_there_where_torch_is_built_with_it() -> None:
    # Else every test of it above would be left out in silence, and the packed form slow.
    assert torch.backends.mkldnn.is_available() == onednn_works(torch.float32)


def test_linears_that_disagree_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(kernels.OneDnnLinear):
        def __call__(self, x_TD: Tensor) -> Tensor:
            return super().__call__(x_TD) + 0.01

    monkeypatch.setattr(kernels, "OneDnnLinear", Wrong)
    assert choose_kernels(CPU, torch.float32).linear == "torch"
    with pytest.raises(DeviceError, match="onednn"):
        check_kernels(Kernels(linear="onednn", attention="groups"), CPU, torch.float32)


def test_operators_that_are_absent_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(kernels.OneDnnLinear):
        def __init__(self, weight: Tensor, bias: Tensor) -> None:
            raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(kernels, "OneDnnLinear", Absent)
    assert choose_kernels(CPU, torch.float32).linear == "torch"


@pytest.mark.parametrize(
    ("chosen", "device", "message"),
    [
        (Kernels(linear="mkl", attention="groups"), CPU, "unknown to this version"),
        (Kernels(linear="torch", attention="flash"), CPU, "unknown to this version"),
        (Kernels(linear="torch", attention="varlen"), CPU, "varlen: needs a CUDA device"),
        (Kernels(linear="torch", attention="blocks"), CUDA, "blocks: needs a CPU"),
        (Kernels(linear="onednn", attention="groups"), CUDA, "onednn.*not to be had"),
    ],
    ids=str,
)
def test_kernels_that_are_not_to_be_had_are_refused(chosen: Kernels, device: torch.device, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        check_kernels(chosen, device, torch.float32)


def test_half_precision_on_a_cpu_runs_no_onednn() -> None:
    assert choose_kernels(CPU, torch.float16).linear == "torch"


def test_plain_form() -> None:
    chosen = Kernels(linear="torch", attention="groups")
    assert chosen.as_dict() == {"linear": "torch", "attention": "groups"}
    assert Kernels(**chosen.as_dict()) == chosen
