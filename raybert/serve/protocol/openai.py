"""OpenAI's embeddings API, as openai-python 3 sends and reads it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictInt, StrictStr

from raybert.serve.service import Answers, Ask, Item, TokenIds

Ids = Annotated[list[StrictInt], Field(min_length=1)]


class EmbeddingRequest(BaseModel):
    """Body of ``POST /v1/embeddings``. Fields that are not here are of no consequence, as OpenAI's ``user``."""

    input: StrictStr | Ids | list[StrictStr] | list[Ids] = Field(
        description="A text, a list of texts, or token ids of the served model's own vocabulary.",
        examples=["a text", ["a text", "another"]],
    )
    model: str | None = Field(
        default=None, description="Name of a served embedding model; may be left out if there is one."
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, which openai-python asks for by itself."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None,
        description="Keep the first so many numbers of a vector, scaled again where the model scales.",
    )
    truncate: bool | None = Field(
        default=None,
        description="Whether a text that is too long is cut, or the request refused; the server's way if null.",
    )

    def items(self) -> list[Item]:
        """The texts, or lists of token ids, one for each vector."""
        if isinstance(self.input, str):
            return [self.input]
        ids = [each for each in self.input if isinstance(each, int)]
        if ids:
            return [TokenIds(ids)]
        return [TokenIds(each) if isinstance(each, list) else str(each) for each in self.input]


class EmbeddingData(BaseModel):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that went through the model, special ones too."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """Answer of ``POST /v1/embeddings``."""

    object: Literal["list"] = "list"
    data: list[EmbeddingData]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """One of ``GET /v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "raybert"


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def asked(request: EmbeddingRequest, head: str, *, cut: bool) -> Ask:
    """What the request wants of a head."""
    cuts = cut if request.truncate is None else request.truncate
    return Ask(heads=(head,), items=request.items(), cut=cuts, param="input")


def body(request: EmbeddingRequest, answers: Answers, head: str, found: np.ndarray) -> dict[str, Any]:
    """`EmbeddingResponse` in plain values; vectors as arrays, or as base64."""
    rows: Sequence[Any] = list(found)
    if request.encoding_format == "base64":
        rows = [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in found]
    data = [{"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)]
    usage = {"prompt_tokens": answers.forwarded, "total_tokens": answers.forwarded}
    return {"object": "list", "data": data, "model": head, "usage": usage}
