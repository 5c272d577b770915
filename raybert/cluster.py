"""Ray: start a private one or join a named one, share out its processors, translate its errors."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from raybert import errors
from raybert.errors import DeviceError, RaybertError, RowError, RunFailed, SettingsError

# CPUs that one task of a stage asks for. They differ on purpose: Ray Data fuses neighbours that ask for the same,
# which would move tokenization into the model actors.
READ_CPUS, ENCODE_CPUS, WRITE_CPUS = 0.1, 0.2, 0.15
_STAGES_CPUS = 0.5  # left to the three of them together, for each eight CPUs
_SLACK = _STAGES_CPUS - (READ_CPUS + ENCODE_CPUS + WRITE_CPUS)
_NUDGE = 0.01
_CPUS_PER_STAGE = 8
_STREAMS_PER_ACTOR = 8
_IDLE_WORKERS = 8  # that Ray may keep beside one for each CPU
_KEEPALIVE_MS = 20_000  # a task of 130 s under pings twice as frequent was run once, as it should be
_KNOCK_S = 10.0
_SETTINGS = b"\x04"  # type of the frame that both sides of HTTP/2, which Ray speaks, send first (RFC 9113, 3.4)
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_WRAPPER = "ray.exceptions.UserCodeException: "  # stands below what a stage raised, and says nothing about it
_OURS = re.compile(r"raybert\.errors\.(\w+): (.*)")
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
    _set_up_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        _knock(where)
        with _silent_stderr(), _undisturbed():
            # A bare ray.init() would join whatever cluster runs on this machine.
            ray.init(
                address=where,
                include_dashboard=False if where == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        remedy = (
            "is it running, is this machine one of its nodes (else use ray job submit), and is RAY_AUTH_MODE=token "
            "exported where it asks for tokens?"
        )
        raise RunFailed(f"Ray at {where!r}: {first_line(error)}; {remedy}") from error
    except BaseException:
        ray.shutdown()
        raise
    try:
        yield
    finally:
        ray.shutdown()


def _set_up_environment() -> None:
    """What Ray and its processes read at their start, unless the user has set it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Ray Data gives its actors' arguments through the object store, and Ray's core logs an ERROR about that at every
    # pool (ray#53727), which would stand in every user's terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray Data holds a stage back only when half of its share of the object store is full. On 2 GB of input the reader
    # ran 1 GB ahead, and every worker kept the pages that it had touched; from 0 on, `data_context`'s ratio decides.
    os.environ.setdefault("RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD", "0")
    # A private Ray ends idle workers beyond the number of CPUs after a second: on two, every split got a new writer.
    os.environ.setdefault("RAY_num_workers_soft_limit", str((os.cpu_count() or 1) + _IDLE_WORKERS))
    # A node that loses its network or power closes no connection. Ray calls it dead soon, yet waits for what it was
    # doing until the connection's keepalive fails: after seven minutes, unless told.
    for name in ("time", "timeout"):
        os.environ.setdefault(f"RAY_grpc_client_keepalive_{name}_ms", str(_KEEPALIVE_MS))


