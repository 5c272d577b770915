"""Heads computed beside the process that answers: no hop through Ray between a request and its forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.trace import Tracer

from raybert.engine import EngineSettings
from raybert.serve.batcher import Answer, Batcher
from raybert.serve.health import Pulse
from raybert.serve.metrics import Meters
from raybert.serve.pieces import Asked, Parts, unknown_words
from raybert.serve.process import EngineDied, EngineProcess, RemoteTrunk
from raybert.serve.readings import Readings
from raybert.serve.service import Service
from raybert.tasks import Task
from raybert.tasks.program import group_heads
from raybert.text.encoding import Sequences


class TrunkEncoder:
    """One BERT, its heads and their readings, fed by a batcher.

    Args:
        tasks: its heads.
        settings: what decides the bits.
        trunk: computes them.
        meters: count its batches.
        workers: batches computed at once on a CPU.
    """

    def __init__(
        self, tasks: Mapping[str, Task], settings: EngineSettings, trunk: RemoteTrunk, meters: Meters, *, workers: int
    ) -> None:
        self._settings, self._meters = settings, meters
        probe = Asked(sequences=unknown_words(next(iter(tasks.values())), 1, 3), parts=dict.fromkeys(tasks))
        self.pulse = Pulse(lambda: trunk.run([probe]), longest_s=trunk.longest_s)
        self._batcher = Batcher(
            trunk, budget=settings.budget, workers=workers, device=settings.device, computed=self._computed
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
        """Wait for what is under way."""
        await self._batcher.close()
        self.pulse.close()

    def _computed(self, requests: int, tokens: int, seconds: float) -> None:
        self.pulse.beat()
        self._meters.batch(requests, tokens, seconds)

    @property
    def tokens_waiting(self) -> int:
        """Tokens that no batch has taken yet."""
        return self._batcher.tokens_waiting


class Collocated:
    """A `Service` with its encoders beside it.

    Args:
        tasks: the heads, by the names under which they are served.
        settings: what decides the bits.
        meters: count.
        workers: batches computed at once on a CPU, with one thread of arithmetic each.
        tracer: of the service.
        died: as `EngineProcess` has it.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        settings: EngineSettings,
        meters: Meters,
        *,
        workers: int,
        tracer: Tracer | None = None,
        died: Callable[[EngineDied], None] = lambda _: None,
    ) -> None:
        trunks = [{name: tasks[name] for name in names} for names in group_heads(tasks).trunks]
        self._process = EngineProcess(trunks, settings, workers=workers, died=died)
        self._encoders = {
            next(iter(own)): TrunkEncoder(own, settings, self._process.trunk(place), meters, workers=workers)
            for place, own in enumerate(trunks)
        }
        encoders = tuple(self._encoders.values())
        meters.waiting.set_function(lambda: sum(encoder.tokens_waiting for encoder in encoders))
        self.service = Service(tasks, self._encoders, Readings(tasks), tracer=tracer)

    async def check(self) -> None:
        """As `Pulse.check`, of each encoder."""
        for encoder in self._encoders.values():
            await encoder.check()

    async def close(self) -> None:
        """Wait for what is under way, and end process and threads."""
        for encoder in self._encoders.values():
            await encoder.close()
        await self._process.close()
        self.service.close()
