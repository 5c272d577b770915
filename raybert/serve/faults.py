"""Everything that can go wrong with a request: one table of kinds, and how each family of clients is told.

Status codes and bodies are those that the clients of each family read: openai-python takes ``body["error"]`` and tries
408, 409, 429 and 5xx again; clients of text-embeddings-inference look at ``error`` and ``error_type``; Cohere's at
``message``; huggingface_hub's at ``error``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        status: of the response.
        openai: the ``type`` of OpenAI's error body.
        tei: the ``error_type`` of text-embeddings-inference's.
    """

    status: int
    openai: str
    tei: str


class Fault(Enum):
    """The kinds."""

    MALFORMED = Kind(status=400, openai="invalid_request_error", tei="Validation")
    """No JSON, or token ids that the model does not have."""
    EMPTY = Kind(status=400, openai="invalid_request_error", tei="Empty")
    """Nothing is asked."""
    KEY = Kind(status=401, openai="authentication_error", tei="Unauthorized")
    UNKNOWN = Kind(status=404, openai="not_found_error", tei="NotFound")
    """There is no such model, or route."""
    METHOD = Kind(status=405, openai="invalid_request_error", tei="Validation")
    """The route is there, and takes another method."""
    TOO_LARGE = Kind(status=413, openai="invalid_request_error", tei="Validation")
    """A body, a list or a text is over a limit, and nothing allows to cut it."""
    INVALID = Kind(status=422, openai="invalid_request_error", tei="Validation")
    """A field has no meaning here."""
    TOKENIZER = Kind(status=422, openai="invalid_request_error", tei="Tokenizer")
    """A text that is none, such as half of a surrogate pair."""
    MODEL = Kind(status=424, openai="server_error", tei="Backend")
    """The model failed, or does not do what is asked of it."""
    BUSY = Kind(status=429, openai="rate_limit_error", tei="Overloaded")
    NOT_READY = Kind(status=503, openai="server_error", tei="Unhealthy")
    DEADLINE = Kind(status=504, openai="server_error", tei="Timeout")

    @property
    def status(self) -> int:
        """Of the response."""
        return self.value.status

    @property
    def code(self) -> str:
        """A word for metrics and for OpenAI's ``code``."""
        return self.name.lower()


class ServiceError(Exception):
    """A request can't be answered.

    Attributes:
        fault: of which kind.
        message: place, value, limit and remedy, in one line.
        param: the field that is meant, as the client spells it; None: none.
        retry_after_s: when it may be worth another try.
        allow: methods that the route takes.
    """

    def __init__(
        self,
        fault: Fault,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.fault, self.message, self.param = fault, message, param
        self.retry_after_s, self.allow = retry_after_s, allow


def _openai(error: ServiceError) -> dict[str, Any]:
    kind = error.fault.value
    body = {"message": error.message, "type": kind.openai, "param": error.param, "code": error.fault.code}
    return {"error": body}


def _tei(error: ServiceError) -> dict[str, Any]:
    return {"error": error.message, "error_type": error.fault.value.tei}


def _cohere(error: ServiceError) -> dict[str, Any]:
    return {"message": error.message}


def _hugging_face(error: ServiceError) -> dict[str, Any]:
    return {"error": error.message}


FAMILIES: Mapping[str, Callable[[ServiceError], dict[str, Any]]] = {
    "openai": _openai,
    "tei": _tei,
    "cohere": _cohere,
    "huggingface": _hugging_face,
}
"""Family -> the body of its errors. raybert's own routes speak as OpenAI's do."""


def family_of(path: str, *, cohere: bool = False) -> str:
    """The family of clients that a route belongs to.

    Args:
        path: of the request.
        cohere: for ``/rerank``, which two families share: whether its body has ``documents``.
    """
    if path.startswith("/models/"):
        return "huggingface"
    if path in ("/v1/rerank", "/v2/rerank") or (path == "/rerank" and cohere):
        return "cohere"
    if path.startswith("/v1/") or path == "/embeddings":
        return "openai"
    return "tei"
