"""A service beyond its capacity, and for ten minutes under what clients do: nothing breaks, nothing grows."""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import raybert
from tests.jobs import Cli
from tests.soak.crowd import Ask, Crowd, crowd, lone_ms, resident_mb, service, within
from tests.tiny import stdlib_docstrings

log = logging.getLogger("soak")
OVERLOAD_S, SOAK_S = 60, 600
TEXTS = [text for text in stdlib_docstrings(3000) if 150 < len(text) < 350]


def one_text(rng: random.Random) -> Ask:
    return "/embed", {"inputs": rng.choice(TEXTS), "model": "vec"}


async def memory_of(cli: Cli, seen: list[float]) -> None:
    """Of the processes that answer and compute, once a second."""
    while True:
        seen.append(resident_mb([*cli.workers("ServeReplica:raybert:ingress"), *cli.engines()]))
        await asyncio.sleep(1)


async def recovered_s(url: str, ask: Ask, usual_ms: float) -> float:
    """Seconds until a lone request takes no more than twice the usual."""
    begun = time.monotonic()
    async with crowd(url) as after:
        while True:
            status = await after.ask(ask)
            if status == "200" and 1000 * after.seconds["200"][-1] <= 2 * usual_ms:
                return time.monotonic() - begun


async def overload(cli: Cli, url: str) -> None:
    rng = random.Random(0)
    usual_ms = lone_ms(url, one_text(rng))
    async with crowd(url) as before:
        await before.closed(lambda: one_text(rng), 32, within(5))
        before.seconds.clear()
        await before.closed(lambda: one_text(rng), 32, within(10))
    capacity = len(before.seconds["200"]) / 10
    memory: list[float] = []
    watching = asyncio.ensure_future(memory_of(cli, memory))
    async with crowd(url) as many:
        await many.poisson(lambda: one_text(rng), 3 * capacity, OVERLOAD_S)
    watching.cancel()
    recovery_s = await recovered_s(url, one_text(rng), usual_ms)
    first, last = max(memory[: OVERLOAD_S // 4]), max(memory[-OVERLOAD_S // 4 :])
    p99 = sorted(many.seconds["200"])[int(0.99 * many.statuses["200"])]
    log.info(
        "capacity %.0f/s; at three times that for %d s: %s, %.0f answered a second, p99 %.2f s; "
        "memory %.0f -> %.0f MB; a lone request as usual (%.0f ms) after %.1f s",
        *(capacity, OVERLOAD_S, dict(many.statuses), many.statuses["200"] / OVERLOAD_S, p99, first, last),
        *(usual_ms, recovery_s),
    )
    assert set(many.statuses) == {"200", "429"}
    assert int(many.headers["429"]["Retry-After"]) >= 1
    assert last <= 1.05 * first
    assert recovery_s <= 5


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", [("--haproxy",), ("--no-haproxy",)], ids=["haproxy", "ray"])
def test_overload(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Three times as many requests as it can answer, for a minute."""
    heads = [{"task": "embed", "model": "demo", "name": "vec"}]
    args = {"heads": heads, "limits": {"max_waiting_tokens": 8192}, "access_log": False}
    with service(tmp_path, args, *words) as (cli, url):
        asyncio.run(overload(cli, url))


def three_heads(folder: Path) -> list[dict[str, Any]]:
    """Vectors, classes and entities from one BERT; classes and entities of heads that learnt nothing."""
    topic = raybert.BertForSequenceClassification.from_pretrained("demo", new_head=True, num_labels=5)
    people = raybert.BertForTokenClassification.from_pretrained("demo", new_head=True, num_labels=5)
    for name, made in (("topic", topic), ("people", people)):
        made.save_pretrained(folder / name)
        raybert.BertTokenizer.from_pretrained("demo").save_pretrained(folder / name)
    slide = {"windows": "slide", "max_length": 256}
    return [
        {"task": "embed", "model": "demo", "name": "vec", "options": slide},
        {"task": "classify", "model": str(folder / "topic"), "options": slide},
        {"task": "ner", "model": str(folder / "people")},
    ]


class Mixed:
    """Requests of all heads, from 1 to 20,000 tokens, as many between 1 and 10 as between 1,000 and 10,000."""

    LONGEST = 20_000

    def __init__(self) -> None:
        self.rng = random.Random(1)
        self._words = " ".join(stdlib_docstrings(4000)).split()

    def __call__(self) -> Ask:
        tokens = round(self.LONGEST ** self.rng.random())
        count = max(1, int(tokens / 1.9))  # tokens of a word in docstrings, about
        begin = self.rng.randrange(len(self._words) - count)
        text = " ".join(self._words[begin : begin + count])
        if self.rng.random() < 0.1:
            return "/v1/label", {"inputs": [text[:2000]]}
        return f"/models/{self.rng.choice(['vec', 'topic', 'people'])}", {"inputs": text}


async def mixed(cli: Cli, url: str) -> tuple[Crowd, list[float]]:
    asks, over, memory = Mixed(), within(SOAK_S), []
    watching = asyncio.ensure_future(memory_of(cli, memory))

    async def one(clients: Crowd) -> None:
        while not over():
            leaves = asks.rng.random() < 0.1
            await clients.ask(asks(), patience_s=asks.rng.random() if leaves else None)

    async with crowd(url) as clients:
        await asyncio.gather(*(one(clients) for _ in range(8)))
    watching.cancel()
    return clients, memory


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_minutes(tmp_path: Path) -> None:
    """Mixed heads, short texts and very long ones, clients that leave."""
    with service(tmp_path, {"heads": three_heads(tmp_path), "access_log": False}) as (cli, url):
        clients, memory = asyncio.run(mixed(cli, url))
        text = httpx.get(f"{url}/metrics").text
    held = next(line for line in text.splitlines() if line.startswith("raybert_held_tokens "))
    third, last = statistics.median(memory[120:240]), statistics.median(memory[-120:])
    log.info("%s; memory %.0f MB in minutes 3 and 4, %.0f in the last two", dict(clients.statuses), third, last)
    assert set(clients.statuses) == {"200", "left"}, clients.failures
    assert last <= 1.05 * third
    assert held == "raybert_held_tokens 0.0"
