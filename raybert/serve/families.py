"""The inference routes, family by family: each takes its body to the desk and puts the answers into its own words."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from raybert.errors import RowError
from raybert.serve.desk import Desk, by_token, doing, pooled, read_as, reply, shortened, sparse
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.posted import Posted, invalid
from raybert.serve.protocol import cohere, huggingface, label, openai, tei
from raybert.serve.readings import key_of
from raybert.serve.service import Answers, Ask
from raybert.tasks import Task
from raybert.tasks.arrays import unit
from raybert.tasks.embed import Embed
from raybert.tasks.rerank import rank

Body = TypeVar("Body", bound=BaseModel)


def openai_routes(desk: Desk) -> APIRouter:
    """``/v1/embeddings`` and ``/v1/models``."""
    router = APIRouter(tags=["OpenAI"], route_class=Posted)

    @router.post("/v1/embeddings", responses={200: {"model": openai.EmbeddingResponse}})
    @router.post("/embeddings", include_in_schema=False)
    async def embeddings(request: openai.EmbeddingRequest) -> Response:
        """Vectors of texts."""
        head = desk.head(request.model, pooled, first=False)
        answers = await desk.answer(openai.asked(request, head, cut=desk.limits.auto_truncate))
        vectors = _vectors(desk, head, answers, request.dimensions)
        return reply(openai.body(request, answers, head, vectors), answers)

    @router.get("/v1/models")
    async def models() -> openai.ModelList:
        """What is served."""
        return openai.ModelList(data=[openai.ModelCard(id=name, created=desk.started) for name in desk.service.tasks])

    return router


def _vectors(desk: Desk, key: str, answers: Answers, size: int | None) -> np.ndarray:
    task = desk.service.task(key)
    assert isinstance(task, Embed)
    return shortened(answers.by_head[key].answers, size, normalized=task.normalize)


class Tei:
    """What the routes of text-embeddings-inference do; the default route does one of them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def _answered(self, key: str, items: Any, request: tei.Cut, param: str = "inputs") -> Answers:
        return await self._desk.answer(
            Ask(heads=(key,), items=items, cut=self._desk.cuts(request.truncate), param=param)
        )

    def _key(self, head: str, request: tei.Cut, **options: Any) -> str:
        return read_as(self._desk, head, {"truncation_side": request.side, **_given(options)})

    async def embed(self, request: tei.EmbedRequest) -> Response:
        """A vector a text."""
        head = self._desk.head(request.model, pooled)
        key = self._key(head, request, normalize=request.normalize, prompt_name=request.prompt_name)
        answers = await self._answered(key, request.items(), request)
        return reply(_vectors(self._desk, key, answers, request.dimensions), answers)

    async def embed_all(self, request: tei.Inputs) -> Response:
        """A vector a token, special tokens and prompt included."""
        head = self._desk.head(request.model, by_token)
        key = self._key(head, request, output="tokens", prompt_name=request.prompt_name)
        answers = await self._answered(key, request.items(), request)
        return reply([np.ascontiguousarray(rows) for rows in answers.by_head[key].answers], answers)

    async def embed_sparse(self, request: tei.Inputs) -> Response:
        """The words of each text, with weights; of SPLADE checkpoints."""
        head = self._desk.head(request.model, sparse)
        key = self._key(head, request, prompt_name=request.prompt_name)
        answers = await self._answered(key, request.items(), request)
        return reply([tei.weights(each) for each in answers.by_head[key].answers], answers)

    async def predict(self, request: tei.PredictRequest) -> Response:
        """Labels of a text, of a pair, or of several."""
        head = self._desk.head(request.model, doing("classify"))
        key = self._key(head, request, activation="none" if request.raw_scores else None)
        answers = await self._answered(key, request.items(), request)
        found = [tei.scores(each) for each in answers.by_head[key].answers]
        return reply(found if request.is_batch else found[0], answers)

    async def rerank(self, request: tei.RerankRequest) -> Response:
        """Every text's score for the query, best first."""
        head = self._desk.head(request.model, doing("rerank"))
        key = self._key(head, request, activation="none" if request.raw_scores else None)
        answers = await self._answered(key, [(request.query, text) for text in request.texts], request, "texts")
        return reply(tei.ranks(rank(answers.by_head[key].answers), request), answers)

    async def similarity(self, request: tei.SimilarityRequest) -> Response:
        """The cosine of one text and each of the others."""
        given = request.parameters or tei.SimilarityParameters()
        head = self._desk.head(request.model, pooled)
        key = self._key(head, given, prompt_name=given.prompt_name)
        texts = [request.inputs.source_sentence, *request.inputs.sentences]
        if len(texts) == 1:
            raise ServiceError(Fault.EMPTY, "inputs.sentences: empty; give one or more", param="inputs")
        answers = await self._answered(key, texts, given)
        return reply(cosines(answers.by_head[key].answers), answers)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Of the first vector with each of the others, float32 [N - 1]."""
    scaled = unit(vectors)
    found: np.ndarray = scaled[1:] @ scaled[0]
    return found


def tei_routes(desk: Desk) -> APIRouter:
    """The routes of text-embeddings-inference, and Cohere's that shares one of them."""
    router, does = APIRouter(tags=["text-embeddings-inference"], route_class=Posted), Tei(desk)
    router.post("/embed", responses={200: {"model": list[list[float]]}})(does.embed)
    router.post("/embed_all", responses={200: {"model": list[list[list[float]]]}})(does.embed_all)
    router.post("/embed_sparse", responses={200: {"model": list[list[tei.Weight]]}})(does.embed_sparse)
    router.post("/predict", responses={200: {"model": list[tei.Score] | list[list[tei.Score]]}})(does.predict)
    router.post("/similarity", responses={200: {"model": list[float]}})(does.similarity)

    @router.post("/rerank", responses={200: {"model": list[tei.Rank] | cohere.CohereResponse}})
    async def rerank(request: tei.RerankBody) -> Response:
        """With ``texts`` as text-embeddings-inference has it, with ``documents`` as Cohere."""
        plain = request.model_dump(exclude_unset=True)
        if request.texts is not None:
            return await does.rerank(parsed(tei.RerankRequest, plain))
        return await _cohere(desk, parsed(cohere.CohereRequest, plain))

    @router.post("/tokenize", responses={200: {"model": list[list[tei.Token]]}})
    async def tokenize(request: tei.TokenizeRequest) -> Response:
        """The tokens of texts; nothing is cut off."""
        key = _any_head(desk, request.model, request.prompt_name)
        return reply(await _in_thread(tei.tokens, request, desk.service.task(key)))

    @router.post("/decode", responses={200: {"model": list[str]}})
    async def decode(request: tei.DecodeRequest) -> Response:
        """The texts of token ids."""
        key = _any_head(desk, request.model, None)
        return reply(await _in_thread(tei.texts, request, desk.service.task(key)))

    return router


