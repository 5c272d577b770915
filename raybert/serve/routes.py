"""The routes of a service, over the heads that it has."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from opentelemetry.trace import Tracer
from starlette.exceptions import HTTPException

from raybert.serve.board import Board
from raybert.serve.desk import Desk
from raybert.serve.door import Door
from raybert.serve.families import (
    cohere_routes,
    default_routes,
    hugging_face_routes,
    label_routes,
    openai_routes,
    tei_routes,
)
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.limits import Gate, Limits
from raybert.serve.playground import playground_routes
from raybert.serve.posted import invalid
from raybert.serve.security import ApiKeys
from raybert.serve.service import Service
from raybert.serve.upkeep import upkeep_routes
from raybert.version import VERSION

_DOOR_TELLS = {"tracing": False, "metrics": False, "logs": False}
"""What FastAPI need not tell to OpenTelemetry."""


def make_app(service: Service, *, limits: Limits, keys: ApiKeys, board: Board, tracer: Tracer | None = None) -> FastAPI:
    """The ASGI application: every route, behind its door."""
    gate = Gate(limits)
    desk = Desk(service, limits, board.meters, gate)
    app = FastAPIOffline(
        title="raybert", version=VERSION, redoc_url=None, static_url="/docs/assets", telemetry=_DOOR_TELLS
    )
    app.add_middleware(Door, limits=limits, keys=keys, meters=board.meters, tracer=tracer, gate=gate)
    # A `ServiceError` passes: the door tells it. What else goes wrong becomes one.
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    families = (openai_routes, tei_routes, cohere_routes, hugging_face_routes, label_routes, default_routes)
    routers = [*(routes(desk) for routes in families), upkeep_routes(desk, board), playground_routes()]
    # Not include_router: each request would be matched twice. Before FastAPI's own, which fewer ask for: Ray Serve too
    # looks through them, for the name of each request's route.
    app.routes[:0] = [route for router in routers for route in router.routes]
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    """What is wrong with the address; of bodies `Posted` tells."""
    assert isinstance(error, RequestValidationError)
    raise invalid(error.errors())


async def _http(request: Request, error: Exception) -> Response:
    """What FastAPI says by itself: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {})["Allow"]
        raise ServiceError(Fault.METHOD, f"{path}: takes {allowed}, not {request.method}", allow=allowed)
    raise ServiceError(Fault.UNKNOWN if error.status_code == 404 else Fault.MALFORMED, f"{path}: {error.detail}")
