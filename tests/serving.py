"""A service over tiny models behind a real HTTP server, for real clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from opentelemetry.trace import Tracer

import raybert
from raybert.config import HeadSpec, heads_from
from raybert.engine import choose_settings
from raybert.serve.board import Board
from raybert.serve.collocated import Collocated
from raybert.serve.limits import Limits
from raybert.serve.routes import make_app
from raybert.serve.security import ApiKeys
from raybert.tasks import make_task
from tests.tiny import write_tiny_checkpoint


@contextmanager
def served(
    heads: Mapping[str, tuple[Any, ...] | HeadSpec],
    *,
    limits: Limits | None = None,
    keys: ApiKeys | None = None,
    tracer: Tracer | None = None,
) -> Iterator[str]:
    """The address of a server that answers with these heads, fp32; it is ended and waited for."""
    tasks = {spec.name: make_task(spec) for spec in heads_from(heads)}
    board = Board()
    settings = choose_settings(device="cpu", dtype="float32")
    found = Collocated(tasks, settings, board.meters, workers=2, tracer=tracer)
    app = make_app(found.service, limits=limits or Limits(), keys=keys or ApiKeys(), board=board, tracer=tracer)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    started = threading.Event()

    async def serve() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        started.set()
        await task
        await found.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def every_head(folder: Path, **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A server with a head of every kind, and what each head answers in this process, by name."""
    labels = {"config": {"id2label": {str(at): f"label {at}" for at in range(3)}}}
    parts = ("classifier", "qa", "masked-lm", "next-sentence")
    many = str(write_tiny_checkpoint(folder / "many", heads=parts, **labels))
    cross = str(write_tiny_checkpoint(folder / "cross", heads=("classifier",), config={"num_labels": 1}, seed=1))
    sentence = {"prompts": {"query": "query: "}, "normalize": True}
    vec = str(write_tiny_checkpoint(folder / "vec", sentence=sentence, seed=2))
    heads: dict[str, tuple[Any, ...]] = {
        "vec": (vec, "embed"),
        "topic": (many, "classify"),
        "people": (many, "ner"),
        "answers": (many, "qa"),
        "words": (many, "fill-mask"),
        "sparse": (many, "embed", {"output": "sparse"}),
        "next": (many, "next-sentence"),
        "choice": (cross, "multiple-choice"),
        "rank": (cross, "rerank"),
    }
    with ExitStack() as stack:
        local = {}
        for name, (model, task, *own) in heads.items():
            one = raybert.load(model, task, dtype="float32", device="cpu", threads=1, **dict(*own))
            local[name] = stack.enter_context(one)
        yield stack.enter_context(served(heads, **options)), local


@pytest.fixture(scope="module", name="both")
def both_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Any]]]:
    with every_head(tmp_path_factory.mktemp("heads")) as found:
        yield found


@pytest.fixture(name="url")
def url_fixture(both: tuple[str, dict[str, Any]]) -> str:
    return both[0]


@pytest.fixture(name="local")
def local_fixture(both: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return both[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.HTTPError:
        return False
