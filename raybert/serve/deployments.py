"""What the deployments of the Ray Serve graph run: an ingress that speaks HTTP, and one for each encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raybert.cluster import limit_worker_threads
from raybert.engine import EngineSettings, choose_settings, default_threads
from raybert.serve.batcher import Answer, Parts
from raybert.serve.collocated import Collocated, TrunkEncoder
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.readings import Readings
from raybert.serve.routes import make_app
from raybert.serve.security import ApiKeys
from raybert.serve.service import Service
from raybert.serve.settings import ServiceArgs
from raybert.tasks import Task, make_task
from raybert.text.encoding import Sequences


def open_tasks(args: ServiceArgs) -> dict[str, Task]:
    """The heads by the names under which they are served; no weight is read."""
    return {head.served_name: make_task(head.spec()) for head in args.heads}


def _settings(args: ServiceArgs, tasks: Mapping[str, Task]) -> EngineSettings:
    return choose_settings(device=args.device, dtype=args.dtype, budget=args.budget, tasks=tasks.values())


class Encoder:
    """One BERT and its heads: windows in, numbers out.

    Args:
        args: of the application.
        names: its heads.
    """

    def __init__(self, args: ServiceArgs, names: tuple[str, ...]) -> None:
        limit_worker_threads()
        tasks = {name: task for name, task in open_tasks(args).items() if name in names}
        settings = _settings(args, tasks)
        workers = args.threads or default_threads(settings)
        self._encoder = TrunkEncoder(tasks, settings, Readings(tasks), workers=workers)

    async def compute(self, sequences: Sequences, parts: Parts, bulk: bool) -> Answer:
        """As `Batcher.compute`."""
        return await self._encoder.compute(sequences, parts, bulk=bulk)

    async def check(self) -> None:
        """As `Pulse.check`."""
        await self._encoder.check()

    async def facts(self) -> dict[str, Any]:
        """What decides the bits."""
        return await self._encoder.facts()

    async def check_health(self) -> None:
        """What Ray Serve asks; a replica that raises here is replaced."""
        await self._encoder.check()

    async def __del__(self) -> None:
        """End the threads, when what is under way is through."""
        await self._encoder.close()


class RemoteEncoder:
    """A deployment of `Encoder` as the ingress sees it.

    Inference has no side effects: what a replica that died had under way is asked of another one, once.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def compute(self, sequences: Sequences, parts: Parts, *, bulk: bool = False) -> Answer:
        """As `Batcher.compute`."""
        try:
            return await self._asked(sequences, parts, bulk)
        except RayActorError:
            pass
        try:
            return await self._asked(sequences, parts, bulk)
        except (RayActorError, RayServeException) as error:
            raise ServiceError(Fault.NOT_READY, "no replica of the model is ready", retry_after_s=5) from error

    async def check(self) -> None:
        """Return if a replica computes.

        Raises:
            Unhealthy: none does.
        """
        try:
            async with asyncio.timeout(HANGS_S):
                await self._handle.check.remote()
        except Exception as error:
            raise Unhealthy(first_line(error)) from error

    async def facts(self) -> dict[str, Any]:
        """What decides the bits."""
        found: dict[str, Any] = await self._handle.facts.remote()
        return found

    async def _asked(self, sequences: Sequences, parts: Parts, bulk: bool) -> Answer:
        answer: Answer = await self._handle.compute.remote(sequences, dict(parts), bulk)
        return answer


class Ingress:
    """Speaks HTTP; collocated, it computes too.

    Args:
        args: of the application.
        encoders: by the name of an encoder's first head; none where this process computes.
    """

    def __init__(self, args: ServiceArgs, encoders: Mapping[str, DeploymentHandle[Any]]) -> None:
        limit_worker_threads()
        self._args = args
        tasks = open_tasks(args)
        if encoders:
            computes = {name: RemoteEncoder(handle) for name, handle in encoders.items()}
            self._service = Service(tasks, computes, Readings(tasks))
        else:
            settings = _settings(args, tasks)
            workers = args.threads or default_threads(settings)
            self._service = Collocated(tasks, settings, workers=workers).service

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve calls once this is made."""
        file = self._args.api_key_file
        keys = ApiKeys.from_environment(os.environ, file=None if file is None else Path(file))
        return make_app(self._service, limits=self._args.limits, keys=keys)
