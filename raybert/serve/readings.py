"""Readings: a served head as one request wants it, with some of its options changed.

A reading's key is the head's name, and where options are changed, a line of JSON behind it. Keys travel between ingress
and encoder; each makes the task of a key when it first meets it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from raybert.engine import Head, Trunk
from raybert.errors import SettingsError
from raybert.serve.pieces import Parts
from raybert.tasks import Task, vary
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Sequences

MOST_KEPT = 256
"""Readings that are kept ready: clients choose them, and must not fill the memory."""
MOST_WORDS = 1000
"""Words of a mask, or targets, that one request may ask for."""

CHANGEABLE: Mapping[str, frozenset[str]] = {
    "classify": frozenset({"activation", "threshold", "top_k", "truncation_side"}),
    "embed": frozenset({"dimensions", "normalize", "output", "prompt", "prompt_name", "truncation_side"}),
    "fill-mask": frozenset({"targets", "top_k", "truncation_side"}),
    "multiple-choice": frozenset({"truncation_side"}),
    "ner": frozenset({"aggregation", "ignore_labels", "stride", "truncation_side"}),
    "next-sentence": frozenset({"truncation_side"}),
    "qa": frozenset(
        {
            "align_to_words",
            "handle_impossible_answer",
            "max_answer_len",
            "max_length",
            "max_question_len",
            "stride",
            "top_k",
        }
    ),
    "rerank": frozenset({"activation", "truncation_side"}),
}
"""What a request may change, by task. The rest is the server's."""


def key_of(head: str, options: Mapping[str, Any]) -> str:
    """The key of a head with these options changed; those that are None are as the server has them."""
    changed = {name: value for name, value in options.items() if value is not None}
    return f"{head}\n{json.dumps(changed, sort_keys=True)}" if changed else head


def parse_key(key: str) -> tuple[str, dict[str, Any]]:
    """Head and changed options of a key."""
    head, _, options = key.partition("\n")
    return head, json.loads(options) if options else {}


class Readings:
    """The tasks of readings.

    Args:
        tasks: the served heads by name.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self._varied = lru_cache(MOST_KEPT)(self._vary)

    def __getitem__(self, key: str) -> Task:
        """The task of a key.

        Raises:
            KeyError: no such head is served.
            SettingsError: an option is unknown, out of range, or not a request's to change.
        """
        return self._tasks[key] if key in self._tasks else self._varied(key)

    def _vary(self, key: str) -> Task:
        head, options = parse_key(key)
        task = self._tasks[head]
        for name, value in options.items():
            if name not in CHANGEABLE[task.name]:
                known = ", ".join(sorted(CHANGEABLE[task.name]))
                raise SettingsError(f"{task.name}: {name}: no request can change it; it may change {known}")
            _check_size(task, name, value)
        given = dict(options)
        if "prompt_name" in given:  # it replaces a prompt that the server was given, and the other way round
            given.setdefault("prompt", None)
        elif "prompt" in given:
            given["prompt_name"] = None
        if given.get("output") == "tokens":  # what says how one vector is made has no meaning there
            given |= dict.fromkeys(("aggregation", "dimensions", "normalize", "pooling"))
        varied = vary(task, given)
        varied.tokenizer()  # what does not go with it is told now
        return varied


def _check_size(task: Task, name: str, value: Any) -> None:
    size = len(value) if isinstance(value, list | str) and name == "targets" else value
    if task.name == "fill-mask" and isinstance(size, int) and size > MOST_WORDS:
        raise SettingsError(f"fill-mask: {name}: {size} exceed {MOST_WORDS}; ask for fewer")


class ReadingTrunk:
    """A trunk that computes any reading of its heads.

    Args:
        trunk: computes.
        heads: names of the heads that it was made with.
        readings: of the service.
    """

    def __init__(self, trunk: Trunk, heads: frozenset[str], readings: Readings) -> None:
        self._trunk, self._names, self._readings = trunk, heads, readings
        self._ready = lru_cache(MOST_KEPT)(self._make_ready)

    @property
    def streams(self) -> ThreadPoolExecutor:
        """As `raybert.engine.Trunk.streams`."""
        return self._trunk.streams

    def run(self, sequences: Sequences, parts: Parts) -> dict[str, Arrays]:
        """As `raybert.engine.Trunk.run` on the calling thread, by keys of readings."""
        others = {key: self._ready(key) for key in parts if key not in self._names}
        return self._trunk.run(sequences, parts, here=True, others=others)

    def _make_ready(self, key: str) -> Head:
        return self._trunk.ready(self._readings[key])
