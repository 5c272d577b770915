"""Many clients of one service, on one event loop: what they ask, what they get, and how long it took."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import psutil
import yaml

from raybert.serve.plan import BUILDER
from tests.jobs import Cli
from tests.serving import free_port, ready

logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request hides what a test tells

Ask = tuple[str, dict[str, Any]]
"""A path and a body."""


@contextmanager
def service(folder: Path, args: dict[str, Any], *words: str, deployments: Any = ()) -> Iterator[tuple[Cli, str]]:
    """`raybert serve` over one application, ready; it drains at the end, and nothing of it is left."""
    application = {"name": "raybert", "import_path": BUILDER, "args": args, "deployments": list(deployments)}
    file, port = folder / "service.yaml", free_port()
    file.write_text(yaml.safe_dump({"applications": [application]}))
    with Cli("serve", file, "--port", port, *words) as cli:
        url = f"http://127.0.0.1:{port}"
        cli.until(lambda: ready(url), "it is ready")
        try:
            yield cli, url
        finally:
            cli.process.terminate()
            done = cli.finish()
        assert done.code == 0, done.err


def resident_mb(pids: list[int]) -> float:
    """Memory of processes together."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


class Crowd:
    """Clients of one service.

    Attributes:
        statuses: how often each came; ``left`` where the client did not wait, else the name of what broke.
        seconds: of each answer, by status.
        wrong: answers that `check` refused.
        headers: the last ones of each status but 200.
        failures: path, characters of the request, status and answer of each that got 500 or more.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, check: Callable[[Ask, Any], bool]) -> None:
        self._session, self._url, self._check = session, url, check
        self.statuses: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.wrong: list[Ask] = []
        self.headers: dict[str, Any] = {}
        self.failures: list[tuple[str, int, int, str]] = []

    async def ask(self, ask: Ask, *, patience_s: float | None = None) -> str:
        """One request; who has no patience leaves after so many seconds."""
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(patience_s):
                status = await self._answered(ask)
        except TimeoutError:
            status = "left"
        except aiohttp.ClientError as error:
            status = type(error).__name__
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(time.perf_counter() - begun)
        return status

    async def _answered(self, ask: Ask) -> str:
        path, body = ask
        async with self._session.post(self._url + path, json=body) as response:
            if response.status == 200:
                if not self._check(ask, await response.json()):
                    self.wrong.append(ask)
            else:
                told = await response.text()
                self.headers[str(response.status)] = dict(response.headers)
                if response.status >= 500:
                    self.failures.append((path, len(str(body)), response.status, told[:200]))
            return str(response.status)

    async def closed(self, asks: Callable[[], Ask], clients: int, until: Callable[[], bool]) -> None:
        """So many clients, each of which asks when it was answered."""

        async def one() -> None:
            while not until():
                await self.ask(asks())

        await asyncio.gather(*(one() for _ in range(clients)))

    async def poisson(self, asks: Callable[[], Ask], rate: float, seconds: float) -> None:
        """Requests that arrive by chance, so many a second, whether others are answered or not."""
        rng, begun, moment, waiting = random.Random(0), time.perf_counter(), 0.0, []
        while (moment := moment + rng.expovariate(rate)) < seconds:
            if (left := begun + moment - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            waiting.append(asyncio.ensure_future(self.ask(asks())))
        await asyncio.gather(*waiting)


@asynccontextmanager
async def crowd(url: str, check: Callable[[Ask, Any], bool] = lambda *_: True) -> AsyncIterator[Crowd]:
    """Clients with connections of their own; none of their requests may take minutes."""
    limits = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        yield Crowd(session, url, check)


@asynccontextmanager
async def beside(work: Any) -> AsyncIterator[None]:
    """A coroutine that goes on for the length of the block."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def within(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed from now."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def lone_ms(url: str, ask: Ask, times: int = 30) -> float:
    """Median milliseconds of one client alone."""
    with httpx.Client(timeout=60) as client:
        took = []
        for _ in range(times):
            begun = time.perf_counter()
            assert client.post(url + ask[0], json=ask[1]).status_code == 200
            took.append(time.perf_counter() - begun)
    return 1000 * sorted(took)[len(took) // 2]
