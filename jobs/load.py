"""A service under load, beside a peer in the same run: requests a second and latency, of one text a request.

    python jobs/load.py                              both forms of raybert, in bfloat16 and float32, and both proxies
    python jobs/load.py --peer PATH/infinity_emb     against infinity, installed in an environment of its own
    python jobs/load.py --budgets 512 1024           tokens that one forward may hold
    python jobs/load.py --forms graph --actors       between ingress and encoders gRPC, and calls of Ray's actors too

The servers run one after another on this machine, round by round, each with the clients on the same processors, of
which these take as little as they can: uvloop, and no search for garbage that holds them up. A round has, for each: a
lone client (its p50), 32 clients that ask as soon as they are answered (requests a second, p99), and requests that
arrive by chance (a Poisson process) at 60 % of what 32 clients got, their latency counted from the moment they were
meant to be sent. What is printed is each one's median over the rounds, and the median of the ratios within a round,
since the speed of a machine drifts. Exit 1 below a gate.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import numpy as np
import uvloop
import yaml

from raybert import BertTokenizer
from raybert.checkpoint.hub import resolve
from raybert.cli.demo import docstrings
from raybert.serve.plan import BUILDER

START_S = 180
SHORT, LONG = 38, 76  # tokens of a text; their mean is about 54
CLIENTS = 32
SHARE = 0.6  # of saturation, for requests that arrive by chance
PEER = "infinity"
PROXIES: Mapping[str, Sequence[str]] = {"haproxy": ["--haproxy"], "ray": ["--no-haproxy"]}


@dataclass(frozen=True, kw_only=True)
class Server:
    """One that can be started.

    Attributes:
        name: in the table.
        command: `{port}` stands for the port.
        route: of embeddings in OpenAI's shape.
        environment: beside this process's own.
    """

    name: str
    command: Sequence[str]
    route: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was seen of one server in one round; latencies in milliseconds."""

    lone_p50: float
    rate: float
    p50: float
    p99: float
    open_rate: float
    open_p50: float
    open_p99: float


def bodies(model: str, seed: int) -> list[dict[str, str]]:
    """Requests of one text each, of `SHORT` to `LONG` tokens, and their mean."""
    texts = sorted({text for _, text in docstrings()})
    lengths = [len(ids) for ids in BertTokenizer.from_pretrained(model)(texts)["input_ids"]]
    chosen = [text for text, length in zip(texts, lengths, strict=True) if SHORT <= length <= LONG]
    mean = np.mean([length for length in lengths if SHORT <= length <= LONG])
    print(f"{len(chosen)} texts of {mean:.0f} tokens each on average")
    random.Random(seed).shuffle(chosen)  # noqa: S311
    return [{"model": "demo", "input": text} for text in chosen]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(server: Server) -> Iterator[str]:
    """The URL of a server's embeddings, for the length of the block; it answers before the block begins."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{server.route}"
    with tempfile.TemporaryFile() as log:
        words = [word.format(port=port) for word in server.command]
        try:
            process = subprocess.Popen(
                words, env=os.environ | server.environment, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            sys.exit(f"{server.name}: can't be started ({error}); --peer takes the path of its command")
        try:
            if not asyncio.run(answers(url, process)):
                log.seek(0)
                sys.exit(f"{server.name} did not start:\n{log.read().decode(errors='replace')[-4000:]}")
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


async def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether it answers, within `START_S`."""
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                async with session.post(url, json={"model": "demo", "input": "a text"}) as response:
                    if response.status == 200:
                        return True
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.3)
    return False


