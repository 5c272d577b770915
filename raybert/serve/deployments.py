"""What the deployments of the Ray Serve graph run: an ingress that speaks HTTP, and one for each encoder."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from opentelemetry.trace import SpanKind
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private.logging_utils import get_serve_logs_dir  # Ray Serve has no public word for it
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from raybert.cluster import first_line, limit_worker
from raybert.engine import EngineSettings, choose_settings, default_threads
from raybert.observability import LOGGER, log_requests
from raybert.serve.batcher import Answer
from raybert.serve.board import Board
from raybert.serve.collocated import Collocated, TrunkEncoder
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.health import HANGS_S, Unhealthy
from raybert.serve.memory import keep_giving_back, keep_what_is_there
from raybert.serve.metrics import Snapshot
from raybert.serve.pieces import Parts
from raybert.serve.process import EngineDied, EngineProcess
from raybert.serve.readings import Readings
from raybert.serve.routes import make_app
from raybert.serve.security import ApiKeys
from raybert.serve.service import Service
from raybert.serve.settings import ServiceArgs
from raybert.serve.tracing import Carrier, Tracing, carrier, parent_of, spanned
from raybert.tasks import Task, make_task
from raybert.text.encoding import Sequences

_LAST_WORD_S = 2.0
# A quarter of what the engine takes offline, and less where a token takes longer: nearly as many requests a second, and
# nobody waits long for a batch to end (jobs/load.py --budgets 256 320 512 1024).
_CPU_BUDGETS = {"bfloat16": 512, "float32": 320}


def open_tasks(args: ServiceArgs, names: Container[str] | None = None) -> dict[str, Task]:
    """The heads by the names under which they are served, or those of these names; no weight is read."""
    heads = [head for head in args.heads if names is None or head.served_name in names]
    return {head.served_name: make_task(head.spec()) for head in heads}


def _settings(args: ServiceArgs, tasks: Mapping[str, Task]) -> EngineSettings:
    chosen = choose_settings(device=args.device, dtype=args.dtype, budget=args.budget, tasks=tasks.values())
    own = args.budget is None and chosen.device == "cpu"
    return replace(chosen, budget=_CPU_BUDGETS[chosen.dtype]) if own else chosen


def _access_log() -> Path:
    """A file of this replica's in Ray Serve's folder of logs.

    On stderr Ray's log monitor would read each line, and send it on to whoever may listen.
    """
    replica = serve.get_replica_context().replica_id
    name = f"{replica.deployment_id.app_name}_{replica.deployment_id.name}_{replica.unique_id}"
    return Path(get_serve_logs_dir()) / f"access_{name}.log"


def _end_with_it(error: EngineDied) -> None:
    """End a replica whose engine has ended: Ray Serve replaces it at once, and repeats what may be repeated."""
    logging.getLogger(LOGGER).error("%s; so does this replica, to be replaced", error)
    os._exit(1)


class RemoteLedger:
    """The ledger as the other deployments see it."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def push(self, source: str, snapshot: Snapshot) -> None:
        """As `Ledger.push`."""
        await self._handle.push.remote(source, snapshot)

    async def text(self) -> bytes:
        """As `Ledger.text`."""
        found: bytes = await self._handle.text.remote()
        return found


class Replica:
    """What ingress and encoder have in common: meters that are told, and an end.

    Args:
        kind: as the metrics call it.
        ledger: adds up.
    """

    def __init__(self, kind: str, ledger: DeploymentHandle[Any]) -> None:
        self.tracing = Tracing(os.environ)
        self.board = Board(RemoteLedger(ledger))
        self.board.meters.replicas.labels(kind).set(1)
        self._beside: tuple[asyncio.Task[None], ...] = ()

    def begin(self) -> None:
        """From now on keep what was made, tell the ledger, and give memory back; on the replica's event loop."""
        if not self._beside:
            keep_what_is_there()
            loop = asyncio.get_running_loop()
            self._beside = (loop.create_task(self.board.keep_telling()), loop.create_task(keep_giving_back()))

    async def end(self) -> None:
        """Tell it a last time."""
        for task in self._beside:
            task.cancel()
        if self._beside:
            with suppress(Exception):  # the ledger may have ended before
                async with asyncio.timeout(_LAST_WORD_S):
                    await self.board.tell()
        await asyncio.to_thread(self.tracing.close)


