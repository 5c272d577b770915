"""Heads computed in the process that answers: no hop between a request and its forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from opentelemetry.trace import Tracer

from raybert.engine import EngineSettings, Trunk
from raybert.serve.batcher import Answer, Batcher, Parts
from raybert.serve.health import Pulse
from raybert.serve.metrics import Meters
from raybert.serve.readings import Readings, ReadingTrunk
from raybert.serve.service import Service
from raybert.tasks import Task
from raybert.tasks.program import group_heads
from raybert.text.encoding import Sequences


class TrunkEncoder:
    """One BERT, its heads and their readings, fed by a batcher; warm once it is made.

    Args:
        tasks: its heads.
        settings: what decides the bits.
        readings: of the service.
        meters: count its batches.
        workers: batches computed at once on a CPU, with one thread of arithmetic each.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        settings: EngineSettings,
        readings: Readings,
        meters: Meters,
        *,
        workers: int,
    ) -> None:
        self._meters = meters
        # Answering is quick and computing is not: where both want a processor, requests are taken in and refused first.
        self._trunk = Trunk(tasks, settings, threads=workers, yields=True)
        self._settings = settings
        self._names = list(tasks)
        first, longest = next(iter(tasks.values())), max(task.max_length for task in tasks.values())
        self._short = _windows(first, 1, 3)
        # Memory is taken and kernels are made before the first request, by the largest batch and the smallest.
        self._forward(_windows(first, max(1, settings.budget // longest), longest))
        self._forward(self._short)
        self.pulse = Pulse(lambda: self._forward(self._short))
        self._batcher = Batcher(
            ReadingTrunk(self._trunk, frozenset(tasks), readings),
            budget=settings.budget,
            workers=workers,
            device=settings.device,
            computed=self._computed,
        )

    async def compute(self, sequences: Sequences, parts: Parts, *, bulk: bool = False) -> Answer:
        """As `Batcher.compute`."""
        return await self._batcher.compute(sequences, parts, bulk=bulk)

    async def check(self) -> None:
        """As `Pulse.check`."""
        await self.pulse.check()

    async def facts(self) -> dict[str, Any]:
        """What decides the bits, in plain values."""
        return self._settings.as_dict()

    async def close(self) -> None:
        """Wait for what is under way, and end all threads."""
        await self._batcher.close()
        self.pulse.close()
        self._trunk.close()

    def _computed(self, requests: int, tokens: int, seconds: float) -> None:
        self.pulse.beat()
        self._meters.batch(requests, tokens, seconds)

    @property
    def tokens_waiting(self) -> int:
        """Tokens that no batch has taken yet."""
        return self._batcher.tokens_waiting

    def _forward(self, windows: Sequences) -> None:
        self._trunk.run(windows, dict.fromkeys(self._names))


def _windows(task: Task, count: int, length: int) -> Sequences:
    """Windows of unknown words."""
    tokenizer = task.tokenizer()
    row = np.full(length, tokenizer.unk_id, np.int32)
    row[0], row[-1] = tokenizer.cls_id, tokenizer.sep_id
    return Sequences(ids=np.tile(row, count), lengths=np.full(count, length, np.int32))


class Collocated:
    """A `Service` with its encoders beside it.

    Args:
        tasks: the heads, by the names under which they are served.
        settings: what decides the bits.
        meters: count.
        workers: batches computed at once on a CPU, with one thread of arithmetic each.
        tracer: of the service.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        settings: EngineSettings,
        meters: Meters,
        *,
        workers: int,
        tracer: Tracer | None = None,
    ) -> None:
        readings = Readings(tasks)
        self._encoders: dict[str, TrunkEncoder] = {}
        for names in group_heads(tasks).trunks:
            own = {name: tasks[name] for name in names}
            self._encoders[names[0]] = TrunkEncoder(own, settings, readings, meters, workers=workers)
        encoders = tuple(self._encoders.values())
        meters.waiting.set_function(lambda: sum(encoder.tokens_waiting for encoder in encoders))
        self.service = Service(tasks, self._encoders, readings, tracer=tracer)

    async def check(self) -> None:
        """As `Pulse.check`, of each encoder."""
        for encoder in self._encoders.values():
            await encoder.check()

    async def close(self) -> None:
        """Wait for what is under way, and end all threads."""
        for encoder in self._encoders.values():
            await encoder.close()
        self.service.close()
