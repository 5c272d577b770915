"""Heads computed in the process that answers: no hop between a request and its forward."""

from __future__ import annotations

from collections.abc import Mapping

from raybert.engine import EngineSettings, Trunk
from raybert.serve.batcher import Batcher
from raybert.serve.readings import Readings, ReadingTrunk
from raybert.serve.service import Service
from raybert.tasks import Task
from raybert.tasks.program import group_heads


class TrunkEncoder:
    """One BERT, its heads and their readings, fed by a batcher.

    Args:
        tasks: its heads.
        settings: what decides the bits.
        readings: of the service.
        workers: batches computed at once on a CPU, with one thread of arithmetic each.
    """

    def __init__(
        self, tasks: Mapping[str, Task], settings: EngineSettings, readings: Readings, *, workers: int
    ) -> None:
        self._trunk = Trunk(tasks, settings, threads=workers)
        runs = ReadingTrunk(self._trunk, frozenset(tasks), readings)
        self.batcher = Batcher(runs, budget=settings.budget, workers=workers, device=settings.device)

    async def close(self) -> None:
        """Wait for what is under way, and end all threads."""
        await self.batcher.close()
        self._trunk.close()


class Collocated:
    """A `Service` with its encoders beside it.

    Args:
        tasks: the heads, by the names under which they are served.
        settings: what decides the bits.
        workers: batches computed at once on a CPU, with one thread of arithmetic each.
    """

    def __init__(self, tasks: Mapping[str, Task], settings: EngineSettings, *, workers: int) -> None:
        readings = Readings(tasks)
        self._encoders: dict[str, TrunkEncoder] = {}
        for names in group_heads(tasks).trunks:
            own = {name: tasks[name] for name in names}
            self._encoders[names[0]] = TrunkEncoder(own, settings, readings, workers=workers)
        computes = {name: encoder.batcher for name, encoder in self._encoders.items()}
        self.service = Service(tasks, computes, readings)

    async def close(self) -> None:
        """Wait for what is under way, and end all threads."""
        for encoder in self._encoders.values():
            await encoder.close()
        self.service.close()