def _any_head(desk: Desk, model: str | None, prompt_name: str | None) -> str:
    head = desk.head(model, lambda _: True)
    return head if prompt_name is None else key_of(head, {"prompt_name": prompt_name})


async def _in_thread(work: Any, request: Any, task: Task) -> Any:
    try:
        return await asyncio.to_thread(work, request, task)
    except RowError as error:
        fault = Fault.MALFORMED if error.reason == "unknown_id" else Fault.TOKENIZER
        raise ServiceError(fault, f"item {error.row}: {error.detail}") from error


def cohere_routes(desk: Desk) -> APIRouter:
    """``/v1/rerank`` and ``/v2/rerank``."""
    router = APIRouter(tags=["Cohere"], route_class=Posted)

    @router.post("/v1/rerank", responses={200: {"model": cohere.CohereResponse}})
    @router.post("/v2/rerank", responses={200: {"model": cohere.CohereResponse}})
    async def rerank(request: cohere.CohereRequest) -> Response:
        """Documents by how well they answer the query, best first."""
        return await _cohere(desk, request)

    return router


async def _cohere(desk: Desk, request: cohere.CohereRequest) -> Response:
    head = desk.head(request.model, doing("rerank"))
    texts = request.texts()
    if request.max_tokens_per_doc is not None:
        texts = await _in_thread(
            lambda asked, task: cohere.cut(texts, asked, task), request.max_tokens_per_doc, desk.service.task(head)
        )
    pairs = [(request.query, text) for text in texts]
    answers = await desk.answer(Ask(heads=(head,), items=pairs, cut=True, param="documents"))
    return reply(cohere.body(request, answers, head, answers.by_head[head].answers), answers)


