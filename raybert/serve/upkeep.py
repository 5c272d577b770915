"""The routes of those who run a service: health, metrics, what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from raybert.serve.board import Board
from raybert.serve.desk import Desk, reply
from raybert.tasks import Task
from raybert.tasks.embed import Embed
from raybert.version import VERSION


def upkeep_routes(desk: Desk, board: Board) -> APIRouter:
    """``/livez``, ``/readyz`` and its other names, ``/metrics``, ``/info``."""
    router = APIRouter(tags=["upkeep"])

    @router.get("/livez")
    async def livez() -> dict[str, str]:
        """The process answers; says nothing of its models."""
        return {"status": "alive"}

    @router.get("/readyz")
    @router.get("/health", operation_id="health")
    @router.get("/ping", operation_id="ping")
    async def readyz() -> dict[str, str]:
        """Every model computes: a forward of each came back within two seconds, or comes back now. Else 503."""
        await desk.service.check()
        return {"status": "ready"}

    @router.get("/metrics")
    async def metrics() -> Response:
        """The whole service's metrics, whichever replica answers, for Prometheus."""
        return Response(await board.scrape(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/info")
    async def info(model: str | None = None) -> Response:
        """A head's model and limits, as text-embeddings-inference tells them; the first served head's if none is named.

        Each head's fingerprint says whether a batch job's rows are of the same head.
        """
        head = model if model is not None else next(iter(desk.service.tasks))
        return reply(await about(desk, head))

    return router


async def about(desk: Desk, head: str) -> dict[str, Any]:
    """What `/info` tells of a head.

    Raises:
        ServiceError: there is none of that name.
    """
    task, limits = desk.service.head(head), desk.limits
    folder = task.checkpoint.path
    settings = await desk.service.facts(head)
    return {
        "model_id": task.checkpoint.name,
        "model_sha": folder.name if folder.parent.name == "snapshots" else None,  # as the hub's cache lays them out
        "model_dtype": settings["dtype"],
        "served_model_name": head,
        "model_type": _kind(task),
        "max_concurrent_requests": None,
        "max_input_length": task.max_length,
        "max_batch_tokens": settings["budget"],
        "max_batch_requests": None,
        "max_client_batch_size": limits.max_items,
        "auto_truncate": limits.auto_truncate,
        "tokenization_workers": desk.service.threads,
        "version": VERSION,
        "sha": None,
        "docker_label": None,
        "task": task.name,
        "options": task.options,
        "fingerprint": task.fingerprint(settings["dtype"]),
        "device": settings["device"],
        "max_waiting_tokens": limits.max_waiting_tokens,
        "models": list(desk.service.tasks),
        "mask_token": _mask(task),
    }


def _kind(task: Task) -> dict[str, Any]:
    """The peer's word for what a model is; ours for what it does not serve."""
    if task.name == "embed":
        pooling = "+".join(task.pooling) if isinstance(task, Embed) else str(task.options["output"])
        return {"embedding": {"pooling": pooling}}
    labels = list(getattr(task, "labels", ()))
    maps = {
        "id2label": {str(at): label for at, label in enumerate(labels)},
        "label2id": {label: at for at, label in enumerate(labels)},
    }
    names = {"classify": "classifier", "rerank": "reranker"}
    return {names.get(task.name, task.name): maps}


def _mask(task: Task) -> str | None:
    """What stands for a word that is to be found; None where none is."""
    tokenizer = task.tokenizer()
    if task.name != "fill-mask" or tokenizer.mask_id is None:
        return None
    return tokenizer.pieces[tokenizer.mask_id]