def _knock(address: str) -> None:
    """Fail at once where nothing listens at HOST:PORT, or something else does; Ray would go on trying for minutes.

    Raises:
        OSError: no server of Ray's protocol answers.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not port.isdigit():
        return
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S) as door:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", "false", "False"):
            return
        door.sendall(_HTTP2_GREETING)
        with door.makefile("rb") as answer:
            if answer.read(4)[3:] != _SETTINGS:
                raise ConnectionError("what listens there is no Ray")


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


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait while Ray starts: inside of ray.init it leaves a core that crashes when the process ends.

    A second Ctrl-C does not wait. SIGTERM can't be made to, since ray.init puts its own answer in place: there the
    process dies of it. Afterwards the caller's own answer holds again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_interrupt, on_terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    if callable(on_interrupt):
        signal.signal(signal.SIGINT, remember)
    try:
        yield
    except SystemExit:  # Ray's answer to SIGTERM
        if callable(on_terminate):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if callable(on_interrupt):
            signal.signal(signal.SIGINT, on_interrupt)
        if callable(on_terminate):
            signal.signal(signal.SIGTERM, on_terminate)
    if came:
        signal.raise_signal(signal.SIGINT)


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
    others: float = 0.0,
) -> Shares:
    """Decide how many model actors run and what each one gets; pure.

    Args:
        nodes: resources of each living node, as Ray names them.
        device: auto, cpu or cuda, as asked.
        actors: least and most actors; None fills the cluster.
        cpus_per_actor: None divides what reading and writing leave.
        gpus_per_actor: None is 1 on GPUs; 0 computes on CPUs.
        others: CPUs of a node that a stage of the caller's may ask for at once, and that actors leave unbooked.

    Raises:
        SettingsError: actors would take what reading and writing need, or fit on no node: the job would wait for ever.
        DeviceError: GPUs are asked for and the cluster has none.
    """
    cpus = [node["CPU"] for node in nodes if node.get("CPU", 0.0) > 0]
    gpus = [node["GPU"] for node in nodes if node.get("GPU", 0.0) > 0]
    if not cpus:
        raise SettingsError("cluster: no node has a CPU; reading and writing need one")
    if device == "cuda" and not gpus:
        raise DeviceError("device cuda: no node of the cluster has a GPU; pass --device cpu")
    _check_asked(actors, cpus_per_actor, gpus_per_actor)
    # On CPUs arithmetic takes some 95 % of a job: one of each other stage feeds eight processors.
    share = max(1, int(sum(cpus) / _CPUS_PER_STAGE))
    if device != "cpu" and gpus and gpus_per_actor != 0:
        per_actor = gpus_per_actor or 1.0
        least, most = actors or (max(1, _places(gpus, per_actor)),) * 2
        if least > _places(gpus, per_actor):
            raise SettingsError(
                f"{least} actors x {per_actor:g} GPUs: the nodes have {', '.join(f'{gpu:g}' for gpu in gpus)}; "
                "pass fewer --actors or less --gpus-per-actor"
            )
        return Shares(
            least=least,
            most=most,
            cpus=_booking(cpus, most, cpus_per_actor, others=others, most_of_one=0.5),
            gpus=per_actor,
            streams=1,
            readers=share,
            # A GPU eats what a dozen tokenizers make: encoding gets the CPUs.
            encoders=max(1, int(sum(cpus)) - 2 * share),
            writers=share,
        )
    streams = max(1, min(int(max(cpus)), _STREAMS_PER_ACTOR))
    least, most = actors or (max(1, _places(cpus, streams)),) * 2
    return Shares(
        least=least,
        most=most,
        cpus=_booking(cpus, most, cpus_per_actor, others=others),
        gpus=0.0,
        streams=max(1, math.ceil(_booking(cpus, most, cpus_per_actor) - _NUDGE - 1e-6)),
        readers=share,
        encoders=share,
        writers=share,
    )


def _check_asked(actors: tuple[int, int] | None, cpus: float | None, gpus: float | None) -> None:
    if actors is not None and not 1 <= actors[0] <= actors[1]:
        raise SettingsError(f"actors {actors[0]}:{actors[1]}: at least 1, and MIN at most MAX")
    if cpus is not None and cpus <= 0:
        raise SettingsError(f"cpus-per-actor {cpus:g}: takes a number above 0")
    if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise SettingsError(f"gpus-per-actor {gpus:g}: takes 0, a fraction of one GPU, or a whole number")


def _places(nodes: list[float], size: float) -> int:
    """How many pieces of ``size`` fit on nodes of these sizes, each piece on one node."""
    return sum(int(node / size + 1e-6) for node in nodes)


def _largest(nodes: list[float], count: int) -> float:
    """The largest size, in hundredths, of which ``count`` pieces fit on the nodes; 0 where there is none."""
    sizes = sorted({node / pieces for node in nodes if node for pieces in range(1, count + 1)}, reverse=True)
    return next((math.floor(size * 100 + 1e-6) / 100 for size in sizes if _places(nodes, size) >= count), 0.0)


def _stages_cpus(cpus: float) -> float:
    """What reading, encoding and writing need of a node."""
    return _STAGES_CPUS * max(1, int(cpus / _CPUS_PER_STAGE))


def _booking(
    cpus: list[float], actors: int, asked: float | None, *, others: float = 0.0, most_of_one: float = math.inf
) -> float:
    """CPUs to book for each actor: as asked if that leaves enough, else as much as the other stages leave.

    Raises:
        SettingsError: the other stages would get too little, or an actor has no place.
    """
    free = [max(0.0, node - _stages_cpus(node)) for node in cpus]
    limit = _largest([max(0.0, room - others) for room in free], actors)
    if asked is None:
        # Beside others an actor that books nothing is better than one that never starts, or never lets them start.
        fits, booking = limit > 0 or others > 0, min(limit, most_of_one)
        if others == 0 and actors > 1 and not _keeps_out(cpus, booking) and _keeps_out(cpus, booking + _NUDGE):
            booking += _NUDGE
    else:
        # It is enough that one node keeps something free; the others an actor may fill.
        kept = (_places([*cpus[:at], free[at], *cpus[at + 1 :]], asked) for at in range(len(cpus)))
        fits, booking = max(kept) >= actors, asked
    if not fits:
        what = f"{actors} actors" if asked is None else f"{actors} actors x {asked:g} CPUs"
        there = ", ".join(f"{node:g}" for node in cpus)
        remedy = f"pass --cpus-per-actor {limit:g} or less, or fewer --actors" if limit else "pass fewer --actors"
        raise SettingsError(
            f"{what}: the nodes have {there} CPUs and reading and writing need {_stages_cpus(max(cpus)):g}; {remedy}"
        )
    # Ray Data would fuse a stage of equal booking into the actors.
    return booking - 0.01 if booking in (READ_CPUS, ENCODE_CPUS, WRITE_CPUS) else booking


def _keeps_out(cpus: list[float], booking: float) -> bool:
    """Whether actors that fill what other stages leave of a node keep one more from coming there.

    Where a node dies Ray moves its actor to a living one, and there it has to wait for a place: if it got what reading
    and writing need, the run would stand still for ever, as one on two nodes of one CPU each did.
    """
    rooms = [(node, node - _stages_cpus(node)) for node in cpus if node > _stages_cpus(node)]
    return booking > 0 and all(_places([node], booking) <= _places([room + _SLACK], booking) for node, room in rooms)


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
    # Of an actor that could not start only the traceback's text arrives.
    told = _OURS.fullmatch(first_line(error))
    kind = getattr(errors, told[1], None) if told else None
    if told and isinstance(kind, type) and issubclass(kind, RaybertError) and kind is not RowError:
        return kind(told[2])
    return None


def first_line(error: BaseException) -> str:
    """An error of another library in one line: what was raised in a worker, where Ray carries its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith(_WRAPPER)]
    return raised[-1] if raised else (lines or [type(error).__name__])[0]


