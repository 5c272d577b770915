"""The door before all routes, driven as an ASGI server drives it: clients that dawdle, leave, or come too many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import orjson
import pytest
from opentelemetry.trace import NoOpTracer

from raybert.serve.door import Door
from raybert.serve.faults import FAMILIES, Fault, ServiceError, family_of
from raybert.serve.limits import Gate, Limits
from raybert.serve.metrics import Meters
from raybert.serve.security import ApiKeys

KEY = "0123456789abcdef"
Routes = Callable[[Any, Any, Any], Awaitable[None]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body that it got."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def sleep(ended: list[bool], scope: Any, receive: Any, send: Any) -> None:
    """Takes its time, and tells when it was ended."""
    try:
        await asyncio.sleep(5)
    finally:
        ended.append(True)


class Client:
    """One request: its messages arrive as told, and what is sent to it is kept."""

    def __init__(self, *pieces: bytes, path: str = "/v1/embeddings", headers: dict[str, str] | None = None) -> None:
        more = [True] * (len(pieces) - 1) + [False]
        self.messages = [
            {"type": "http.request", "body": piece, "more_body": goes_on}
            for piece, goes_on in zip(pieces, more, strict=True)
        ]
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        self.left = asyncio.Event()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if self.messages:
            return self.messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(
        self, routes: Routes, *, keys: ApiKeys | None = None, gate: Gate | None = None, **limits: Any
    ) -> None:
        await Door(
            routes,
            limits=Limits(**limits),
            keys=keys or ApiKeys(),
            meters=Meters(),
            tracer=NoOpTracer(),
            gate=gate or Gate(Limits()),
        )(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def told(self) -> Any:
        return orjson.loads(self.sent[1]["body"])


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 10))  # type: ignore[arg-type]


def test_a_body_in_pieces_arrives_whole():
    async def main() -> None:
        client = Client(b"ab", b"", b"cd")
        await client.ask(echo)
        assert (client.status, client.sent[1]["body"]) == (200, b"abcd")

    run(main)


@pytest.mark.parametrize("headers", [{}, {"content-length": "2"}, {"content-length": "5"}])
def test_a_body_over_the_limit_is_refused_however_it_comes(headers):
    async def main() -> None:
        client = Client(b"ab", b"cde", headers=headers)
        await client.ask(echo, max_body_bytes=4)
        assert client.status == 413
        assert "a body of 5 bytes exceeds 4" in client.told["error"]["message"]

    run(main)


def test_a_body_that_does_not_come_is_not_waited_for():
    async def main() -> None:
        client = Client(b"ab")
        client.messages[0]["more_body"] = True
        await client.ask(echo, body_s=0.05)
        assert client.status == 504
        assert "the body did not arrive within 0.05 s" in client.told["error"]["message"]

    run(main)


@pytest.mark.parametrize(
    ("headers", "within_s"),
    [({}, 0.2), ({"x-request-timeout-seconds": "0.1"}, 0.1), ({"x-request-timeout-seconds": "99"}, 0.2)],
)
def test_a_deadline_may_be_shortened_and_not_lengthened(headers, within_s):
    ended: list[bool] = []

    async def main() -> None:
        client, begun = Client(b"", headers=headers), asyncio.get_running_loop().time()
        await client.ask(partial(sleep, ended), deadline_s=0.2)
        assert within_s <= asyncio.get_running_loop().time() - begun < within_s + 0.1
        assert client.status == 504
        assert client.told["error"]["message"] == f"no answer within {within_s:g} s"
        assert ended == [True]

    run(main)


@pytest.mark.parametrize("asked", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_deadline_that_is_none_is_malformed(asked):
    async def main() -> None:
        client = Client(b"", headers={"x-request-timeout-seconds": asked})
        await client.ask(echo)
        assert client.status == 400

    run(main)


def test_who_leaves_is_worked_for_no_longer():
    ended: list[bool] = []

    async def main() -> None:
        client = Client(b"")
        asyncio.get_running_loop().call_later(0.05, client.left.set)
        await client.ask(partial(sleep, ended))
        assert (ended, client.sent) == ([True], [])

    run(main)


@pytest.mark.parametrize("turns", range(6))
def test_who_leaves_with_the_answer_breaks_nothing_behind_it(turns):
    """The connection closes that many turns of the event loop before the routes are through."""

    async def main() -> None:
        client = Client(b"")

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            client.left.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            await echo(scope, receive, send)

        await client.ask(answer)
        await asyncio.sleep(0.01)  # a cancellation that comes late would be raised here
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main)


def test_a_compressed_body_is_refused_before_it_grows():
    async def main() -> None:
        client = Client(b"\x1f\x8b", headers={"content-encoding": "gzip"})
        await client.ask(echo)
        assert client.status == 400

    run(main)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/embeddings", 401),
        ("POST", "/", 401),
        ("POST", "/anything", 401),
        ("GET", "/v1/models", 401),
        ("POST", "/livez", 401),
        ("GET", "/livez", 200),
        ("GET", "/metrics", 200),
    ],
)
def test_without_a_key_only_these_answer(method, path, status):
    async def main() -> None:
        client = Client(b"", path=path)
        client.scope["method"] = method
        await client.ask(echo, keys=ApiKeys([KEY]))
        assert client.status == status

    run(main)


def test_an_error_speaks_as_the_family_of_its_route_does():
    error = ServiceError(Fault.BUSY, "full", retry_after_s=1.2)
    told = {name: body(error) for name, body in FAMILIES.items()}
    assert told["openai"] == {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "busy"}}
    assert told["tei"] == {"error": "full", "error_type": "Overloaded"}
    assert told["cohere"] == {"message": "full"}
    assert told["huggingface"] == {"error": "full"}
    families = {
        "/v1/embeddings": "openai",
        "/v1/search": "openai",
        "/embed": "tei",
        "/": "tei",
        "/rerank": "tei",
        "/v2/rerank": "cohere",
        "/models/x": "huggingface",
    }
    assert {path: family_of(path) for path in families} == families
    assert family_of("/rerank", cohere=True) == "cohere"


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_full_house_refuses_at_the_door(method):
    async def main() -> None:
        client, gate = Client(b"ab"), Gate(Limits(max_waiting_tokens=5))
        client.scope["method"] = method
        with gate.held(5):
            await client.ask(echo, gate=gate)
        assert client.status == (429 if method == "POST" else 200)
        if method == "POST":
            assert (b"retry-after", b"1") in client.sent[0]["headers"]

    run(main)


def test_the_gate_lets_in_what_there_is_room_for_and_knows_when_to_come_again():
    gate = Gate(Limits(max_waiting_tokens=100, bulk_tokens=50))
    with gate.held(500) as room:
        assert room.know(500)
    gate.note(100, 10.0)
    with gate.held(30) as first, gate.held(40) as second:
        assert first.know(60)
        assert not second.know(40)
        assert gate.tokens == 100
        for refused in (lambda: gate.held(1).__enter__(), lambda: second.know(41), gate.check):
            with pytest.raises(ServiceError, match=r"100 tokens are under way|60 .* and 41 more exceed 100") as caught:
                refused()
            assert (caught.value.fault, caught.value.retry_after_s) == (Fault.BUSY, 10)
        assert not second.know(1)
        gate.check()
        assert gate.tokens == 61
    assert gate.tokens == 0
