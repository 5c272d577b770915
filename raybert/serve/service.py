"""The heads of a service: what a request asks becomes windows, windows become numbers, numbers become answers.

    Ask ── encode ── Compute, one a trunk ── decode ──> Answers

Long texts are encoded and decoded in threads, so that the event loop goes on; a moment's work is done on it.
Where the windows are computed, in this process or behind a Ray Serve handle, is not seen here: `Compute` is all there
is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from opentelemetry.trace import Tracer

from raybert.config import nearest
from raybert.errors import RowError, SettingsError
from raybert.observability import LOGGER
from raybert.serve.batcher import Answer
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.health import Unhealthy
from raybert.serve.limits import Gate
from raybert.serve.pieces import Parts
from raybert.serve.readings import Readings, parse_key
from raybert.serve.tracing import spanned
from raybert.tasks import Task
from raybert.tasks.program import Program, group_heads
from raybert.text.encoding import Bools, Int32s, Sequences, Windows
from raybert.text.ids import take_ids


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A text as ids of the model's own tokenizer."""

    ids: Sequence[int]


Result = TypeVar("Result")

Item = str | TokenIds | tuple[str, Any]
"""A text or its ids; or a pair of texts, or a prompt and its choices, and then all items of a request are."""


class Compute(Protocol):
    """Windows of one trunk to numbers: a `raybert.serve.batcher.Batcher`, or one in another process."""

    def compute(self, sequences: Sequences, parts: Parts, *, bulk: bool = False) -> Coroutine[Any, Any, Answer]:
        """As `Batcher.compute`."""
        ...

    def check(self) -> Coroutine[Any, Any, None]:
        """Return if it computes; raises `raybert.serve.health.Unhealthy` if not."""
        ...

    def facts(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """What decides the bits, as `EngineSettings.as_dict` has it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one request wants.

    Attributes:
        heads: names, or keys of readings; each answers for every item.
        items: one or more, all texts or all pairs.
        cut: whether a text that is too long for the model is cut (and the answer says so) or refused.
        param: the client's name for the items, for errors.
    """

    heads: tuple[str, ...]
    items: Sequence[Item]
    cut: bool = True
    param: str = "input"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one head says.

    Attributes:
        answers: what the task gives for the items, in their order.
        tokens: int32 [N], of each item before it was cut.
        truncated: bool [N].
        forwarded: tokens that went through the model.
    """

    answers: Any
    tokens: Int32s
    truncated: Bools
    forwarded: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a request gets.

    Attributes:
        by_head: in the order asked.
        characters: of all items.
        device: that computed them.
        seconds: by stage: tokenization, queue, inference, total.
    """

    by_head: Mapping[str, Told]
    characters: int
    device: str
    seconds: Mapping[str, float]

    @property
    def forwarded(self) -> int:
        """Tokens that went through the model, of the head that read most."""
        return max(told.forwarded for told in self.by_head.values())

    @property
    def truncated(self) -> int:
        """Items of which some head did not see the end."""
        return int(np.logical_or.reduce([told.truncated for told in self.by_head.values()]).sum())


class Service:
    """Heads that answer, by name.

    Args:
        tasks: the heads; those of one trunk are computed together.
        computes: by the name of a trunk's first head, what computes it.
        readings: of these heads.
        threads: for tokenization and decoding of long texts.
        tracer: begins spans for the stages of a request.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        computes: Mapping[str, Compute],
        readings: Readings,
        *,
        threads: int = 2,
        tracer: Tracer | None = None,
    ) -> None:
        self.tasks, self.threads, self._readings = dict(tasks), threads, readings
        self._tracer = tracer
        self._computes = dict(computes)
        self._programs: dict[tuple[tuple[str, ...], bool], Program] = {}
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="raybert-text")
        self._trunk_of = {name: names[0] for names in group_heads(self.tasks).trunks for name in names}
        for task in tasks.values():
            task.tokenizer()  # one that is missing is told now, not at the first request

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown()

    async def answer(self, ask: Ask, gate: Gate) -> Answers:
        """Answer a request, if there is room for it.

        Raises:
            ServiceError: it can't be answered; of which kind the error says.
        """
        begun = time.perf_counter()
        program = self._program(ask)
        # Room is held from the beginning: texts that wait for their tokenization are under way too.
        with gate.held(sum(map(_guess, ask.items))) as room:
            encoded = await self._encode(ask, program)
            tokenized = time.perf_counter()
            tokens = sum(int(windows.lengths.sum(dtype=np.int64)) for windows in encoded)
            is_bulk = room.know(tokens)
            with spanned(self._tracer, "compute") as span:
                computed = await self._computed(program, encoded, bulk=is_bulk)
                span.set_attribute("raybert.heads", sorted({parse_key(name)[0] for name in program.tasks}))
                span.set_attribute("raybert.tokens", tokens)
                span.set_attribute("raybert.queue_ms", 1000 * max(answer.queue_s for answer in computed))
        arrays = {name: answer.arrays[name] for answer in computed for name in answer.arrays}
        inferred = time.perf_counter()
        with spanned(self._tracer, "decode"):
            is_short = tokens <= _MOMENT and all(task.one_row for task in program.tasks.values())
            by_head = await self._worked(is_short, _told, program, ask.items, encoded, arrays)
        queue_s = max(answer.queue_s for answer in computed)
        return Answers(
            by_head={name: by_head[name] for name in ask.heads},
            characters=sum(map(_characters, ask.items)),
            device=computed[0].device,
            seconds={
                "tokenization": tokenized - begun,
                "queue": queue_s,
                "inference": inferred - tokenized - queue_s,
                "total": time.perf_counter() - begun,
            },
        )

    async def _encode(self, ask: Ask, program: Program) -> list[Windows]:
        """The windows of each encoding.

        Raises:
            ServiceError: an item can't be read, or is too long where nothing may be cut.
        """
        try:
            with spanned(self._tracer, "tokenize"):
                is_short = sum(map(_guess, ask.items)) <= _MOMENT
                encoded = await self._worked(is_short, _encoded, program, ask.items)
        except RowError as error:
            fault = Fault.MALFORMED if error.reason == "unknown_id" else Fault.TOKENIZER
            raise ServiceError(fault, f"{ask.param}[{error.row}]: {error.detail}", param=ask.param) from error
        if not ask.cut:
            _refuse_long(ask, program, encoded)
        return encoded

    async def _worked(self, here: bool, work: Callable[..., Result], *args: Any) -> Result:
        """The result of work on texts: done here if it is a moment's, else in a thread."""
        if here:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *args)

    async def check(self) -> None:
        """Return if every encoder computes.

        Raises:
            ServiceError: one does not.
        """
        for name, compute in self._computes.items():
            try:
                await compute.check()
            except Unhealthy as error:
                raise ServiceError(Fault.NOT_READY, f"model {name!r}: {error}", retry_after_s=5) from error

    async def facts(self, name: str) -> dict[str, Any]:
        """What decides the bits of a head's answers."""
        return await self._computes[self._trunk_of[name]].facts()

    def head(self, name: str) -> Task:
        """The head that a client means by a name.

        Raises:
            ServiceError: there is none.
        """
        if name not in self.tasks:
            hint = nearest(name, self.tasks) or f"; there is {', '.join(self.tasks)}"
            raise ServiceError(Fault.UNKNOWN, f"model {name[:128]!r}: unknown{hint}", param="model")
        return self.tasks[name]

    def task(self, name: str) -> Task:
        """The head of a key as it reads; a key is ours, a name that a client sent goes through `head`.

        Raises:
            ServiceError: an option of the key has no meaning.
        """
        try:
            return self._readings[name]
        except SettingsError as error:
            raise ServiceError(Fault.INVALID, str(error)) from error

    def _program(self, ask: Ask) -> Program:
        """The heads of a request, grouped; the same heads are grouped once."""
        tasks = {name: self.task(name) for name in ask.heads}
        if not ask.items:
            raise ServiceError(Fault.EMPTY, f"{ask.param}: empty; give one or more", param=ask.param)
        pairs = isinstance(ask.items[0], tuple)
        for name, task in tasks.items():
            wrong = next((at for at, item in enumerate(ask.items) if not _fits(item, pairs, task)), None)
            if wrong is not None:
                what = f"{parse_key(name)[0]} answers {_TAKES[task.takes]}, and all items of a request are of one kind"
                raise ServiceError(Fault.INVALID, f"{ask.param}[{wrong}]: {what}", param=ask.param)
        key = (ask.heads, pairs)
        if key not in self._programs:
            if len(self._programs) >= _MOST_PROGRAMS:  # clients name the heads: they must not fill the memory
                self._programs.clear()
            self._programs[key] = group_heads(tasks, pairs=pairs)
        return self._programs[key]

    async def _computed(self, program: Program, encoded: Sequence[Windows], *, bulk: bool) -> list[Answer]:
        """The numbers of all trunks, side by side; where one fails the others are not computed for nothing."""
        calls = []
        for number, names in enumerate(program.trunks):
            sequences, parts = program.shared(number, encoded)
            wanted = {name: parts[program.encoding_of(name)] for name in names}
            compute = self._computes[self._trunk_of[parse_key(names[0])[0]]]
            calls.append(compute.compute(sequences, wanted, bulk=bulk))
        try:
            return await _side_by_side(calls)
        except ServiceError:
            raise
        except Exception as error:
            heads = ", ".join(parse_key(name)[0] for name in program.tasks)
            logging.getLogger(LOGGER).exception("%s: a forward failed", heads)
            raise ServiceError(Fault.MODEL, f"the model failed: {type(error).__name__}") from error


