"""What a user asks for: heads and their options. Frozen, keyword-only, unknown keys refused.

HeadSpec   = name + task + model + options        ("topic:classify=path/to/model")
TASK_NAMES = the task names and the Hugging Face pipeline names that mean the same
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raybert.errors import SettingsError

TASK_NAMES: Mapping[str, str] = {
    "classify": "classify",
    "text-classification": "classify",
    "sentiment-analysis": "classify",
    "embed": "embed",
    "feature-extraction": "embed",
    "sentence-similarity": "embed",
    "fill-mask": "fill-mask",
    "multiple-choice": "multiple-choice",
    "ner": "ner",
    "token-classification": "ner",
    "next-sentence": "next-sentence",
    "qa": "qa",
    "question-answering": "qa",
    "rerank": "rerank",
    "text-ranking": "rerank",
}
"""Every name a task answers to -> its own name."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HEAD = re.compile(r"(?:(?P<name>[^:=]+):)?(?P<task>[^:=]+)(?:=(?P<model>.+))?\Z", re.DOTALL)


def nearest(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to ``word``, or an empty string."""
    close = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(place: str, value: str, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``.

    Raises:
        SettingsError: naming the place, the value and the choices.
    """
    if value not in choices:
        raise SettingsError(f"{place}: {value!r} is none of {', '.join(choices)}{nearest(value, choices)}")
    return value


def known_options(task: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse an option that ``task`` does not have, with the nearest one that it has.

    Raises:
        SettingsError: naming the option.
    """
    choices = sorted(known)
    for key in given:
        if key not in choices:
            hint = nearest(key, choices) or f"; it has {', '.join(choices)}"
            raise SettingsError(f"{task}: unknown option {key!r}{hint}")


def task_name(word: str) -> str:
    """The task's own name for one of its names.

    Raises:
        SettingsError: no task is called so.
    """
    if word not in TASK_NAMES:
        own = sorted(set(TASK_NAMES.values()))
        raise SettingsError(f"task {word!r}: unknown; there is {', '.join(own)}{nearest(word, TASK_NAMES)}")
    return TASK_NAMES[word]


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A head as asked for: nothing resolved, nothing read from disk.

    Attributes:
        name: the head's name in outputs; its columns begin with it.
        task: the task's own name.
        model: ``"demo"``, a folder or a hub id.
        revision: branch, tag or commit of a hub id.
        options: task options; ``max_length`` stands here too.
    """

    name: str
    task: str
    model: str
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise SettingsError(f"head name {self.name!r}: letters, digits and _ only, not beginning with a digit")


def parse_head(text: str, *, default_model: str | None = None, options: Mapping[str, Any] | None = None) -> HeadSpec:
    """Read ``TASK``, ``TASK=MODEL`` or ``NAME:TASK=MODEL``.

    Args:
        text: the head as written on a command line.
        default_model: the model where the text names none (``--model``).
        options: task options for this head.

    Raises:
        SettingsError: the text has another form, an unknown task, or no model is known.
    """
    match = _HEAD.match(text)
    if match is None:
        raise SettingsError(f"head {text!r}: write TASK, TASK=MODEL or NAME:TASK=MODEL")
    task = task_name(match["task"])
    model = match["model"] or default_model
    if model is None:
        raise SettingsError(f"head {text!r}: no model; write {text}=MODEL or pass --model")
    name = match["name"] or task.replace("-", "_")
    return HeadSpec(name=name, task=task, model=model, options=dict(options or {}))


def heads_from(given: Mapping[str, Sequence[Any] | HeadSpec]) -> tuple[HeadSpec, ...]:
    """Heads of the Python call: ``{"v": ("demo", "embed")}`` or ``{"v": ("demo", "embed", {"normalize": False})}``.

    Raises:
        SettingsError: an entry has another form.
    """
    heads = []
    for name, entry in given.items():
        if isinstance(entry, HeadSpec):
            heads.append(entry)
            continue
        if isinstance(entry, str) or not 2 <= len(entry) <= 3:
            raise SettingsError(f"head {name!r}: {entry!r}; write (model, task) or (model, task, options)")
        model, task, *rest = entry
        heads.append(HeadSpec(name=name, task=task_name(task), model=str(model), options=dict(rest[0]) if rest else {}))
    if not heads:
        raise SettingsError("heads: none given; pass at least one, as {'v': ('demo', 'embed')}")
    unique_names(heads)
    return tuple(heads)


def unique_names(specs: Sequence[HeadSpec]) -> None:
    """Refuse two heads of one name.

    Raises:
        SettingsError: naming it.
    """
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"head {name!r}: named twice; write NAME:TASK=MODEL with another NAME")
