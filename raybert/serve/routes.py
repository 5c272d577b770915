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
from raybert.serve.door import FAULT, Door, response_of
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
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    families = (openai_routes, tei_routes, cohere_routes, hugging_face_routes, label_routes, default_routes)
    routers = [*(routes(desk) for routes in families), upkeep_routes(desk, board), playground_routes()]
    # Not include_router: each request would be matched twice. Before FastAPI's own, which fewer ask for: Ray Serve looks
    # through all of them too, for the name of each request's route.
    app.routes[:0] = [route for router in routers for route in router.routes]
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    request.scope[FAULT] = error.fault.code
    status, headers, body = response_of(error, request.url.path, await request.body())
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def _invalid(request: Request, error: Exception) -> Response:
    """The first of pydantic's complaints, as one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(word) for word in first["loc"] if word != "body"]
    if first["type"] == "json_invalid":
        return await _refused(request, ServiceError(Fault.MALFORMED, f"the body is no JSON: {first['ctx']['error']}"))
    words = f"{'.'.join(place) or 'body'}: {first['msg']}"
    return await _refused(request, ServiceError(Fault.INVALID, words, param=place[0] if place else None))


async def _http(request: Request, error: Exception) -> Response:
    """What FastAPI says by itself: unknown routes and methods, bodies that are none."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {})["Allow"]
        words = f"{request.url.path}: takes {allowed}, not {request.method}"
        response = await _refused(request, ServiceError(Fault.METHOD, words))
        response.headers["allow"] = allowed
        return response
    fault = Fault.UNKNOWN if error.status_code == 404 else Fault.MALFORMED
    return await _refused(request, ServiceError(fault, f"{request.url.path}: {error.detail}"))
