"""Ray: start a private one or join a named one, share out its processors, translate its errors."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybert.errors import DeviceError, RaybertError, RunFailed, SettingsError

# CPUs that one task of a stage asks for. They differ on purpose: Ray Data fuses neighbours that ask for the same,
# which would move tokenization into the model actors.
READ_CPUS, ENCODE_CPUS, WRITE_CPUS = 0.1, 0.2, 0.15
_STAGES_CPUS = 0.5  # left to the three of them together
_STREAMS_PER_ACTOR = 8
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt): ")


@contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A Ray for the length of the block.

    Args:
        address: of a cluster; None takes RAY_ADDRESS, else starts a private Ray on this machine, which ends with
            the block. Inside a process that is connected already, that Ray is used and left as it is.

    Raises:
        RunFailed: no Ray answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Ray Data gives its actors' arguments through the object store, and Ray's core logs an ERROR about that at every
    # pool (ray#53727), which would stand in every user's terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        with _silent_stderr():
            # A bare ray.init() would join whatever cluster runs on this machine.
            ray.init(
                address=where,
                include_dashboard=False if where == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        remedy = "is it running, and is RAY_AUTH_MODE=token exported where it asks for tokens?"
        raise RunFailed(f"Ray at {where!r}: {first_line(error)}; {remedy}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what the process writes to file descriptor 2: Ray's core announces its log level there, in any case."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How the stages of a job share a cluster.

    Attributes:
        least: model actors at the start.
        most: model actors at most.
        cpus: CPUs that Ray books for one.
        gpus: GPUs that Ray books for one.
        streams: threads of arithmetic in one; no answer depends on it.
        readers: read tasks at a time; encoders, writers likewise.
    """

    least: int
    most: int
    cpus: float
    gpus: float
    streams: int
    readers: int
    encoders: int
    writers: int


def share_out(
    nodes: list[dict[str, float]],
    *,
    device: str = "auto",
    actors: tuple[int, int] | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
) -> Shares:
    """Decide how many model actors run and what each one gets; pure.

    Args:
        nodes: resources of each living node, as Ray names them.
        device: auto, cpu or cuda, as asked.
        actors: least and most actors; None fills the cluster.
        cpus_per_actor: None divides what reading and writing leave.
        gpus_per_actor: None is 1 on GPUs.

    Raises:
        SettingsError: actors would take what reading and writing need, and the job would wait for ever.
        DeviceError: GPUs are asked for and the cluster has none.
    """
    cpu_nodes = [node["CPU"] for node in nodes if node.get("CPU", 0.0) > 0]
    cpus, gpus = sum(cpu_nodes), sum(node.get("GPU", 0.0) for node in nodes)
    if cpus <= 0:
        raise SettingsError("cluster: no node has a CPU; reading and writing need one")
    if device == "cuda" and gpus == 0:
        raise DeviceError("device cuda: no node of the cluster has a GPU; pass --device cpu")
    if device != "cpu" and gpus > 0 and gpus_per_actor != 0:
        per_actor = gpus_per_actor or 1.0
        least, most = actors or (max(1, int(gpus / per_actor)),) * 2
        # A GPU eats what a dozen tokenizers make: encoding gets the CPUs.
        share = max(1, int(cpus / 8))
        return Shares(
            least=least,
            most=most,
            cpus=0.5 if cpus_per_actor is None else cpus_per_actor,
            gpus=per_actor,
            streams=1,
            readers=share,
            encoders=max(1, int(cpus) - 2 * share),
            writers=share,
        )
    streams = max(1, min(int(max(cpu_nodes)), _STREAMS_PER_ACTOR))
    least, most = actors or (max(1, sum(int(cpu // streams) for cpu in cpu_nodes)),) * 2
    if cpus_per_actor is None:
        per_node = math.ceil(most / len(cpu_nodes))
        free = (max(cpu_nodes) - _STAGES_CPUS) / per_node
        cpus_per_actor = max(0.01, math.floor(free * 100) / 100)
    if most * cpus_per_actor + _STAGES_CPUS > cpus + 1e-6:
        limit = math.floor((cpus - _STAGES_CPUS) / most * 100) / 100
        raise SettingsError(
            f"{most} actors x {cpus_per_actor:g} CPUs: {cpus:g} CPUs are there and reading and writing need "
            f"{_STAGES_CPUS:g}; pass --cpus-per-actor {limit:g} or less, or fewer --actors"
        )
    # On CPUs arithmetic takes some 95 % of a job: one of each other stage feeds eight processors.
    share = max(1, int(cpus / 8))
    return Shares(
        least=least,
        most=most,
        cpus=cpus_per_actor,
        gpus=0.0,
        streams=max(1, math.ceil(cpus_per_actor - 1e-6)),
        readers=share,
        encoders=share,
        writers=share,
    )


def alive_nodes() -> list[dict[str, float]]:
    """Resources of the connected cluster's living nodes."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def cause_of(error: BaseException) -> RaybertError | None:
    """The error of ours that Ray carried here from a worker, or None."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if isinstance(cause, RaybertError):
            return cause
        if isinstance(seen, RaybertError) and not hasattr(seen, "cause"):
            return seen
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return None


def first_line(error: BaseException) -> str:
    """An error of another library in one line: what was raised in a worker, where Ray carries its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    return (raised or lines or [type(error).__name__])[0 if not raised else -1]


def limit_worker_threads() -> None:
    """Keep a Ray worker's libraries to one thread each, before they are first used.

    The tokenizer's pool and OpenMP would each start one thread a core in every worker.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def call_on_worker(function: Any, *args: Any, cpus: float, gpus: float) -> Any:
    """Run ``function`` once as a Ray task of a model actor's size and give its result.

    Raises:
        RaybertError: what the function raised.
    """
    import ray

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(function)
    try:
        return ray.get(remote.remote(*args))
    except ray.exceptions.RayError as error:
        ours = cause_of(error)
        if ours is not None:
            raise ours from None
        raise
