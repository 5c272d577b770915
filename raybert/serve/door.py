"""What stands before every route: keys, bodies in bounds, deadlines, clients that leave, errors in their own words."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

import orjson
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from raybert.observability import LOGGER
from raybert.serve.faults import FAMILIES, Fault, ServiceError, family_of
from raybert.serve.limits import Gate, Limits
from raybert.serve.metrics import Meters, route_of
from raybert.serve.security import ApiKeys
from raybert.serve.tracing import parent_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/livez", "/readyz", "/health", "/ping", "/metrics", "/docs", "/openapi.json"})
"""What GET answers without a key, beside what the page at /docs loads."""


LEFT = 499
"""Told in place of a status where the client left before there was one."""
FAULT = "raybert.fault"
"""Where a request's scope tells of which kind its error was."""
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Visit:
    """One request and its answer, for the meters and for the access log; no body is ever in there.

    Args:
        scope: of the request.
        headers: of the request, names in lower case.
        send: to the client.
    """

    def __init__(self, scope: Scope, headers: Mapping[str, str], send: Send) -> None:
        self._scope, self._send, self._begun = scope, send, time.perf_counter()
        given = headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.status: int | None = None
        self._tokens: str | None = None

    async def send(self, message: Message) -> None:
        """Pass a message on to the client, with the request's id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
            found = dict(headers).get(b"x-compute-tokens")
            self._tokens = None if found is None else found.decode()
            message = {**message, "headers": [*headers, (b"x-request-id", self.id.encode())]}
        await self._send(message)

    async def refuse(self, error: ServiceError, body: bytes) -> None:
        """Answer with an error, in the words of the route's family."""
        if self.status is not None:  # half an answer is on its way: the connection breaks off
            raise error
        self._scope[FAULT] = error.fault.code
        status, headers, told = response_of(error, self._scope["path"], body)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": told})

    def end(self, meters: Meters) -> None:
        """Count the request, and log it, when there is time for that."""
        told = partial(self._tell, meters, time.time(), time.perf_counter() - self._begun)
        meters.afterwards.do(told)

    def _tell(self, meters: Meters, when: float, seconds: float) -> None:
        path = self._scope["path"]
        status = LEFT if self.status is None else self.status
        meters.requests.labels(route_of(path), str(status)).inc()
        meters.request_s.labels(route_of(path)).observe(seconds)
        if FAULT in self._scope:
            meters.errors.labels(self._scope[FAULT]).inc()
        logger = logging.getLogger(LOGGER)
        if logger.isEnabledFor(logging.INFO):
            method = self._scope["method"]
            facts = {
                "event": "request",
                "request_id": self.id,
                "method": method,
                "path": path,
                "status": status,
                "seconds": round(seconds, 6),
                **({} if self._tokens is None else {"tokens": int(self._tokens)}),
            }
            record = logger.makeRecord(
                LOGGER, logging.INFO, __file__, 0, "%s %s %d", (method, path, status), None, "request", facts
            )
            record.created, record.msecs = when, when % 1 * 1000
            logger.handle(record)


