"""Heads computed in the process that answers: no hop between a request and its forward."""

from __future__ import annotations

from collections.abc import Mapping

from raybert.engine import EngineSettings, Trunk
from raybert.serve.batcher import Batcher
from raybert.serve.service import Service
from raybert.tasks import Task
from raybert.tasks.program import group_heads


class Collocated:
    """A `Service` with its encoders beside it.

    Args:
        tasks: the heads, by the names under which they are served.
        settings: what decides the bits.
        workers: batches computed at once on a CPU, with one thread of arithmetic each.
    """

    def __init__(self, tasks: Mapping[str, Task], settings: EngineSettings, *, workers: int) -> None:
        self._trunks: dict[str, Trunk] = {}
        for names in group_heads(tasks).trunks:
            self._trunks[names[0]] = Trunk({name: tasks[name] for name in names}, settings, threads=workers)
        self._batchers = {
            name: Batcher(trunk, budget=settings.budget, workers=workers) for name, trunk in self._trunks.items()
        }
        self.service = Service(tasks, self._batchers)

    async def close(self) -> None:
        """Wait for what is under way, and end all threads."""
        for batcher in self._batchers.values():
            await batcher.close()
        self.service.close()
        for trunk in self._trunks.values():
            trunk.close()
