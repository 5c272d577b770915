"""raybert's own: many heads over the same texts, one forward pass wherever they share an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, StrictBool, StrictStr, model_validator

from raybert.serve.faults import Fault, ServiceError
from raybert.serve.protocol import huggingface
from raybert.serve.service import Answers, Item
from raybert.tasks import Task
from raybert.tasks.embed_tokens import SparseVector
from raybert.text.tokenizer import problem


class LabelRequest(BaseModel):
    """Body of ``POST /v1/label``."""

    model: StrictStr | None = Field(default=None, description="One head.")
    heads: list[StrictStr] | None = Field(default=None, min_length=1, description="Several; all of them if left out.")
    inputs: StrictStr | dict[str, Any] | list[Any] = Field(
        examples=[["Ada Lovelace was born in London."]],
        description='Texts, pairs {"text", "text_pair"}, questions {"question", "context"} or {"prompt", "choices"}.',
    )
    parameters: dict[str, dict[str, Any]] | None = Field(
        default=None, description="Head -> options of its task that this request changes."
    )
    truncate: StrictBool | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> LabelRequest:
        if self.model is not None and self.heads is not None:
            raise ValueError("give either model or heads")
        return self

    def listed(self) -> list[Any]:
        """The inputs, one for each row of the answer."""
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


class LabelRow(BaseModel):
    """One input's answers by head, and how many tokens it has for each; or why it has none."""

    index: int
    heads: dict[str, Any] | None = None
    tokens: dict[str, int] | None = None
    truncated: dict[str, bool] | None = None
    error: str | None = None


class LabelResponse(BaseModel):
    """Answer of ``POST /v1/label``."""

    object: str = "list"
    data: list[LabelRow]
    usage: dict[str, int]


def fitting(inputs: Sequence[Any]) -> tuple[list[Item], list[int], dict[int, str]]:
    """Items, which inputs they are, and what is wrong with each of the others."""
    items: list[Item] = []
    places: list[int] = []
    wrong: dict[int, str] = {}
    for at, value in enumerate(inputs):
        found = _item(value)
        if isinstance(found, ServiceError):
            wrong[at] = found.message
            continue
        items.append(found)
        places.append(at)
    return items, places, wrong


def _item(value: Any) -> Item | ServiceError:
    for task in ("classify", "qa", "multiple-choice"):
        item = huggingface.FORMS[task].one(value)
        if item is not None:
            texts = [item] if isinstance(item, str) else _flat(item)
            bad = next((found for text in texts if (found := problem(text))), None)
            return item if bad is None else ServiceError(Fault.TOKENIZER, bad[1])
    return ServiceError(Fault.INVALID, "neither a text, a pair, a question with context nor a prompt with choices")


def _flat(item: Any) -> list[str]:
    first, second = item
    return [first, *second] if isinstance(second, list) else [first, second]


def shown(task: Task, answer: Any) -> Any:
    """One head's answer to one input, in plain values, named as in the columns of a batch job."""
    if isinstance(answer, SparseVector):
        return {"ids": answer.ids, "weights": answer.weights}
    if task.name == "embed" or isinstance(answer, np.floating | float):
        return answer
    if task.name in ("classify", "next-sentence", "multiple-choice"):
        found = {"label": answer.label, "score": answer.score, "scores": answer.scores}
        return found if answer.labels is None else found | {"labels": answer.labels}
    if task.name == "fill-mask":
        return [[_plain(fill) for fill in mask] for mask in answer]
    return [_plain(each) for each in answer]


def _plain(answer: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(answer).items() if value is not None}


def body(
    tasks: Mapping[str, tuple[str, Task]], answers: Answers | None, places: Sequence[int], wrong: Mapping[int, str]
) -> dict[str, Any]:
    """`LabelResponse` in plain values.

    Args:
        tasks: head -> key and task.
        answers: to the inputs at ``places``; None if there are none.
        places: of the inputs that were answered.
        wrong: input -> why it was not.
    """
    rows: list[dict[str, Any]] = [{"index": at, "error": why} for at, why in wrong.items()]
    for number, at in enumerate(places):
        assert answers is not None
        told = {head: answers.by_head[key] for head, (key, _) in tasks.items()}
        row = {head: shown(task, told[head].answers[number]) for head, (_, task) in tasks.items()}
        tokens = {head: int(each.tokens[number]) for head, each in told.items()}
        truncated = {head: bool(each.truncated[number]) for head, each in told.items()}
        rows.append({"index": at, "heads": row, "tokens": tokens, "truncated": truncated})
    total = 0 if answers is None else answers.forwarded
    usage = {"prompt_tokens": total, "total_tokens": total}
    return {"object": "list", "data": sorted(rows, key=lambda row: row["index"]), "usage": usage}