class Door:
    """ASGI middleware around the routes.

    Args:
        app: the routes.
        limits: of a request.
        keys: that open them.
        meters: count the requests.
        tracer: begins a span for each.
        gate: refuses what comes to a full house.
    """

    def __init__(
        self, app: App, *, limits: Limits, keys: ApiKeys, meters: Meters, tracer: Tracer | None, gate: Gate
    ) -> None:
        self._app, self._limits, self._keys, self._meters = app, limits, keys, meters
        self._tracer, self._gate = tracer, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other protocols pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visit = Visit(scope, headers, send)
        try:
            await self._traced(scope, headers, receive, visit)
        finally:
            visit.end(self._meters)

    async def _traced(self, scope: Scope, headers: dict[str, str], receive: Receive, visit: Visit) -> None:
        """Let a request in, under a span named as OpenTelemetry's conventions for HTTP servers have it."""
        if self._tracer is None:
            await self._let_in(scope, headers, receive, visit)
            return
        method, route = scope["method"], route_of(scope["path"])
        facts = {"http.request.method": method, "http.route": route, "raybert.request_id": visit.id}
        with self._tracer.start_as_current_span(
            f"{method} {route}", context=parent_of(headers), kind=SpanKind.SERVER, attributes=facts
        ) as span:
            await self._let_in(scope, headers, receive, visit)
            status = LEFT if visit.status is None else visit.status
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(StatusCode.ERROR)

    async def _let_in(self, scope: Scope, headers: dict[str, str], receive: Receive, visit: Visit) -> None:
        body = b""
        try:
            self._check_key(scope, headers)
            deadline_s = self._deadline(headers)
            async with asyncio.timeout(deadline_s):
                body = await self._body(headers, receive)
                if scope["method"] == "POST":
                    self._gate.check()
                await self._answered(scope, body, receive, visit.send)
        except ClientLeft:
            return
        except TimeoutError:
            await visit.refuse(ServiceError(Fault.DEADLINE, f"no answer within {deadline_s:g} s"), body)
        except ServiceError as error:
            await visit.refuse(error, body)

    def _check_key(self, scope: Scope, headers: dict[str, str]) -> None:
        path = scope["path"]
        if scope["method"] in ("GET", "HEAD") and (path in OPEN or path.startswith("/docs/")):
            return
        if not self._keys.allow(headers.get("authorization")):
            raise ServiceError(Fault.KEY, "no valid API key; send the header 'Authorization: Bearer KEY'")

    def _deadline(self, headers: dict[str, str]) -> float:
        """Seconds: the server's own, or fewer if the client says so."""
        asked = headers.get("x-request-timeout-seconds")
        if asked is None:
            return self._limits.deadline_s
        with suppress(ValueError):
            seconds = float(asked)
            if seconds > 0 and math.isfinite(seconds):
                return min(seconds, self._limits.deadline_s)
        raise ServiceError(Fault.MALFORMED, f"x-request-timeout-seconds {asked[:40]!r}: takes a number above 0")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        """The whole body, which must come in time and be of a size within the limit."""
        if (coding := headers.get("content-encoding", "identity")) != "identity":
            raise ServiceError(Fault.MALFORMED, f"content-encoding {coding[:40]!r}: send the body as it is")
        length = headers.get("content-length", "0")
        self._check_size(int(length) if length.isdecimal() else 0)
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    self._check_size(size)
                    if not message.get("more_body"):
                        return b"".join(pieces)
        except TimeoutError:
            raise ServiceError(
                Fault.DEADLINE, f"the body did not arrive within {self._limits.body_s:g} s; send it faster"
            ) from None

    def _check_size(self, size: int) -> None:
        if size > (most := self._limits.max_body_bytes):
            raise ServiceError(Fault.TOO_LARGE, f"a body of {size} bytes exceeds {most}; send it in pieces")

    async def _answered(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Let the routes answer, unless the client leaves meanwhile: then all that works for it ends."""
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        answering = asyncio.current_task()
        assert answering is not None
        left = through = False

        def leave(gone: asyncio.Future[Message]) -> None:
            nonlocal left
            if not through and not gone.cancelled():
                left = True
                answering.cancel()

        gone = asyncio.ensure_future(receive())
        gone.add_done_callback(leave)
        try:
            await self._app(scope, again, send)
        except asyncio.CancelledError:
            if not left:
                raise
            answering.uncancel()
            raise ClientLeft from None
        finally:
            through = True
            gone.cancel()


def response_of(error: ServiceError, path: str, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a refusal, as the family of the route has it."""
    told = orjson.dumps(FAMILIES[family_of(path, cohere=b'"documents"' in body)](error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(told)).encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if error.allow is not None:
        headers.append((b"allow", error.allow.encode()))
    if error.fault is Fault.KEY:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.fault.status, headers, told
