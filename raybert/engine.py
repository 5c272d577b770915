"""The engine: texts to windows, windows to token batches, batches through the encoder, answers in order.

    texts ── task.encode ──> Windows ── plan_batches ──> token batches ── encoder ──> hidden_TD
                                                                                │ task.reduce
    answers <── task.decode <── arrays in the windows' order <──────────────────┘

On a CPU the engine runs several *streams*: threads that each take the next token batch and compute it with one
thread of arithmetic. Two streams were measured faster than one stream of two threads (8,500 against 7,300
tokens/s, MiniLM, fp32, 2 cores), and the bits of an answer don't depend on how many streams there are.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from raybert.config import DEVICES, DTYPES, one_of
from raybert.errors import DeviceError, SettingsError
from raybert.model.kernels import Kernels, check_kernels, choose_kernels
from raybert.model.loading import load_trunk
from raybert.model.packed import TokenBatch, make_encoder
from raybert.tasks import Task
from raybert.tasks.arrays import Arrays
from raybert.tasks.collected import Collected
from raybert.text.batching import plan_batches
from raybert.text.encoding import Int32s, Sequences, ranges
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
        if self.dtype == "bfloat16" and not native_bfloat16(self.device):
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
    *, device: str = "auto", dtype: str = "auto", budget: int | None = None, tasks: Iterable[Task] = ()
) -> EngineSettings:
    """Resolve every ``auto`` on this machine.

    Args:
        device: auto (cuda where torch sees one), cpu or cuda.
        dtype: auto (bfloat16 where the hardware has it natively, else float32), float32, bfloat16 or float16.
        budget: tokens of one forward; None takes the device's own.
        tasks: that will run so; the widths of their trunks' attention heads decide too.

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
        dtype = "bfloat16" if native_bfloat16(device) else "float32"
    if dtype == "float16" and device == "cpu":
        raise DeviceError("dtype float16: a CPU emulates it, five times slower than bfloat16; pass bfloat16 or float32")
    if dtype == "bfloat16" and not native_bfloat16(device):
        raise DeviceError(f"dtype bfloat16: this machine's {device} has no native bfloat16; pass float32")
    if budget is not None and budget < 1:
        raise SettingsError(f"budget {budget}: takes a whole number of tokens from 1")
    configs = [task.checkpoint.config for task in tasks]
    widths = [config.hidden_size // config.num_attention_heads for config in configs]
    return EngineSettings(
        device=device,
        dtype=dtype,
        kernels=choose_kernels(torch.device(device), torch_dtype(dtype), head_widths=widths or (64,)),
        budget=budget or _BUDGET[device],
        versions=library_versions(),
    )


def native_bfloat16(device: str) -> bool:
    """Whether this machine's ``cpu`` or ``cuda`` computes in bfloat16 by itself."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    # The instruction set itself: oneDNN also says yes where it only emulates (pytorch#146508, up to 499 times slower).
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def default_threads(settings: EngineSettings) -> int:
    """Streams of a process that has the machine: one on each processor that it may use, and one on a GPU."""
    if settings.device != "cpu":  # several would cut a call into small batches and queue there all the same
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # CPUs have no type of their own


@dataclass(frozen=True, eq=False)
class Head:
    """A task and its weights, on the device of the trunk that it reads."""

    task: Task
    module: nn.Module


class Trunk:
    """One encoder and the heads that read it: windows in, a few numbers a head out.

    Attributes:
        settings: that it obeys.
        threads: how many streams there are on a CPU.
        device: that it computes on.
    """

    def __init__(self, heads: Mapping[str, Task], settings: EngineSettings, *, threads: int = 1) -> None:
        """Load weights.

        Args:
            heads: tasks of one trunk, by head name.
            settings: obeyed to the letter; call `EngineSettings.check` first on a foreign machine.
            threads: streams on a CPU; has no influence on the answers.
        """
        self.settings, self.threads = settings, threads
        self.device, dtype = torch.device(settings.device), torch_dtype(settings.dtype)
        model, _ = load_trunk(next(iter(heads.values())).checkpoint)
        self._encoder = make_encoder(model, dtype=dtype, device=self.device, kernels=settings.kernels)
        self._modules: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
        self._heads = {name: self.ready(task) for name, task in heads.items()}
        self._streams: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    @property
    def streams(self) -> ThreadPoolExecutor:
        """The threads that compute; they start when they are first needed, so that a process may fork before."""
        with self._starting:
            if self._streams is None:
                self._streams = _start_streams(self.threads)
        return self._streams

    def ready(self, task: Task) -> Head:
        """A head of this trunk with its weights loaded; heads that differ in nothing of them share one module."""
        key = task.module_key
        module = self._modules.get(key)
        if module is None:
            module = self._modules[key] = task.module().to(self.device).eval()
        return Head(task, module)

    def run(
        self,
        sequences: Sequences,
        parts: Mapping[str, Int32s | None],
        *,
        spread: bool = False,
        here: bool = False,
        turn: AbstractContextManager[Any] | None = None,
        others: Mapping[str, Head] = MappingProxyType({}),
    ) -> dict[str, Arrays]:
        """Compute heads; each window goes through the encoder once, however many of them read it.

        Args:
            sequences: the windows; there may be none.
            parts: head name -> which windows it reads, each at most once; None: all of them.
            spread: divide a small call over all streams. Batches then depend on the number of streams, which a
                job must not let happen.
            here: compute on the calling thread, which must have one thread of arithmetic, as `streams` do.
            turn: held until the last batch is handed to the streams. With one lock for all of them, calls from several
                threads are computed one after the other, and no stream idles while one call ends and the next begins.
            others: heads that the trunk was not made with, by the names that they have in ``parts``; of `ready`.

        Returns:
            For each head what it makes of its windows, in its order of them.
        """
        heads = {name: others.get(name) or self._heads[name] for name in parts}
        collected = {name: Collected(heads[name].task, sequences.n_windows, part) for name, part in parts.items()}
        if sequences.n_windows == 0:
            return {name: each.arrays() for name, each in collected.items()}
        budget = self.settings.budget
        if spread:
            budget = _even_budget(sequences.lengths, budget, self.threads)
        plan = plan_batches(sequences.lengths, budget)
        starts = sequences.starts

        def compute(index: np.ndarray) -> list[_Found]:
            wanted = [(name, heads[name], each) for name, each in collected.items()]
            return self._within_memory(sequences, starts, index, wanted)

        # A lone batch of an interactive call has nothing beside it: all of torch's own threads serve it.
        alone = spread and len(plan) == 1
        results = (compute(index) for index in plan) if alone or here else self._in_streams(compute, plan, turn)
        with closing(results):
            for found in results:
                for name, index, values, counts in found:
                    collected[name].add(index, values.cpu().numpy(), None if counts is None else counts.cpu().numpy())
        return {name: each.arrays() for name, each in collected.items()}

    def _within_memory(
        self, sequences: Sequences, starts: np.ndarray, index: np.ndarray, wanted: Sequence[_Wanted]
    ) -> list[_Found]:
        """One forward, or as many as fit where the device has no memory for it.

        Whose memory is short can be anybody's doing on a shared device, so that the next batch is tried whole again.
        """
        try:
            return self._compute(sequences, starts, index, wanted)
        except (RuntimeError, MemoryError) as error:
            if len(index) == 1 or not is_out_of_memory(error):
                raise
        # Only here, where the error is gone, are the tensors that its traceback held.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        halves = (index[: len(index) // 2], index[len(index) // 2 :])
        return [found for half in halves for found in self._within_memory(sequences, starts, half, wanted)]

    def _compute(
        self, sequences: Sequences, starts: np.ndarray, index: np.ndarray, wanted: Sequence[_Wanted]
    ) -> list[_Found]:
        """One forward, and what each head makes of those of its windows that are in it."""
        batch, lengths = gather(sequences, starts, index, self.device), sequences.lengths[index]
        found: list[_Found] = []
        with torch.inference_mode():
            # Where no head reads another token, the last layer computes each window's first one alone.
            first_only = all(head.task.reads == "first" for _, head, _ in wanted)
            hidden_TD = self._encoder(batch, first_only=first_only)
            if first_only:
                batch, lengths = batch.firsts(), np.ones_like(lengths)
            for name, head, each in wanted:
                own = each.own(index)
                if len(own):
                    states, read = _of_some(hidden_TD, batch, lengths, own)
                    values, counts = head.task.reduce(states, head.module, read)
                    found.append((name, index[own], values, counts))
        return found

    def _in_streams(
        self,
        compute: Callable[[np.ndarray], Any],
        plan: Sequence[np.ndarray],
        turn: AbstractContextManager[Any] | None,
    ) -> Generator[Any]:
        """Results of ``compute`` over the plan, in order, a few batches ahead of the reader."""
        ahead: deque[Future[Any]] = deque()
        try:
            with turn or nullcontext():
                for index in plan:
                    ahead.append(self.streams.submit(compute, index))
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
        if self._streams is not None:
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


def gather(sequences: Sequences, starts: np.ndarray, index: np.ndarray, device: torch.device) -> TokenBatch:
    """The token batch of the windows ``index``, in that order."""
    lengths = sequences.lengths[index]
    if len(index) == sequences.n_windows and (np.diff(index) == 1).all():  # all of them, in their own order
        return TokenBatch.of(sequences.ids, lengths, sequences.type_ids, device)
    where = ranges(starts[index], lengths)
    types = None if sequences.type_ids is None else sequences.type_ids[where]
    return TokenBatch.of(sequences.ids[where], lengths, types, device)


def _of_some(hidden_TD: Tensor, batch: TokenBatch, lengths: np.ndarray, own: np.ndarray) -> tuple[Tensor, TokenBatch]:
    """Hidden states and batch of the sequences ``own`` alone."""
    if len(own) == len(lengths):
        return hidden_TD, batch
    begins = np.cumsum(lengths, dtype=np.int64) - lengths
    tokens = torch.from_numpy(ranges(begins[own], lengths[own])).to(hidden_TD.device, non_blocking=True)
    return hidden_TD[tokens], batch.select(tokens, lengths[own])


_Found = tuple[str, np.ndarray, Tensor, Tensor | None]
"""Head, its windows in a batch, their numbers, and how many rows each has."""
_Wanted = tuple[str, Head, Collected]