class Encoder(Replica):
    """One BERT and its heads: windows in, numbers out.

    Args:
        args: of the application.
        names: its heads.
        ledger: adds up the metrics.
    """

    def __init__(self, args: ServiceArgs, names: tuple[str, ...], ledger: DeploymentHandle[Any]) -> None:
        limit_worker()
        super().__init__("encoder", ledger)
        tasks = open_tasks(args, names)
        settings = _settings(args, tasks)
        workers = args.threads or default_threads(settings)
        self._process = EngineProcess([tasks], settings, workers=workers, died=_end_with_it)
        self._encoder = TrunkEncoder(tasks, settings, self._process.trunk(0), self.board.meters, workers=workers)
        self.board.meters.waiting.set_function(lambda: self._encoder.tokens_waiting)

    async def compute(self, sequences: Sequences, parts: Parts, bulk: bool, caller: Carrier) -> Answer:
        """As `Batcher.compute`, under the caller's span."""
        with spanned(self.tracing.tracer, "encoder", context=parent_of(caller), kind=SpanKind.SERVER):
            return await self._encoder.compute(sequences, parts, bulk=bulk)

    async def check(self) -> None:
        """As `Pulse.check`."""
        await self._encoder.check()

    async def facts(self) -> dict[str, Any]:
        """What decides the bits."""
        return await self._encoder.facts()

    async def check_health(self) -> None:
        """What Ray Serve asks; a replica that raises here is replaced."""
        self.begin()
        await self._encoder.check()

    async def __del__(self) -> None:
        """End the engine, when what is under way is through."""
        await self.end()
        await self._encoder.close()
        await self._process.close()


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
        answer: Answer = await self._handle.compute.remote(sequences, dict(parts), bulk, carrier())
        return answer


class Ingress(Replica):
    """Speaks HTTP; collocated, it has an engine beside it.

    Args:
        args: of the application.
        encoders: by the name of an encoder's first head; none where this process computes.
        ledger: adds up the metrics.
    """

    def __init__(
        self, args: ServiceArgs, encoders: Mapping[str, DeploymentHandle[Any]], ledger: DeploymentHandle[Any]
    ) -> None:
        limit_worker()
        super().__init__("ingress", ledger)
        self._args = args
        tasks = open_tasks(args)
        self._collocated: Collocated | None = None
        if encoders:
            computes = {name: RemoteEncoder(handle) for name, handle in encoders.items()}
            self._service = Service(tasks, computes, Readings(tasks), tracer=self.tracing.tracer)
        else:
            settings = _settings(args, tasks)
            workers = args.threads or default_threads(settings)
            tracer = self.tracing.tracer
            meters = self.board.meters
            self._collocated = Collocated(tasks, settings, meters, workers=workers, tracer=tracer, died=_end_with_it)
            self._service = self._collocated.service
        if args.access_log:
            log_requests(_access_log(), sys.stderr)

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve calls once this is made."""
        file = self._args.api_key_file
        keys = ApiKeys.from_environment(os.environ, file=None if file is None else Path(file))
        tracer = self.tracing.tracer
        return make_app(self._service, limits=self._args.limits, keys=keys, board=self.board, tracer=tracer)

    async def check_health(self) -> None:
        """What Ray Serve asks; a replica that raises here is replaced. An encoder elsewhere has its own."""
        self.begin()
        if self._collocated is not None:
            await self._collocated.check()

    async def __del__(self) -> None:
        """End the engine and the threads, when what is under way is through."""
        await self.end()
        if self._collocated is None:
            self._service.close()
        else:
            await self._collocated.close()