def limit_worker() -> None:
    """Keep a Ray worker's libraries to one thread each and to few kept kernels, before they are first used.

    The tokenizer's pool and OpenMP would each start one thread a core in every worker. oneDNN and what calls it
    would keep kernels of the last 1,024 shapes: over texts of all lengths workers grew on (tests/test_cluster.py).
    """
    threads = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    kernels = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "128"}
    for name, value in (threads | kernels).items():
        os.environ.setdefault(name, value)


def call_on_worker(
    function: Any, *args: Any, cpus: float, gpus: float, on_start: Callable[[], None] = lambda: None
) -> Any:
    """Run ``function`` once as a Ray task of a model actor's size, in a worker that then ends, and give its result.

    Args:
        function: to run.
        *args: its arguments.
        cpus: that Ray books for it.
        gpus: likewise.
        on_start: called when the task has found a place.

    Raises:
        RaybertError: what the function raised.
    """
    import ray

    def begun(*args: Any) -> Iterator[Any]:
        yield None
        yield function(*args)

    # One call: the worker would go on as a reader with torch and a model's memory in it.
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2, max_calls=1, num_returns="streaming")(begun)
    try:
        coming = remote.options(name=function.__name__).remote(*args)
        ray.get(next(coming))
        on_start()
        return ray.get(next(coming))
    except ray.exceptions.RayError as error:
        ours = cause_of(error)
        if ours is not None:
            raise ours from None
        raise
