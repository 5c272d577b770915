"""Reading what users write: sizes, ranges, lists, options of heads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybert.config import HeadSpec, known_options, nearest, parse_head
from raybert.errors import RowError, SettingsError

if TYPE_CHECKING:
    from raybert.tasks import Task
    from raybert.tasks.base import TextTask

_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "kib": 2**10, "m": 10**6, "mb": 10**6, "mib": 2**20}
_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 2**30}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?)\s*([a-z]*)\Z", re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,9})(?::(\d{1,9}))?\Z")
# Options that are texts, also where they look like numbers.
_TEXTS = frozenset({"ignore_labels", "pooling", "prompt", "prompt_name", "revision", "targets"})
_JOB_OPTIONS = (
    "text_column",
    "text",
    "where",
    "pair_column",
    "input_format",
    "limit",
    "split_rows",
    "vector_type",
    "dtype",
    "device",
    "budget",
)
_OPTION = re.compile(r"(?:(?P<head>[A-Za-z_]\w*)\.)?(?P<key>[A-Za-z][\w-]*)=(?P<value>.*)\Z", re.DOTALL)


def size(place: str, text: str) -> int:
    """Bytes of ``32MiB``, ``500kB`` or ``1000``.

    Raises:
        SettingsError: it is no size of at least one byte.
    """
    match = _SIZE.match(text.strip())
    if (
        match is None
        or match[2].lower() not in _UNITS
        or (value := int(float(match[1]) * _UNITS[match[2].lower()])) < 1
    ):
        raise SettingsError(f"{place} {text!r}: takes a size such as 32MiB, 500kB or 1000000")
    return value


def counted(number: int, noun: str) -> str:
    """``1 part``, ``2 parts``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def actor_range(text: str, what: str = "actors") -> tuple[int, int]:
    """``4`` or ``1:8`` as least and most.

    Raises:
        SettingsError: it is neither, or no actor would be left.
    """
    match = _RANGE.match(text.strip())
    if match is None:
        raise SettingsError(f"{what} {text!r}: takes N or MIN:MAX, such as 4 or 1:8")
    least, most = int(match[1]), int(match[2] or match[1])
    if not 1 <= least <= most:
        raise SettingsError(f"{what} {text!r}: at least 1, and MIN at most MAX")
    return least, most


def columns(text: str | None) -> tuple[str, ...] | str | None:
    """``a,b`` as names; ``all`` as it is."""
    if text is None or text == "all":
        return text
    return tuple(name.strip() for name in text.split(",") if name.strip())


def job_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters of ``raybert run`` that were given and that `raybert.data.plan.Options` takes."""
    found = {name: given[name] for name in _JOB_OPTIONS}
    found["keep"] = columns(given["keep"])
    for name in ("split_bytes", "max_row_bytes"):
        found[name] = None if given[name] is None else size(name.replace("_", "-"), given[name])
    return {name: value for name, value in found.items() if value is not None}


def option_value(text: str) -> Any:
    """A JSON number, true, false or null; anything else is a string as it stands."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict | list | str) else value


def item(task: Task, line: str, row: int) -> Any:
    """What a line means to a task.

    For one over texts the line as it stands. For classify ``["a", "b"]`` is a pair and anything else a text. The
    others read ``["a", "b"]``, qa also ``{"question", "context"}``, rerank ``{"query", "documents"}`` or
    ``["query", ["document", ...]]``, multiple-choice ``{"prompt", "choices"}`` or ``["prompt", ["choice", ...]]``.

    Raises:
        RowError: a line of another form.
    """
    if task.takes == "text":
        return line
    value = _json(line) if line.lstrip().startswith(("[", "{")) else None
    keys = _KEYS.get(task.name)
    if isinstance(value, dict) and keys is not None and set(value) == set(keys):
        value = [value[key] for key in keys]
    if isinstance(value, list) and len(value) == 2:
        first, second = value
        lists = task.name in ("rerank", "multiple-choice")
        texts = second if lists else [second]
        if isinstance(first, str) and isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return first, second
    if task.takes == "either":
        return line
    shown = "{" + ", ".join(f'"{key}": ...' for key in keys) + "}" if keys else '["first", "second"]'
    raise RowError(row, "wrong_type", f"{task.name}: expected a line of JSON such as {shown}, got {line[:60]!r}")


_KEYS = {"qa": ("question", "context"), "rerank": ("query", "documents"), "multiple-choice": ("prompt", "choices")}


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def head_specs(
    heads: Sequence[str],
    *,
    model: str | None,
    revision: str | None = None,
    options: Sequence[str] = (),
    short: Mapping[str, Any],
) -> tuple[HeadSpec, ...]:
    """The heads of a command line.

    Args:
        heads: as written: TASK, TASK=MODEL or NAME:TASK=MODEL.
        model: ``--model``, for heads that name none.
        revision: ``--revision``, for hub ids.
        options: ``--option`` words, ``[NAME.]KEY=VALUE``; ``NAME.revision=REV`` is a head's own revision.
        short: options with a form of their own, for all heads that have them; None is one not given.

    Raises:
        SettingsError: a word of another form, or an option for a head that isn't there.
    """
    common = {key: value for key, value in short.items() if value is not None}
    own: dict[str, dict[str, Any]] = {}
    for word in options:
        match = _OPTION.match(word)
        if match is None:
            raise SettingsError(f"option {word!r}: write KEY=VALUE or NAME.KEY=VALUE")
        target = common if match["head"] is None else own.setdefault(match["head"], {})
        key = match["key"].replace("-", "_")
        target[key] = match["value"] if key in _TEXTS else option_value(match["value"])
    revisions = {name: given.pop("revision") for name, given in own.items() if "revision" in given}
    specs = [parse_head(text, default_model=model) for text in heads]
    names = [spec.name for spec in specs]
    for name in own:
        if name not in names:
            raise SettingsError(f"option {name}.…: no head is called {name!r}{nearest(name, names)}")
    if len(specs) > 1:
        known_options(", ".join(names), common, {key for spec in specs for key in _task(spec).OPTIONS})
    shared = _shared(specs, common, own)
    return tuple(
        HeadSpec(
            name=spec.name,
            task=spec.task,
            model=spec.model,
            revision=revisions.get(spec.name, revision),
            options=shared[spec.name] | own.get(spec.name, {}),
        )
        for spec in specs
    )


def _shared(
    specs: Sequence[HeadSpec], common: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Which options for all heads each one takes: those that it can use. One that no head can use goes to all.

    A head says itself what is wrong with an option.
    """
    if len(specs) == 1:
        return {specs[0].name: dict(common)}
    taken: dict[str, dict[str, Any]] = {spec.name: {} for spec in specs}
    for key, value in common.items():
        having = [spec for spec in specs if key in _task(spec).OPTIONS]
        using = [spec for spec in having if _can_use(_task(spec), key, value, {**common, **own.get(spec.name, {})})]
        for spec in using or having:
            taken[spec.name][key] = value
    return taken


def _task(spec: HeadSpec) -> type[TextTask]:
    from raybert.tasks import TASKS

    return TASKS[spec.task]


def _can_use(task: type[TextTask], key: str, value: Any, options: Mapping[str, Any]) -> bool:
    """Whether an option for several heads means something to this task."""
    usual = "slide" if task.slides else "truncate"
    asked = str(options.get("windows", usual))
    slides = (asked if asked in task.WINDOWS else usual) == "slide"
    if key == "windows":
        return str(value) in task.WINDOWS
    if key == "aggregation":
        return value in task.AGGREGATIONS and (slides or task.aggregates_tokens)
    return slides if key == "stride" else True
