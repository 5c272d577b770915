"""Routes that take a body in JSON: read, validated and answered here, without what FastAPI has for other routes.

Its own way there solves dependencies and keeps stacks of contexts for each request, of which these have none. What a
route takes and gives is declared to FastAPI as ever: /openapi.json is its.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from raybert.serve.door import Receive, Scope, Send
from raybert.serve.faults import Fault, ServiceError


class Posted(APIRoute):
    """A route whose endpoint takes ``request``, which is the body, and parts of the path; behind the door.

    Args:
        path: of the route.
        endpoint: gives a response.
        **options: FastAPI's.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if self.body_field is not None:
            kind: Any = self.body_field.field_info.annotation
            self._kind: TypeAdapter[Any] = TypeAdapter(kind)
            self._parts = [part.name for part in self.dependant.path_params]
            self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _plain((await receive())["body"], scope)  # the door has all of it
        try:
            request = self._kind.validate_python(body, from_attributes=True)
        except ValidationError as error:
            raise invalid(error.errors()) from None
        given = scope["path_params"]
        response = await self.endpoint(request=request, **{name: given[name] for name in self._parts})
        await response(scope, receive, send)


def invalid(complaints: Sequence[Mapping[str, Any]]) -> ServiceError:
    """The first of pydantic's complaints, as one line."""
    first = complaints[0]
    place = [str(word) for word in first["loc"] if word != "body"]
    words = f"{'.'.join(place) or 'body'}: {first['msg']}"
    return ServiceError(Fault.INVALID, words, param=place[0] if place else None)


def _plain(body: bytes, scope: Scope) -> Any:
    """What is in a body."""
    if not body:
        raise ServiceError(Fault.INVALID, "body: Field required")
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if not _is_json(kind):
        told = kind[:40].decode("latin-1")
        raise ServiceError(Fault.INVALID, f"content-type {told!r}: is no JSON; send 'content-type: application/json'")
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        raise ServiceError(Fault.MALFORMED, f"the body is no JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, lists in lists
        raise ServiceError(Fault.MALFORMED, "the body is no JSON that can be read") from error


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
