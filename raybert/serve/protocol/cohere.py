"""Cohere's rerank API, versions 1 and 2, as its SDK, Jina's clients and vLLM's send and read it."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr

from raybert.serve.service import Answers
from raybert.tasks import Task
from raybert.tasks.rerank import rank


class Document(BaseModel):
    """A document as an object; other fields are of no consequence."""

    text: StrictStr


class CohereRequest(BaseModel):
    """Body of ``POST /v1/rerank`` and ``/v2/rerank``, and of ``/rerank`` with ``documents``."""

    model: StrictStr | None = Field(default=None, description="A served reranker; the first if left out.")
    query: StrictStr
    documents: list[StrictStr | Document]
    top_n: Annotated[StrictInt, Field(ge=1)] | None = Field(default=None, description="All, if left out.")
    return_documents: StrictBool | None = None
    max_tokens_per_doc: Annotated[StrictInt, Field(ge=1)] | None = Field(
        default=None, description="Tokens of a document that are looked at; as many as fit if left out."
    )

    def texts(self) -> list[str]:
        """The documents."""
        return [each.text if isinstance(each, Document) else each for each in self.documents]


class CohereResult(BaseModel):
    """One document, best first."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class CohereUsage(BaseModel):
    """Tokens that went through the model, special ones too."""

    total_tokens: int


class CohereResponse(BaseModel):
    """Answer of the three routes."""

    id: str
    model: str
    results: list[CohereResult]
    usage: CohereUsage
    meta: dict[str, Any]


def cut(texts: list[str], most: int | None, task: Task) -> list[str]:
    """The first so many tokens of each document, as text.

    Raises:
        RowError: one is no text.
    """
    if most is None:
        return texts
    taken = task.tokenizer().take(texts, offsets=True, whole=True)
    assert taken.offsets is not None
    begins = (taken.counts.cumsum() - taken.counts).tolist()
    found = []
    for text, begin, count in zip(texts, begins, taken.counts.tolist(), strict=True):
        found.append(text if count <= most else text[: int(taken.offsets[begin + most - 1, 1])])
    return found


def body(request: CohereRequest, answers: Answers, head: str, scores: Any) -> dict[str, Any]:
    """`CohereResponse` in plain values."""
    texts = request.texts()
    results: list[dict[str, Any]] = []
    for ranked in rank(scores)[: request.top_n]:
        result: dict[str, Any] = {"index": ranked.index, "relevance_score": ranked.score}
        if request.return_documents:
            result["document"] = {"text": texts[ranked.index]}
        results.append(result)
    return {
        "id": str(uuid.uuid4()),
        "model": head,
        "results": results,
        "usage": {"total_tokens": answers.forwarded},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }
