"""Replicas killed under load, and scaled: nobody gets a wrong answer, nobody waits beyond the deadline."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raybert
from tests.jobs import Cli
from tests.serving import ready
from tests.soak.crowd import Ask, Crowd, crowd, service, within
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
log = logging.getLogger("soak")
KILLS, CLIENTS, DEADLINE_S = 10, 8, 20
ENCODER, INGRESS = "ServeReplica:raybert:encoder", "ServeReplica:raybert:ingress"
ENGINE = "engine"


def processes(cli: Cli, word: str) -> list[int]:
    """Replicas of a kind, or the processes that compute for them."""
    return cli.engines() if word == ENGINE else cli.workers(word)


class Known:
    """Texts whose vectors are known."""

    def __init__(self, model: Path) -> None:
        self._texts = stdlib_docstrings(60)
        with raybert.load(model, "embed", dtype="float32", device="cpu", threads=1, normalize=True) as embed:
            self._vectors = dict(zip(self._texts, embed(self._texts), strict=True))
        self._rng = random.Random(0)

    def ask(self) -> Ask:
        return "/embed", {"inputs": self._rng.choice(self._texts)}

    def check(self, ask: Ask, answer: Any) -> bool:
        return bool(np.allclose(answer[0], self._vectors[ask[1]["inputs"]], atol=1e-5))


def graph(model: Path, **encoder: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two ingresses, and as many encoders as is said."""
    args = {
        "heads": [{"task": "embed", "model": str(model), "name": "vec"}],
        "form": "graph",
        "dtype": "float32",
        "threads": 1,
        "limits": {"deadline_s": DEADLINE_S},
        "access_log": False,
    }
    share = {"ray_actor_options": {"num_cpus": 0.4}}
    return args, [{"name": "ingress", "num_replicas": 2, **share}, {"name": "encoder-vec", **share, **encoder}]


async def until(condition: Any, what: str, within_s: float = 120) -> None:
    over = within(within_s)
    while not await asyncio.to_thread(condition):
        assert not over(), f"waited {within_s:g} s for {what}"
        await asyncio.sleep(0.3)


async def killed(cli: Cli, url: str, known: Known, word: str) -> Crowd:
    """Kill one of two replicas after the other, each time until both are there again."""
    rng, done = random.Random(0), asyncio.Event()
    async with crowd(url, known.check) as clients:
        load = asyncio.ensure_future(clients.closed(known.ask, CLIENTS, done.is_set))
        for _ in range(KILLS):
            await asyncio.sleep(3)
            before = processes(cli, word)
            victim = rng.choice(before)
            os.kill(victim, signal.SIGKILL)
            await until(lambda: len(set(processes(cli, word)) - {victim}) == 2, "two replicas")  # noqa: B023
            await until(lambda: ready(url), "a service that is ready")
        await asyncio.sleep(3)
        done.set()
        await load
    return clients


@pytest.mark.parametrize("words", [("--haproxy",), ("--no-haproxy",)], ids=["haproxy", "ray"])
@pytest.mark.parametrize("word", [ENCODER, ENGINE, INGRESS], ids=["encoder", "engine", "ingress"])
def test_kills(tmp_path: Path, word: str, words: tuple[str, ...]) -> None:
    """Of an encoder, or of its engine, nobody notices; of an ingress those whose request it had."""
    model = write_tiny_checkpoint(tmp_path / "vec")
    known = Known(model)
    args, deployments = graph(model, num_replicas=2)
    with service(tmp_path, args, *words, deployments=deployments) as (cli, url):
        clients = asyncio.run(killed(cli, url, known, word))
    longest = max(max(each) for each in clients.seconds.values())
    log.info("%s; the longest request took %.1f s", dict(clients.statuses), longest)
    assert clients.wrong == []
    assert clients.statuses["200"] > 1000
    assert longest < DEADLINE_S + 2
    failed = clients.statuses.total() - clients.statuses["200"]
    assert failed <= (KILLS * CLIENTS if word == INGRESS else 0)


async def hung(cli: Cli, url: str, known: Known) -> Crowd:
    """Stop one of two encoders, which then answers nothing, until it is replaced."""
    done = asyncio.Event()
    async with crowd(url, known.check) as clients:
        load = asyncio.ensure_future(clients.closed(known.ask, CLIENTS, done.is_set))
        await asyncio.sleep(3)
        victim = cli.workers(ENCODER)[0]
        os.kill(victim, signal.SIGSTOP)
        await until(lambda: len(set(cli.workers(ENCODER)) - {victim}) == 2, "another in its place")
        await asyncio.sleep(3)
        done.set()
        await load
    return clients


def test_a_replica_that_hangs_is_replaced(tmp_path: Path) -> None:
    """Who asked it hears so at the deadline; the others are served meanwhile."""
    model = write_tiny_checkpoint(tmp_path / "vec")
    known = Known(model)
    args, deployments = graph(model, num_replicas=2)
    with service(tmp_path, args, deployments=deployments) as (cli, url):
        clients = asyncio.run(hung(cli, url, known))
    longest = max(max(each) for each in clients.seconds.values())
    log.info("%s; the longest request took %.1f s", dict(clients.statuses), longest)
    assert clients.wrong == []
    assert set(clients.statuses) <= {"200", "504"}
    assert clients.statuses["504"] <= 2 * CLIENTS
    assert longest < DEADLINE_S + 2


async def scaled(cli: Cli, url: str, known: Known, word: str) -> tuple[Crowd, list[int]]:
    seen, done = [len(cli.workers(word))], asyncio.Event()
    async with crowd(url, known.check) as clients:
        many = asyncio.ensure_future(clients.closed(known.ask, 2 * CLIENTS, done.is_set))
        await until(lambda: len(cli.workers(word)) == 2, "a second replica")
        await asyncio.sleep(10)
        seen.append(len(cli.workers(word)))
        done.set()
        await many
        done.clear()
        few = asyncio.ensure_future(clients.closed(known.ask, 1, done.is_set))
        await until(lambda: len(cli.workers(word)) == 1, "one replica")
        await asyncio.sleep(5)
        seen.append(len(cli.workers(word)))
        done.set()
        await few
    return clients, seen


@pytest.mark.parametrize("words", [("--haproxy",), ("--no-haproxy",)], ids=["haproxy", "ray"])
@pytest.mark.parametrize("word", [ENCODER, INGRESS], ids=["graph", "collocated"])
def test_scaling(tmp_path: Path, word: str, words: tuple[str, ...]) -> None:
    """From one replica to two and back: encoders behind ingresses, and ingresses that compute."""
    model = write_tiny_checkpoint(tmp_path / "vec")
    known = Known(model)
    quick = {"metrics_interval_s": 0.5, "look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 4}
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 4, **quick}
    args, deployments = graph(model, autoscaling_config=scaling)
    if word == INGRESS:
        args["form"] = "collocated"
        deployments = [{**deployments[1], "name": "ingress"}]
    with service(tmp_path, args, *words, deployments=deployments) as (cli, url):
        clients, seen = asyncio.run(scaled(cli, url, known, word))
    log.info("%s; replicas %s", dict(clients.statuses), seen)
    assert seen == [1, 2, 1]
    assert set(clients.statuses) == {"200"}
    assert clients.wrong == []
