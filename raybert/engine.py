"""The engine: texts to windows, windows to token batches, batches through the encoder, answers in order.

    texts ── task.encode ──> Windows ── plan_batches ──> token batches ── encoder ──> hidden_TD
                                                                             │ task.reduce
    answers <── task.decode <── arrays in the windows' order <───────────────┘

On a CPU the engine runs several *streams*: threads that each take the next token batch and compute it with one
thread of arithmetic. Two streams were measured faster than one stream of two threads (8,500 against 7,300
tokens/s, MiniLM, fp32, 2 cores), and the bits of an answer don't depend on how many streams there are.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybert.config import DEVICES, DTYPES, one_of
from raybert.errors import DeviceError, SettingsError
from raybert.model.kernels import Kernels, check_kernels, choose_kernels
from raybert.model.loading import load_trunk
from raybert.model.packed import TokenBatch, make_encoder
from raybert.tasks import Task
from raybert.text.batching import plan_batches
from raybert.text.encoding import Windows
from raybert.version import VERSION

# Tokens of one forward. CPU: activations of 2,048 tokens stay in a core's cache (8,500 tokens/s against 7,900 at
# 8,192, MiniLM fp32). CUDA: enough rows to fill the device.
_BUDGET = {"cpu": 2048, "cuda": 65536}
_LIBRARIES = ("torch", "tokenizers", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What decides the bits of an answer: chosen once, imposed on every actor of a run.

    Attributes:
        device: cpu or cuda.
        dtype: float32, bfloat16 or float16.
        kernels: operators of the packed encoder.
        budget: tokens that one forward may hold.
        versions: of the libraries that compute.
    """

    device: str
    dtype: str
    kernels: Kernels
    budget: int
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain form for manifests."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EngineSettings:
        """Read the plain form."""
        return cls(**{**plain, "kernels": Kernels(**plain["kernels"])})

    def check(self) -> None:
        """Refuse to run where these settings can't be obeyed.

        Raises:
            DeviceError: naming what is missing or of another version.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("device cuda: none on this machine; the run was begun on one")
        for library, version in library_versions().items():
            if self.versions.get(library) != version:
                raise DeviceError(
                    f"{library} {version} here, {self.versions.get(library)} in the run's manifest: "
                    f"answers could differ; install that version, or start again with --overwrite"
                )
        if self.dtype == "bfloat16" and not _native_bfloat16(self.device):
            raise DeviceError(f"dtype bfloat16: not native on this machine's {self.device}; the run was begun with it")
        check_kernels(self.kernels, torch.device(self.device), torch_dtype(self.dtype))


def library_versions() -> dict[str, str]:
    """Versions of everything that decides the bytes of an answer or of a part."""
    return {"raybert": VERSION, **{name: metadata.version(name) for name in _LIBRARIES}}


def torch_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16 as torch's."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def choose_settings(
    *, device: str = "auto", dtype: str = "auto", budget: int | None = None, head_width: int = 64
) -> EngineSettings:
    """Resolve every ``auto`` on this machine.

    Args:
        device: auto (cuda where torch sees one), cpu or cuda.
        dtype: auto (bfloat16 where the hardware has it natively, else float32), float32, bfloat16 or float16.
        budget: tokens of one forward; None takes the device's own.
        head_width: width of one attention head.

    Raises:
        SettingsError: a value is unknown or out of range.
        DeviceError: the device or dtype is not to be had here.
    """
    one_of("device", device, DEVICES)
    one_of("dtype", dtype, DTYPES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device cuda: torch sees none on this machine; pass device='cpu'")
    if dtype == "auto":
        dtype = "bfloat16" if _native_bfloat16(device) else "float32"
    if dtype == "float16" and device == "cpu":
        raise DeviceError("dtype float16: a CPU emulates it, five times slower than bfloat16; pass bfloat16 or float32")
    if dtype == "bfloat16" and not _native_bfloat16(device):
        raise DeviceError(f"dtype bfloat16: this machine's {device} has no native bfloat16; pass float32")
    if budget is not None and budget < 1:
        raise SettingsError(f"budget {budget}: takes a whole number of tokens from 1")
    return EngineSettings(
        device=device,
        dtype=dtype,
        kernels=choose_kernels(torch.device(device), torch_dtype(dtype), head_width=head_width),
        budget=budget or _BUDGET[device],
        versions=library_versions(),
    )


def _native_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    # The instruction set itself: oneDNN also says yes where it only emulates (pytorch#146508, up to 499 times slower).
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def default_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Trunk:
    """One encoder and the heads that read it: windows in, one array a head out."""

    def __init__(self, heads: Mapping[str, Task], settings: EngineSettings, *, threads: int = 1) -> None:
        """Load weights.

        Args:
            heads: tasks of one trunk, by head name.
            settings: obeyed to the letter; call `EngineSettings.check` first on a foreign machine.
            threads: streams on a CPU; has no influence on the answers.
        """
        self.heads, self.settings, self.threads = dict(heads), settings, threads
        self.device, dtype = torch.device(settings.device), torch_dtype(settings.dtype)
        model, _ = load_trunk(next(iter(heads.values())).checkpoint)
        self._encoder = make_encoder(model, dtype=dtype, device=self.device, kernels=settings.kernels)
        self._modules: dict[str, nn.Module] = {
            name: task.module().to(self.device).eval() for name, task in heads.items()
        }
        self._streams = _start_streams(threads)

    def run(self, windows: Windows, names: Sequence[str], *, spread: bool = False) -> dict[str, np.ndarray]:
        """Compute the heads ``names`` for all windows.

        Args:
            windows: encoded items; may be empty.
            names: which heads.
            spread: divide a small call over all streams. Batches then depend on the number of streams, which a
                job must not let happen.

        Returns:
            For each head float32 [W, width], in the windows' order.
        """
        answers = {name: np.empty((windows.n_windows, self.heads[name].width), np.float32) for name in names}
        if windows.n_windows == 0:
            return answers
        budget = self.settings.budget
        if spread:
            budget = _even_budget(windows.lengths, budget, self.threads)
        plan = plan_batches(windows.lengths, budget)
        starts = windows.starts

        def compute(index: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
            batch = gather(windows, starts, index, self.device)
            with torch.inference_mode():
                hidden_TD = self._encoder(batch)
                return index, {
                    name: self.heads[name].reduce(hidden_TD, self._modules[name], batch.layout) for name in names
                }

        # A lone batch of an interactive call has nothing beside it: all of torch's own threads serve it.
        alone = spread and len(plan) == 1
        results = (compute(index) for index in plan) if alone else self._in_streams(compute, plan)
        with closing(results):
            for index, arrays in results:
                for name, array in arrays.items():
                    answers[name][index] = array.cpu().numpy()
        return answers

    def _in_streams(self, compute: Callable[[np.ndarray], Any], plan: Sequence[np.ndarray]) -> Generator[Any]:
        """Results of ``compute`` over the plan, in order, a few batches ahead of the reader."""
        ahead: deque[Future[Any]] = deque()
        try:
            for index in plan:
                ahead.append(self._streams.submit(compute, index))
                if len(ahead) > 2 * self.threads:
                    yield ahead[0].result()
                    ahead.popleft()
            while ahead:
                yield ahead[0].result()
                ahead.popleft()
        finally:  # after an error or Ctrl-C nothing goes on computing what nobody reads
            for future in ahead:
                future.cancel()
            wait(ahead)

    def close(self) -> None:
        """End the streams' threads; safe to repeat."""
        self._streams.shutdown(wait=True)


