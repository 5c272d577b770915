"""Several heads at once: which share their windows, which share their trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from raybert.checkpoint.digest import trunk_digest
from raybert.config import HeadSpec
from raybert.errors import SettingsError
from raybert.tasks import Task, make_task
from raybert.text.encoding import Int32s, Sequences, Windows
from raybert.text.sharing import share_windows
from raybert.text.taken import Taken


@dataclass(frozen=True, kw_only=True)
class Program:
    """Opened heads, grouped.

    Attributes:
        tasks: by head name, in column order.
        pairs: whether a second text, or a list of choices, stands beside each text.
        encodings: names of heads whose windows are the same for every item.
        trunks: names of heads that read one encoder's hidden states.
    """

    tasks: Mapping[str, Task]
    pairs: bool
    encodings: tuple[tuple[str, ...], ...]
    trunks: tuple[tuple[str, ...], ...]

    def encoding_of(self, name: str) -> int:
        """The number of the encoding that a head reads."""
        return next(number for number, names in enumerate(self.encodings) if name in names)

    def encodings_of(self, trunk: int) -> list[int]:
        """The numbers of the encodings that a trunk's heads read, ascending."""
        return sorted({self.encoding_of(name) for name in self.trunks[trunk]})

    def encode(self, texts: Sequence[str], seconds: Sequence[Any] | None = None) -> list[Windows]:
        """The windows of each encoding.

        Texts are tokenized once where tokenizer, prompt and length are the same, however they are cut; pairs once
        for each way of cutting.

        Args:
            texts: of N items.
            seconds: what stands beside them, N; None without pairs.

        Raises:
            RowError: an item can't be encoded.
        """
        assert self.pairs == (seconds is not None)
        taken: dict[str, Taken] = {}
        found = []
        for first, *_ in self.encodings:
            task = self.tasks[first]
            near = [other for other in self.tasks.values() if other.text_key == task.text_key]
            offsets = any(other.needs_offsets for other in near)
            if self._is_text(task):
                if task.text_key not in taken:
                    whole = any(other.windows == "slide" and self._is_text(other) for other in near)
                    taken[task.text_key] = task.take(texts, offsets=offsets, whole=whole)
                found.append(task.cut(taken[task.text_key]))
            else:
                found.append(task.encode(task.items(texts, seconds), pairs=True, offsets=offsets))
        return found

    def _is_text(self, task: Task) -> bool:
        return task.takes == "text" or (task.takes == "either" and not self.pairs)

    def shared(self, trunk: int, encoded: Sequence[Windows]) -> tuple[Sequences, dict[int, Int32s | None]]:
        """What a trunk computes: its windows, equal ones once; and by encoding number which of them are its own."""
        numbers = self.encodings_of(trunk)
        sequences, parts = share_windows([encoded[number] for number in numbers])
        return sequences, dict(zip(numbers, parts, strict=True))


def group_heads(tasks: Mapping[str, Task], *, pairs: bool = False) -> Program:
    """Group heads by windows and by trunk, in the order of their first members.

    Raises:
        SettingsError: a head that would slide over pairs.
    """
    encodings: dict[str, list[str]] = {}
    trunks: dict[str, list[str]] = {}
    for name, task in tasks.items():
        if pairs and task.takes == "either" and task.windows == "slide":
            raise SettingsError(f"{task.name}: windows 'slide': a pair has one window; leave it out")
        encodings.setdefault(task.encoding_key(pairs=pairs), []).append(name)
        trunks.setdefault(trunk_digest(task.checkpoint), []).append(name)
    return Program(
        tasks=tasks,
        pairs=pairs,
        encodings=tuple(tuple(names) for names in encodings.values()),
        trunks=tuple(tuple(names) for names in trunks.values()),
    )


@lru_cache(maxsize=4)
def _opened(heads: tuple[tuple[Any, ...], ...], pairs: bool) -> Program:
    specs = [
        HeadSpec(name=name, task=task, model=model, revision=revision, options=dict(options))
        for name, task, model, revision, options in heads
    ]
    return group_heads({spec.name: make_task(spec) for spec in specs}, pairs=pairs)


def open_program(heads: Sequence[HeadSpec], *, pairs: bool = False) -> Program:
    """Open heads once a process; later calls with equal heads give the same object."""
    plain = tuple((h.name, h.task, h.model, h.revision, _frozen(h.options)) for h in heads)
    return _opened(plain, pairs)


def _frozen(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options as something that hashes: a list becomes a tuple."""
    return tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in options.items()))
