"""Requests that Ray Serve need not watch, since the door sees by itself that a client left.

Else Ray Serve, where it passes HTTP on to a replica itself, waits for the end of each connection and for the answer in
a task each, with a queue between them and the door. `raybert.serve.launch` names `in_replicas` to it.
"""

from __future__ import annotations

from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.middleware import Middleware

from raybert.serve.door import App, Receive, Scope, Send

_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")  # Ray Serve's word for it


class Unwatched:
    """ASGI middleware that says so of each request.

    Args:
        app: Ray Serve's.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], _UNWATCHED]
        await self._app(scope, receive, send)


def in_replicas() -> list[Middleware]:
    """What stands before Ray Serve's own application, in replicas alone: behind a proxy nobody else would watch."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return []
    return [Middleware(Unwatched)]
