"""How a service is brought up: which proxy stands before it, and on which ports."""

from __future__ import annotations

import sys

import pytest

from raybert.serve.launch import choose_proxy

CHOICE = "RAY_SERVE_ENABLE_HA_PROXY"


@pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray Serve on Linux")
def test_haproxy_where_it_is_installed() -> None:
    environment: dict[str, str] = {}
    choose_proxy(environment, None)
    assert environment[CHOICE] == "1"


@pytest.mark.parametrize(("asked", "expected"), [(True, "1"), (False, "0"), (None, "0")])
def test_who_says_so_is_obeyed(asked: bool | None, expected: str) -> None:
    environment = {CHOICE: "0"}
    choose_proxy(environment, asked)
    assert environment[CHOICE] == expected


def test_services_on_one_machine_do_not_meet() -> None:
    first: dict[str, str] = {"RAY_SERVE_HAPROXY_STATS_PORT": "8404"}
    choose_proxy(first, None)
    assert first["RAY_SERVE_HAPROXY_STATS_PORT"] == "8404"
    ports = [value for name, value in first.items() if name.endswith("_PORT")]
    assert len(set(ports)) == len(ports) == 4
