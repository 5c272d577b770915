"""The routes of a service, over the heads that it has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from raybert.serve.door import Door, response_of
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.limits import Gate, Limits
from raybert.serve.protocol import openai
from raybert.serve.security import ApiKeys
from raybert.serve.service import Answers, Ask, Service
from raybert.tasks.embed import Embed
from raybert.version import VERSION


def make_app(service: Service, *, limits: Limits, keys: ApiKeys) -> FastAPI:
    """The ASGI application: every route, behind its door."""
    desk = Desk(service, limits)
    app = FastAPI(title="raybert", version=VERSION)
    app.add_middleware(Door, limits=limits, keys=keys)
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    _openai_routes(app, desk)
    return app


class Desk:
    """Takes requests of all families to the heads.

    Args:
        service: the heads.
        limits: of a request.
    """

    def __init__(self, service: Service, limits: Limits) -> None:
        self.service, self.limits = service, limits
        self.started = int(time.time())
        self._gate = Gate(limits)

    def head(self, model: str | None, kind: type) -> str:
        """The head that a request means: the one it names, or the only one of its kind.

        Raises:
            ServiceError: there is none, or several.
        """
        if model is not None:
            task = self.service.task(model)
            if not isinstance(task, kind):
                raise ServiceError(Fault.MODEL, f"model {model!r}: it does {task.name}, not this", param="model")
            return model
        found = [name for name, task in self.service.tasks.items() if isinstance(task, kind)]
        if len(found) != 1:
            names = ", ".join(found) or "none of that kind"
            raise ServiceError(Fault.UNKNOWN, f"model: not given; there is {names}", param="model")
        return found[0]

    async def answer(self, ask: Ask) -> Answers:
        """Answer, if there is room.

        Raises:
            ServiceError: as `Service.answer`; too many items; no room.
        """
        if len(ask.items) > (most := self.limits.max_items):
            what = f"{ask.param}: {len(ask.items)} items exceed {most}; send fewer at once"
            raise ServiceError(Fault.TOO_LARGE, what, param=ask.param)
        answers = await self.service.answer(ask, self._gate)
        self._gate.note(answers.forwarded, answers.seconds["queue"] + answers.seconds["inference"])
        return answers


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    raw = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(raw, media_type="application/json", headers=dict(headers or {}))


def headers_of(answers: Answers) -> dict[str, str]:
    """What an answer says of itself: text-embeddings-inference's headers, in milliseconds, and what was cut."""
    times = {f"x-{name}-time": str(round(1000 * seconds)) for name, seconds in answers.seconds.items()}
    return times | {
        "x-compute-characters": str(answers.characters),
        "x-compute-tokens": str(answers.forwarded),
        "x-compute-time": times["x-total-time"],
        "x-truncated-inputs": str(answers.truncated),
    }


def _openai_routes(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/embeddings", responses={200: {"model": openai.EmbeddingResponse}}, tags=["OpenAI"])
    @app.post("/embeddings", include_in_schema=False)
    async def embeddings(request: openai.EmbeddingRequest) -> Response:
        """Vectors of texts."""
        head = desk.head(request.model, Embed)
        task = desk.service.tasks[head]
        answers = await desk.answer(openai.asked(request, head, cut=desk.limits.auto_truncate))
        assert isinstance(task, Embed)
        found = openai.vectors(request, answers.by_head[head].answers, normalized=task.normalize)
        return _json(openai.body(request, answers, head, found), headers_of(answers))

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> openai.ModelList:
        """What is served."""
        return openai.ModelList(data=[openai.ModelCard(id=name, created=desk.started) for name in desk.service.tasks])


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
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
        return Response(status_code=405, headers=dict(error.headers or {}))
    fault = Fault.UNKNOWN if error.status_code == 404 else Fault.MALFORMED
    return await _refused(request, ServiceError(fault, f"{request.url.path}: {error.detail}"))
