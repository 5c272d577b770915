"""The desk between the routes of all families and the heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
from fastapi.responses import Response

from raybert.serve.faults import Fault, ServiceError
from raybert.serve.limits import Gate, Limits
from raybert.serve.metrics import Meters
from raybert.serve.readings import key_of
from raybert.serve.service import Answers, Ask, Service
from raybert.tasks import Task
from raybert.tasks.arrays import unit
from raybert.tasks.embed import Embed
from raybert.tasks.embed_tokens import SparseEmbed

Kind = Callable[[Task], bool]


def pooled(task: Task) -> bool:
    """Whether a head gives a vector a text."""
    return isinstance(task, Embed)


def by_token(task: Task) -> bool:
    """Whether a head can give a vector a token."""
    return task.name == "embed" and not isinstance(task, SparseEmbed)


def sparse(task: Task) -> bool:
    """Whether a head gives weights of words."""
    return isinstance(task, SparseEmbed)


def doing(name: str) -> Kind:
    """Whether a head is of that task."""
    return lambda task: task.name == name


class Desk:
    """Takes requests of all families to the heads.

    Args:
        service: the heads.
        limits: of a request.
        meters: count what is answered.
        gate: lets in what there is room for.
    """

    def __init__(self, service: Service, limits: Limits, meters: Meters, gate: Gate) -> None:
        self.service, self.limits, self._meters = service, limits, meters
        self.started = int(time.time())
        self._gate = gate
        meters.held.set_function(lambda: self._gate.tokens)

    def head(self, model: str | None, kind: Kind, *, first: bool = True) -> str:
        """The head that a request means: the one it names, or the first of its kind.

        Args:
            model: as the request has it.
            kind: what the route needs.
            first: whether the first one serves where several could; else the request must say which.

        Raises:
            ServiceError: there is none, or several.
        """
        if model is not None:
            task = self.service.head(model)
            if not kind(task):
                raise ServiceError(Fault.MODEL, f"model {model!r}: it does {task.name}, not this", param="model")
            return model
        found = [name for name, task in self.service.tasks.items() if kind(task)]
        if not found or (len(found) > 1 and not first):
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
        self._meters.answered(len(ask.items), answers.forwarded, answers.truncated, answers.seconds)
        return answers

    def cuts(self, asked: bool | None) -> bool:
        """Whether too long a text is cut: as the request says, else as the server does."""
        return self.limits.auto_truncate if asked is None else asked


def read_as(desk: Desk, head: str, options: Mapping[str, Any]) -> str:
    """The key of a head with options changed; those that it has already change nothing, and share its batches."""
    task = desk.service.task(head)
    changed = {name: value for name, value in options.items() if value != getattr(task, name, None)}
    return key_of(head, changed)


def shortened(vectors: np.ndarray, size: int | None, *, normalized: bool) -> np.ndarray:
    """Vectors in the length that was asked for, float32 [N, D]; scaled again where they are normalized.

    Raises:
        ServiceError: they are shorter.
    """
    if size is None or size == vectors.shape[1]:
        return vectors
    if size > vectors.shape[1]:
        raise ServiceError(
            Fault.INVALID, f"dimensions {size}: this model's vectors have {vectors.shape[1]}", param="dimensions"
        )
    shorter: np.ndarray = vectors[:, :size]
    return unit(shorter) if normalized else shorter


def reply(content: Any, answers: Answers | None = None) -> Response:
    """A body in JSON; arrays of numbers are welcome."""
    raw = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(raw, media_type="application/json", headers={} if answers is None else headers_of(answers))


def headers_of(answers: Answers) -> dict[str, str]:
    """What an answer says of itself: text-embeddings-inference's headers, in milliseconds, and what was cut."""
    times = {f"x-{name}-time": str(round(1000 * seconds)) for name, seconds in answers.seconds.items()}
    return times | {
        "x-compute-type": answers.device,
        "x-compute-characters": str(answers.characters),
        "x-compute-tokens": str(answers.forwarded),
        "x-compute-time": times["x-total-time"],
        "x-truncated-inputs": str(answers.truncated),
    }
