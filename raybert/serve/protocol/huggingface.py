"""Hugging Face's task API, ``{"inputs": ..., "parameters": {...}}``, as `huggingface_hub.InferenceClient` has it.

What an input is, which parameters there are and how an answer looks depends on the head's task. The names of the
parameters are the pipelines' own; `PARAMETERS` says which option each one is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, StrictBool, StrictInt, StrictStr

from raybert.config import nearest
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.service import Item
from raybert.tasks.answer import Answer
from raybert.tasks.classify import Classification
from raybert.tasks.fill_mask import Fill
from raybert.tasks.ner import Entity


class TaskRequest(BaseModel):
    """Body of ``POST /models/{name}``. feature-extraction's parameters may stand beside ``inputs`` as well."""

    inputs: Any = Field(
        examples=["Ada Lovelace was born in London.", {"question": "Who was born?", "context": "Ada was born."}]
    )
    parameters: dict[str, Any] | None = None
    normalize: StrictBool | None = None
    prompt_name: StrictStr | None = None
    truncate: StrictBool | None = None
    truncation_direction: StrictStr | None = None
    dimensions: StrictInt | None = None
    encoding_format: StrictStr | None = None

    def asked(self) -> dict[str, Any]:
        """All parameters that were given, wherever they stand."""
        names = ("normalize", "prompt_name", "truncate", "truncation_direction", "dimensions", "encoding_format")
        beside = {name: value for name in names if (value := getattr(self, name)) is not None}
        inside = {name: value for name, value in (self.parameters or {}).items() if value is not None}
        return {**inside, **beside}


PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "embed": {
        "normalize": "normalize",
        "prompt_name": "prompt_name",
        "truncation_direction": "truncation_side",
        "dimensions": "dimensions",
    },
    "classify": {"top_k": "top_k", "function_to_apply": "activation"},
    "ner": {"aggregation_strategy": "aggregation", "ignore_labels": "ignore_labels", "stride": "stride"},
    "qa": {
        "align_to_words": "align_to_words",
        "doc_stride": "stride",
        "handle_impossible_answer": "handle_impossible_answer",
        "max_answer_len": "max_answer_len",
        "max_question_len": "max_question_len",
        "max_seq_len": "max_length",
        "top_k": "top_k",
    },
    "fill-mask": {"top_k": "top_k", "targets": "targets"},
    "rerank": {"function_to_apply": "activation"},
    "next-sentence": {},
    "multiple-choice": {},
}
"""Task -> the client's name of a parameter -> ours of the option."""

_CALLS_OWN: Mapping[str, tuple[Any, ...]] = {"truncate": (True, False), "encoding_format": ("float", "base64")}
"""What says how one request is answered, and not how the head reads; with its values."""