# Tokens whose tokenization is too little to be worth a thread, which waits for Python's lock there and back. Answers of
# heads with one row a window are made in less; others, as of many masks, may take long.
_MOMENT = 512
_MOST_PROGRAMS = 1000
_TAKES = {"text": "texts", "pair": "pairs of texts", "either": "texts or pairs", "choices": "prompts with choices"}


async def _side_by_side(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all of them come to; where one fails the others are cancelled."""
    if len(calls) == 1:
        return [await calls[0]]
    waiting = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*waiting)
    finally:
        for each in waiting:
            each.cancel()


def _fits(item: Item, pairs: bool, task: Task) -> bool:
    """Whether an item is of the request's kind, and one that the task takes."""
    if isinstance(item, tuple) != pairs:
        return False
    if isinstance(item, TokenIds):
        return task.takes in ("text", "either") and not task.needs_texts
    return task.takes != "text" if pairs else task.takes in ("text", "either")


def _encoded(program: Program, items: Sequence[Item]) -> list[Windows]:
    """The windows of each encoding."""
    if not any(isinstance(item, TokenIds) for item in items):
        return program.encode(*_columns(items))
    found = []
    for first, *_ in program.encodings:
        task = program.tasks[first]
        rows = [_ids(item, task) for item in items]
        found.append(task.cut(take_ids(task.tokenizer(), rows, prompt=task.prompt)))
    return found


def _ids(item: Item, task: Task) -> Sequence[int]:
    if isinstance(item, TokenIds):
        return item.ids
    ids: list[int] = task.tokenizer().take([str(item)], whole=True).ids.tolist()
    return ids


def _columns(items: Sequence[Item]) -> tuple[list[Any], list[Any] | None]:
    """First and second members of pairs; other items as they are."""
    pairs = [item for item in items if isinstance(item, tuple)]
    if pairs:
        return [first for first, _ in pairs], [second for _, second in pairs]
    return list(items), None


def _guess(item: Item) -> int:
    """Tokens of an item, before it is tokenized: one for four characters, which is few."""
    return len(item.ids) if isinstance(item, TokenIds) else 1 + _characters(item) // 4


def _characters(item: Item) -> int:
    if isinstance(item, TokenIds):
        return 0
    if isinstance(item, str):
        return len(item)
    first, second = item
    return len(first) + (len(second) if isinstance(second, str) else sum(map(len, second)))


def _refuse_long(ask: Ask, program: Program, encoded: Sequence[Windows]) -> None:
    for name, task in program.tasks.items():
        windows = encoded[program.encoding_of(name)]
        for at in np.flatnonzero(windows.truncated)[:1]:
            raise ServiceError(
                Fault.TOO_LARGE,
                f"{ask.param}[{at}]: {windows.tokens[at]} tokens exceed {parse_key(name)[0]}'s {task.max_length}; "
                "shorten it, or allow truncation",
                param=ask.param,
            )


def _told(
    program: Program, items: Sequence[Item], encoded: Sequence[Windows], arrays: Mapping[str, Any]
) -> dict[str, Told]:
    texts, seconds = _columns(items)
    found = {}
    for name, task in program.tasks.items():
        windows = encoded[program.encoding_of(name)]
        answers = task.decode(task.items(texts, seconds), windows, arrays[name])
        forwarded = int(windows.lengths.sum(dtype=np.int64))
        found[name] = Told(answers=answers, tokens=windows.tokens, truncated=windows.truncated, forwarded=forwarded)
    return found