def _even_budget(lengths: np.ndarray, budget: int, streams: int) -> int:
    """A budget near ``budget`` under which every stream gets as many batches, so that none computes alone at the end.

    Half of the longest window is added, since a batch seldom ends exactly at its budget.
    """
    total = int(lengths.sum(dtype=np.int64))
    turns = math.ceil(total / (budget * streams))
    return math.ceil(total / (turns * streams)) + int(lengths.max()) // 2


def _start_streams(threads: int) -> ThreadPoolExecutor:
    """A pool of threads that compute with one thread of arithmetic each, all of them started.

    torch keeps that number per thread, and one more that later threads start from. Setting it here and not at
    every call keeps the callers' own number as it is, however many call at once.
    """
    torch_threads = torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # what a thread sets before it has asked once is lost
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="raybert-stream", initializer=start)
    try:
        for _ in range(threads):
            pool.submit(int)
        started.wait()
    except BaseException:  # Ctrl-C: those that have started must not wait for ever
        started.abort()
        raise
    finally:
        torch.set_num_threads(torch_threads)
    return pool


def gather(windows: Windows, starts: np.ndarray, index: np.ndarray, device: torch.device) -> TokenBatch:
    """The token batch of the windows ``index``, in that order."""
    lengths = windows.lengths[index].astype(np.int64)
    shift = np.repeat(starts[index] - (np.cumsum(lengths) - lengths), lengths)
    where = np.arange(int(lengths.sum())) + shift
    types = None if windows.type_ids is None else windows.type_ids[where]
    return TokenBatch.of(windows.ids[where], lengths, types, device)