def options(task: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a task that parameters mean.

    Raises:
        ServiceError: the task has no such parameter.
    """
    known = PARAMETERS[task]
    for name in asked:
        if name not in known and name not in _CALLS_OWN:
            hint = nearest(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise ServiceError(Fault.INVALID, f"parameters.{name}: unknown to {task}{hint}", param="parameters")
    for name, values in _CALLS_OWN.items():
        if name in asked and asked[name] not in values:
            raise ServiceError(Fault.INVALID, f"parameters.{name}: takes one of {values}", param="parameters")
    found = {option: asked[name] for name, option in known.items() if name in asked}
    if isinstance(side := found.get("truncation_side"), str):
        found["truncation_side"] = side.lower()
    return found


def labels(answer: Classification) -> list[dict[str, Any]]:
    """A text's labels, best first."""
    return [{"label": label, "score": score} for label, score in answer.scores.items()]


def entities(answer: Sequence[Entity]) -> list[dict[str, Any]]:
    """A text's entities; with aggregation none, its tokens."""
    found = []
    for each in answer:
        place: dict[str, Any] = {"start": each.start, "end": each.end, "score": each.score}
        if each.token is None:
            found.append({"entity_group": each.label, "word": each.text, **place})
        else:
            found.append({"entity": each.label, "index": each.index, "word": each.token, **place})
    return found


def answered(answer: Sequence[Answer], *, one: bool) -> Any:
    """A question's answers, best first; the best alone where no more were asked for."""
    found = [{"answer": each.text, "score": each.score, "start": each.start, "end": each.end} for each in answer]
    if not one:
        return found
    return found[0] if found else {"answer": "", "score": 0.0, "start": 0, "end": 0}


def filled(answer: Sequence[Sequence[Fill]]) -> Any:
    """The words of a text's mask, best first; of several masks a list each."""
    masks = [
        [{"score": each.score, "token": each.token_id, "token_str": each.token, "sequence": each.text} for each in mask]
        for mask in answer
    ]
    return masks[0] if len(masks) == 1 else masks


@dataclass(frozen=True, kw_only=True)
class Form:
    """How one task's inputs and answers look.

    Attributes:
        one: an input -> an item, or None if it is none.
        wants: what an input is, in words.
        shown: an answer -> plain values.
        nested: whether one input's answer stands in a list, as if it had come in one.
    """

    one: Callable[[Any], Item | None]
    wants: str
    shown: Callable[[Any], Any]
    nested: bool = False


def _text(value: Any) -> Item | None:
    return value if isinstance(value, str) else None


def _named_pair(first: str, second: str) -> Callable[[Any], Item | None]:
    def one(value: Any) -> Item | None:
        if isinstance(value, dict) and isinstance(value.get(first), str) and isinstance(value.get(second), str):
            return (value[first], value[second])
        return None

    return one


def _text_or_pair(value: Any) -> Item | None:
    return _text(value) if isinstance(value, str) else _named_pair("text", "text_pair")(value)


def _choices(value: Any) -> Item | None:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        return None
    choices = value.get("choices")
    fit = isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices)
    return (value["prompt"], choices) if fit else None


_PAIR = 'a pair {"text": ..., "text_pair": ...}'
FORMS: Mapping[str, Form] = {
    "embed": Form(one=_text, wants="a text", shown=lambda vector: vector, nested=True),
    "classify": Form(one=_text_or_pair, wants=f"a text, or {_PAIR}", shown=labels, nested=True),
    "ner": Form(one=_text, wants="a text", shown=entities),
    "qa": Form(
        one=_named_pair("question", "context"),
        wants='{"question": ..., "context": ...}',
        shown=lambda answer: answered(answer, one=False),
    ),
    "fill-mask": Form(one=_text, wants="a text with a mask", shown=filled),
    "rerank": Form(one=_named_pair("text", "text_pair"), wants=_PAIR, shown=float),
    "next-sentence": Form(one=_named_pair("text", "text_pair"), wants=_PAIR, shown=labels, nested=True),
    "multiple-choice": Form(one=_choices, wants='{"prompt": ..., "choices": [...]}', shown=labels, nested=True),
}
"""Task -> its form."""


def items(task: str, inputs: Any) -> list[Item]:
    """The items of a request, one or a list of them.

    Raises:
        ServiceError: one is none.
    """
    form = FORMS[task]
    found: list[Item] = []
    for at, value in enumerate(inputs if isinstance(inputs, list) else [inputs]):
        item = form.one(value)
        if item is None:
            place = f"inputs[{at}]" if isinstance(inputs, list) else "inputs"
            raise ServiceError(Fault.INVALID, f"{place}: {task} takes {form.wants}", param="inputs")
        found.append(item)
    return found


def similarity(inputs: Any) -> tuple[str, list[str]] | None:
    """Source and sentences, if that is what is asked of an embedding model."""
    if not isinstance(inputs, dict) or "source_sentence" not in inputs:
        return None
    source, sentences = inputs["source_sentence"], inputs.get("sentences")
    if not isinstance(source, str) or not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
        wanted = '{"source_sentence": text, "sentences": [text, ...]}'
        raise ServiceError(Fault.INVALID, f"inputs: sentence-similarity takes {wanted}", param="inputs")
    return source, sentences