class Client:
    """Asks one server, and keeps how long each answer took, in seconds.

    Args:
        session: of connections.
        url: to post to.
        asked: bodies, each used once in its turn.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, asked: Iterator[dict[str, str]]) -> None:
        self._session, self._url, self._asked = session, url, asked

    async def ask(self, since: float) -> float:
        """Seconds from `since` (of `time.perf_counter`) to the whole answer."""
        async with self._session.post(self._url, json=next(self._asked)) as response:
            raw = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{self._url}: {response.status} {raw[:300]!r}")
        return time.perf_counter() - since

    async def closed(self, clients: int, seconds: float) -> tuple[float, list[float]]:
        """Requests a second and latencies of so many clients, each of which asks when it was answered."""
        begun = time.perf_counter()
        found: list[float] = []

        async def one() -> None:
            while (now := time.perf_counter()) < begun + seconds:
                found.append(await self.ask(now))

        await asyncio.gather(*(one() for _ in range(clients)))
        return len(found) / (time.perf_counter() - begun), found

    async def poisson(self, rate: float, seconds: float, seed: int) -> list[float]:
        """Latencies of requests that arrive by chance, so many a second, whether others are answered or not."""
        moments = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds)).cumsum()
        begun = time.perf_counter()
        waiting = []
        for moment in moments.tolist():
            if (left := begun + moment - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            waiting.append(asyncio.ensure_future(self.ask(begun + moment)))
        return list(await asyncio.gather(*waiting))


def rounds(
    contestants: Sequence[Server], asked: Sequence[dict[str, str]], arguments: argparse.Namespace
) -> dict[str, list[Figures]]:
    """What was seen of each server in each round."""
    seen: dict[str, list[Figures]] = {server.name: [] for server in contestants}
    for number, server in itertools.product(range(arguments.rounds), contestants):
        with running(server) as url:
            figures = uvloop.run(measure(url, asked, arguments.seconds, arguments.seed + number))
        seen[server.name].append(figures)
        print(f"round {number + 1}: {server.name}: {figures.rate:.1f} requests/s, p99 {figures.p99:.0f} ms", flush=True)
    return seen


def milliseconds(latencies: Sequence[float], share: float) -> float:
    """A quantile."""
    return 1000 * float(np.quantile(latencies, share))


async def measure(url: str, asked: Sequence[dict[str, str]], seconds: float, seed: int) -> Figures:
    """One round of one server."""
    # Looking through the objects of torch and its like for garbage holds this client up now and then, and everybody
    # who asked meanwhile counts as late, whichever server it is.
    gc.collect()
    gc.freeze()
    shuffled = random.Random(seed).sample(asked, len(asked))  # noqa: S311
    limits = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limits) as session:
        client = Client(session, url, itertools.cycle(shuffled))
        await client.closed(CLIENTS, seconds / 4)  # warm: threads, connections, kernels of the usual shapes
        _, lone = await client.closed(1, seconds / 2)
        rate, full = await client.closed(CLIENTS, seconds)
        by_chance = await client.poisson(SHARE * rate, seconds, seed)
    return Figures(
        lone_p50=milliseconds(lone, 0.5),
        rate=rate,
        p50=milliseconds(full, 0.5),
        p99=milliseconds(full, 0.99),
        open_rate=SHARE * rate,
        open_p50=milliseconds(by_chance, 0.5),
        open_p99=milliseconds(by_chance, 0.99),
    )


def servers(arguments: argparse.Namespace, folder: Path) -> list[Server]:
    """The contestants, the peer first; the configurations of ours lie in a folder."""
    found = []
    if arguments.peer is not None:
        words = "v2 --engine torch --device cpu --no-bettertransformer --served-model-name demo --port {port}"
        command = [arguments.peer, *words.split(), "--model-id", str(resolve(arguments.model))]
        quiet = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        found.append(Server(name=PEER, command=command, environment=quiet, route="/embeddings"))
    raybert = str(Path(sys.executable).with_name("raybert"))
    variants = itertools.product(arguments.forms, arguments.proxies, arguments.dtypes, arguments.budgets)
    for form, proxy, dtype, budget in variants:
        name = f"{form} {proxy} {dtype}" + ("" if budget is None else f" {budget}")
        heads = [{"task": "embed", "model": arguments.model, "name": "demo"}]
        args = {"heads": heads, "form": form, "dtype": dtype, "budget": budget}
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"applications": [{"import_path": BUILDER, "args": args}]}))
        command = [raybert, "serve", str(file), "--port", "{port}", *PROXIES[proxy]]
        found.append(Server(name=name, command=command, route="/v1/embeddings"))
        if form == "graph" and arguments.actors:
            found.append(replace(found[-1], name=f"{name} actors", environment={"RAY_SERVE_USE_GRPC_BY_DEFAULT": "0"}))
    return found


def below(name: str, seen: Mapping[str, list[Figures]], arguments: argparse.Namespace) -> list[str]:
    """What a server of ours misses: the gates are for the form that is fastest on one machine."""
    ours = seen[name]
    limit = max(50.0, 4 * middle([each.lone_p50 for each in ours]))
    failed = (
        []
        if (found := middle([each.open_p99 for each in ours])) <= limit
        else [f"open p99 {found:.0f} > {limit:.0f} ms"]
    )
    if PEER not in seen:
        return failed
    gate = arguments.gate_fp32 if "float32" in name else arguments.gate_bf16
    for what, ratio, most in (
        ("requests/s", 1 / against(seen, name, "rate"), 1 / gate),
        ("p99 at 32", against(seen, name, "p99"), 0.5),
        ("p50 alone", against(seen, name, "lone_p50"), 1.0),
    ):
        if ratio > most:
            failed.append(f"{what}: {ratio:.2f} of the peer's, over {most:.2f}")
    return failed


def middle(values: Sequence[float]) -> float:
    """Median."""
    return statistics.median(values)


def against(seen: Mapping[str, list[Figures]], name: str, field: str) -> float:
    """The median of a figure's ratio to the peer's in the same round."""
    pairs = zip(seen[name], seen[PEER], strict=True)
    return middle([getattr(ours, field) / getattr(peer, field) for ours, peer in pairs])


def show(seen: Mapping[str, list[Figures]]) -> None:
    """The table."""
    columns = ("lone_p50", "rate", "p50", "p99", "open_rate", "open_p50", "open_p99")
    print(f"{'':32}{'1 client':>9}{'32 clients':>27}{'Poisson at 60 %':>27}")
    print(f"{'':32}{'p50 ms':>9}" + 2 * f"{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}" + f"{'ratio':>8}")
    for name, rounds in seen.items():
        cells = [f"{middle([getattr(each, column) for each in rounds]):9.1f}" for column in columns]
        ratio = f"{against(seen, name, 'rate'):8.2f}" if PEER in seen else ""
        print(f"{name:32}{''.join(cells)}{ratio}")


def main() -> int:
    """Read the command line, measure, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peer", default=shutil.which("infinity_emb"), help="infinity's command, if it is installed")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--forms", nargs="+", default=["collocated", "graph"])
    parser.add_argument("--proxies", nargs="+", default=["haproxy", "ray"], choices=PROXIES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[None], help="tokens of one forward")
    parser.add_argument("--actors", action="store_true", help="the graph form also with calls of actors, not gRPC")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of 32 clients, and of arrivals by chance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gate-bf16", type=float, default=3.0)
    parser.add_argument("--gate-fp32", type=float, default=2.0)
    arguments = parser.parse_args()
    asked = bodies(arguments.model, arguments.seed)
    with tempfile.TemporaryDirectory(prefix="raybert-load-") as folder:
        seen = rounds(servers(arguments, Path(folder)), asked, arguments)
    show(seen)
    gated = [name for name in seen if name.startswith(f"{arguments.forms[0]} {arguments.proxies[0]} ")]
    failed = [f"{name}: {each}" for name in gated for each in below(name, seen, arguments)]
    for line in failed:
        print(f"below the gate: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