class HuggingFace:
    """What ``POST /models/{name}`` does, which depends on the head's task."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def answer(self, name: str, request: huggingface.TaskRequest) -> Response:
        """One head's answers to one input or a list of them."""
        task = self._desk.service.head(name)
        asked = request.asked()
        options = huggingface.options(task.name, asked)
        sought = huggingface.similarity(request.inputs) if pooled(task) else None
        items = [sought[0], *sought[1]] if sought else huggingface.items(task.name, request.inputs)
        key = read_as(self._desk, name, options)
        cut = self._desk.cuts(asked.get("truncate"))
        answers = await self._desk.answer(Ask(heads=(key,), items=items, cut=cut, param="inputs"))
        found = answers.by_head[key].answers
        if sought:
            return reply(cosines(found), answers)
        return reply(self._shown(task, request, asked, found), answers)

    def _shown(self, task: Task, request: huggingface.TaskRequest, asked: Mapping[str, Any], found: Any) -> Any:
        if asked.get("encoding_format") == "base64" and pooled(task):
            return [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in found]
        form = huggingface.FORMS[task.name]
        if sparse(task):
            shown = [tei.weights(answer) for answer in found]
        elif task.name == "qa":
            one = asked.get("top_k", getattr(task, "top_k", 1)) == 1
            shown = [huggingface.answered(answer, one=one) for answer in found]
        else:
            shown = [form.shown(answer) for answer in found]
        return shown if form.nested or isinstance(request.inputs, list) else shown[0]


def hugging_face_routes(desk: Desk) -> APIRouter:
    """``/models/{name}``, with the longer path that the client makes for two of the tasks."""
    router, does = APIRouter(tags=["Hugging Face"], route_class=Posted), HuggingFace(desk)

    @router.post("/models/{name}")
    @router.post("/models/{name}/pipeline/{task}", include_in_schema=False)
    async def infer(name: str, request: huggingface.TaskRequest) -> Response:
        """A head's answers, in the shapes of Hugging Face's tasks."""
        return await does.answer(name, request)

    return router


def label_routes(desk: Desk) -> APIRouter:
    """``/v1/label``."""
    router = APIRouter(tags=["raybert"], route_class=Posted)

    @router.post("/v1/label", responses={200: {"model": label.LabelResponse}})
    async def labels(request: label.LabelRequest) -> Response:
        """Many heads over the same texts in one pass; a bad input fails alone."""
        heads = [request.model] if request.model is not None else request.heads or list(desk.service.tasks)
        given = request.parameters or {}
        if stray := next((name for name in given if name not in heads), None):
            raise ServiceError(Fault.INVALID, f"parameters: {stray!r} is no head of this request", param="parameters")
        keys = {head: _key(desk, head, given.get(head, {})) for head in dict.fromkeys(heads)}
        inputs = request.listed()
        if not inputs:
            raise ServiceError(Fault.EMPTY, "inputs: empty; give one or more", param="inputs")
        items, places, wrong = label.fitting(inputs)
        answers = None
        if items:
            ask = Ask(heads=tuple(keys.values()), items=items, cut=desk.cuts(request.truncate), param="inputs")
            answers = await desk.answer(ask)
        tasks = {head: (key, desk.service.task(key)) for head, key in keys.items()}
        return reply(label.body(tasks, answers, places, wrong), answers)

    return router


def _key(desk: Desk, head: str, options: Mapping[str, Any]) -> str:
    desk.service.head(head)
    return read_as(desk, head, options)


def default_routes(desk: Desk) -> APIRouter:
    """``/`` and ``/invocations``: the task of the first served head."""
    router, tei_does, huggingface_does = APIRouter(tags=["default"], route_class=Posted), Tei(desk), HuggingFace(desk)

    @router.post("/", operation_id="default")
    @router.post("/invocations", operation_id="invocations")
    async def default(request: dict[str, Any]) -> Response:
        """What the first served head does: as /embed, /embed_sparse, /predict, /rerank, or as /models/{name}."""
        head, task = next(iter(desk.service.tasks.items()))
        if pooled(task):
            return await tei_does.embed(parsed(tei.EmbedRequest, request))
        if sparse(task):
            return await tei_does.embed_sparse(parsed(tei.Inputs, request))
        if task.name == "classify":
            return await tei_does.predict(parsed(tei.PredictRequest, request))
        if task.name == "rerank":
            return await tei_does.rerank(parsed(tei.RerankRequest, request))
        return await huggingface_does.answer(head, parsed(huggingface.TaskRequest, request))

    return router


def parsed(kind: type[Body], plain: Mapping[str, Any]) -> Body:
    """A body as one route's model.

    Raises:
        ServiceError: it isn't one.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise invalid(error.errors()) from None
