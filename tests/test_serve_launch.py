"""How a service is brought up: which proxy stands before it, and on which ports."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header

from raybert.serve.launch import choose_proxy
from raybert.serve.unwatched import Unwatched, in_replicas
from tests.serving import free_port

CHOICE = "RAY_SERVE_ENABLE_HA_PROXY"
BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
AS_RAY_HAS_IT = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option splice-request
    option splice-response
frontend all
    bind 127.0.0.1:{front}
    default_backend one
backend one
    server one 127.0.0.1:{back}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray Serve on Linux")
def test_haproxy_where_it_is_installed() -> None:
    environment: dict[str, str] = {}
    choose_proxy(environment, None)
    assert environment[CHOICE] == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray Serve on Linux")
def test_haproxy_notices_a_client_that_leaves(tmp_path: Path) -> None:
    """Splicing a body that came in pieces, HAProxy 2.8.25 did not, and span until the answer came."""
    body = 9_999 * b"a" + b"z"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        haproxy(tmp_path, server.getsockname()[1]) as (process, front),
        socket.create_connection(("127.0.0.1", front)) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 10000\r\n\r\n" + body[:2000])
        time.sleep(0.2)
        client.sendall(body[2000:])
        with server.accept()[0] as peer:
            while not peer.recv(65536).endswith(b"z"):
                pass
            time.sleep(0.2)
            client.close()
            before = sum(process.cpu_times())
            time.sleep(1)
            assert sum(process.cpu_times()) - before < 0.5
            peer.settimeout(5)
            with suppress(ConnectionResetError):
                assert peer.recv(1) == b""


@contextmanager
def haproxy(folder: Path, back: int) -> Iterator[tuple[psutil.Process, int]]:
    """The one that `raybert serve` lets Ray start, before a server, and its port."""
    environment, front = dict(os.environ), free_port()
    for name in (CHOICE, BINARY):
        environment.pop(name, None)
    choose_proxy(environment, True)
    file = folder / "haproxy.cfg"
    file.write_text(AS_RAY_HAS_IT.format(front=front, back=back))
    process = subprocess.Popen([environment[BINARY], "-db", "-f", file], env=environment)
    try:
        deadline = time.monotonic() + 20
        while not listens(front):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield psutil.Process(process.pid), front
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_another_haproxy_is_obeyed() -> None:
    environment = {BINARY: "/usr/sbin/haproxy"}
    choose_proxy(environment, True)
    assert environment[BINARY] == "/usr/sbin/haproxy"


@pytest.mark.parametrize(("asked", "expected"), [(True, "1"), (False, "0"), (None, "0")])
def test_who_says_so_is_obeyed(asked: bool | None, expected: str) -> None:
    environment = {CHOICE: "0"}
    choose_proxy(environment, asked)
    assert environment[CHOICE] == expected


def test_one_event_loop_unless_the_environment_says_otherwise() -> None:
    environment = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}
    choose_proxy(environment, None)
    assert environment["RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"] == "1"
    assert environment["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] == "0"


def test_haproxy_leaves_the_processors_to_the_model() -> None:
    environment: dict[str, str] = {}
    choose_proxy(environment, True)
    assert environment["RAY_SERVE_HAPROXY_METRICS_ENABLED"] == "0"
    assert 1 <= int(environment["RAY_SERVE_HAPROXY_NBTHREAD"]) <= max(1, (os.cpu_count() or 1) // 2)


def test_services_on_one_machine_do_not_meet() -> None:
    first: dict[str, str] = {"RAY_SERVE_HAPROXY_STATS_PORT": "8404"}
    choose_proxy(first, None)
    assert first["RAY_SERVE_HAPROXY_STATS_PORT"] == "8404"
    ports = [value for name, value in first.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="the range is Linux's")
def test_ports_of_haproxy_are_none_that_a_connection_gets() -> None:
    """It takes them seconds later, when Ray has made hundreds of connections."""
    environment: dict[str, str] = {}
    choose_proxy(environment, None)
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not [name for name in environment if name.endswith("_PORT") and first <= int(environment[name]) <= last]


def test_ray_watches_no_request_in_a_replica_and_all_at_a_proxy() -> None:
    environment: dict[str, str] = {}
    choose_proxy(environment, True)
    module, _, name = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    assert getattr(import_module(module), name) is in_replicas
    assert in_replicas() == []  # this is no replica
    found: list[bool] = []

    async def rays_own(scope: Any, receive: Any, send: Any) -> None:
        found.append(parse_disconnect_disabled_header(dict(scope["headers"])))

    scope = {"type": "http", "headers": [(b"x-request-disconnect-disabled", b"?0")]}
    asyncio.run(Unwatched(rays_own)(scope, None, None))  # type: ignore[arg-type]
    assert found == [True]
