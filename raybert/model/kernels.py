"""Which operators a packed encoder runs on: probed once, written down, imposed everywhere else.

The probe measures; what it chose is plain data (`Kernels`) that a run stores and hands to every actor, since
two choices give answers that differ in the last bits.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybert.errors import DeviceError
from raybert.model.activations import activation

LINEARS = ("torch", "onednn")
ATTENTIONS = ("groups", "blocks", "varlen")


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Names of the operators: ``linear`` torch or onednn, ``attention`` groups, blocks or varlen."""

    linear: str
    attention: str

    def as_dict(self) -> dict[str, str]:
        """Plain form for manifests."""
        return asdict(self)


class TorchLinear:
    """``x @ W.T + b`` by `torch.nn.functional.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Apply to [T, D]."""
        return F.linear(x_TD, self.weight, self.bias)

    def activated(self, x_TD: Tensor, name: str) -> Tensor:
        """Apply, then the activation of that name."""
        return activation(name)(F.linear(x_TD, self.weight, self.bias))

    def added(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """Apply, then add ``residual_TD``."""
        return F.linear(x_TD, self.weight, self.bias).add_(residual_TD)


class OneDnnLinear:
    """The same with weights in oneDNN's blocked layout, activation and residual inside the product.

    oneDNN has no gradient for these operators: they are reached under `torch.inference_mode` only.
    """

    # hidden_act -> (operator's name, its algorithm); others run after the product
    _FUSED: ClassVar = {"gelu": ("gelu", "none"), "relu": ("relu", ""), "linear": ("none", "")}

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = bias

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Apply to [T, D]."""
        return self._pointwise(x_TD, "none", "")

    def activated(self, x_TD: Tensor, name: str) -> Tensor:
        """Apply, then the activation of that name."""
        if name in self._FUSED:
            return self._pointwise(x_TD, *self._FUSED[name])
        return activation(name)(self(x_TD))

    def added(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        """Apply, then add ``residual_TD``."""
        y_TD: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_TD, residual_TD, self.weight, self.bias, "add")
        return y_TD

    def _pointwise(self, x_TD: Tensor, operator: str, algorithm: str) -> Tensor:
        y_TD: Tensor = torch.ops.mkldnn._linear_pointwise(x_TD, self.weight, self.bias, operator, [], algorithm)
        return y_TD


Linear = TorchLinear | OneDnnLinear


def make_linear(kind: str, *modules: nn.Linear, dtype: torch.dtype, device: torch.device) -> Linear:
    """One linear of several side by side (fused QKV is ``make_linear(kind, query, key, value)``).

    Args:
        kind: one of `LINEARS`.
        *modules: linears of equal input width; outputs follow one another.
        dtype: of the arithmetic.
        device: where it runs.
    """
    weight = torch.cat([module.weight.detach() for module in modules]).to(device, dtype).contiguous()
    bias = torch.cat([module.bias.detach() for module in modules]).to(device, dtype).contiguous()
    return OneDnnLinear(weight, bias) if kind == "onednn" else TorchLinear(weight, bias)


def choose_kernels(device: torch.device, dtype: torch.dtype, *, head_widths: Collection[int] = (64,)) -> Kernels:
    """Probe this machine once.

    oneDNN's prepacked linears are private operators: they must exist, agree with `F.linear`, and not be much
    slower. Measured at 2,048 x 384 x 1,536 on one core, against MKL: 1.1 times as fast on Zen 4, 2.3 times on
    Zen 5 in fp32. The margin of 1.5 keeps a noisy probe from flipping the choice between two runs, whose answers
    would then differ in their last bits.
    """
    if device.type == "cuda":
        half = dtype in (torch.float16, torch.bfloat16)
        return Kernels(linear="torch", attention="varlen" if half and all(map(_has_varlen, head_widths)) else "groups")
    fits = dtype in (torch.float32, torch.bfloat16) and _onednn_agrees(dtype)
    use = fits and _slowdown(dtype) <= 1.5
    return Kernels(linear="onednn" if use else "torch", attention="blocks")


def check_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse kernels that this machine does not have; a run's kernels are imposed, never replaced.

    Raises:
        DeviceError: naming the kernel.
    """
    if kernels.linear not in LINEARS or kernels.attention not in ATTENTIONS:
        raise DeviceError(f"kernels {kernels.as_dict()}: unknown to this version of raybert")
    if kernels.linear == "onednn" and not (device.type == "cpu" and _onednn_agrees(dtype)):
        raise DeviceError(f"kernel linear=onednn in {dtype}: not to be had on this machine ({device})")
    if kernels.attention == "blocks" and device.type != "cpu":
        raise DeviceError(f"kernel attention=blocks: needs a CPU, this is {device}")
    if kernels.attention == "varlen" and device.type != "cuda":
        raise DeviceError(f"kernel attention=varlen: needs a CUDA device, this is {device}")


def _has_varlen(head_width: int) -> bool:
    """Whether torch has the kernel and it takes heads of this width (flash attention: multiples of 8 to 256)."""
    try:
        import torch.nn.attention.varlen  # noqa: F401
    except ImportError:
        return False
    return head_width % 8 == 0 and head_width <= 256


def _probe_operands(dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, 384), generator=generator)
    weight = torch.randn((1536, 384), generator=generator) * 0.05
    bias = torch.randn((1536,), generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def _onednn_agrees(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    with torch.inference_mode():
        x, weight, bias = _probe_operands(dtype, 33)
        residual = torch.ones((33, 1536), dtype=dtype)
        plain = TorchLinear(weight, bias)
        try:
            packed = OneDnnLinear(weight, bias)
            pairs = (
                (packed(x), plain(x)),
                (packed.activated(x, "gelu"), plain.activated(x, "gelu")),
                (packed.activated(x, "relu"), plain.activated(x, "relu")),
                (packed.added(x, residual), plain.added(x, residual)),
            )
        except (AttributeError, RuntimeError):  # private operators: absent or of another signature
            return False
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        return all(torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance) for a, b in pairs)


def _slowdown(dtype: torch.dtype) -> float:
    """Processor time of oneDNN's linear over torch's: the best of six turns each of the costliest shape of a layer."""
    with torch.inference_mode():
        x, weight, bias = _probe_operands(dtype, 512)
        seconds = []
        linears = (OneDnnLinear(weight, bias), TorchLinear(weight, bias))
        for linear in linears * 6:
            begin = time.thread_time()  # other processes take turns on the same cores: the clock would count them
            linear.activated(x, "gelu")
            seconds.append(time.thread_time() - begin)
    return min(seconds[::2]) / max(min(seconds[1::2]), 1e-9)
