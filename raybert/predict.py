"""Heads in a Python process: `load` gives a predictor of one, `load_heads` answers with several at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any, Literal, Self, overload

import numpy as np

from raybert.config import HeadSpec, heads_from, known_options, task_name
from raybert.engine import EngineSettings, Trunk, choose_settings, default_threads
from raybert.errors import RowError, SettingsError, UsageError
from raybert.tasks import TASKS, Task, make_task
from raybert.tasks.arrays import Arrays
from raybert.tasks.program import Program, group_heads
from raybert.tasks.rerank import Ranked, rank
from raybert.text.encoding import Windows

# Items encoded at once; the next chunk is encoded while this one is computed.
_CHUNK_ITEMS = 4096


class Heads:
    """Several heads over the same texts, ready to answer; several threads may call it at once.

    Heads of one trunk share its forward pass wherever they ask for equal windows, heads of one tokenizer its work.
    The threads end with `close`, with a ``with`` block, or when the object is deleted.

    Attributes:
        tasks: the heads by name.
        settings: what decides the bits.
        fingerprint: of each head, as `Predictor` has it.
        columns: names of the columns that a batch job would write for each.
    """

    def __init__(self, tasks: Mapping[str, Task], settings: EngineSettings, *, threads: int) -> None:
        self.tasks = dict(tasks)
        self.settings = settings
        self.fingerprint = {name: task.fingerprint(settings.dtype) for name, task in tasks.items()}
        self.columns = {name: _column_names(task, name) for name, task in tasks.items()}
        for task in tasks.values():
            task.tokenizer()  # one that is missing or of another model is told now, not at the first text
        self._texts = group_heads(self.tasks)
        self._closed = False
        self._trunks = [
            Trunk({name: self.tasks[name] for name in names}, settings, threads=threads) for names in self._texts.trunks
        ]

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Answer ``items``, in order.

        Args:
            items: texts of any length; or pairs of texts, of which a head over texts reads the first.

        Returns:
            For each head what its own predictor would give.

        Raises:
            UsageError: a bare string where a list is meant; or it is closed.
            RowError: an item that can't be processed (not a text, a lone surrogate), with its row.
        """
        refuse_bare(items)
        answers: dict[str, list[Any]] = {name: [] for name in self.tasks}
        pairs = any(isinstance(item, tuple | list) for item in items)
        for task in self.tasks.values():
            if items and not pairs and task.takes in ("pair", "choices"):
                got = type(items[0]).__name__
                raise RowError(0, "wrong_type", f"expected {_WANTED[task.takes]}, got {got}")
        for chunk, found in self._found(list(items), self._pairs if pairs else self._texts):
            for name, task in self.tasks.items():
                windows, arrays = found[name]
                answers[name].append(task.decode(task.items(*_columns(chunk, pairs=pairs)), windows, arrays))
        return {name: task.join(answers[name]) for name, task in self.tasks.items()}

    @cached_property
    def _pairs(self) -> Program:
        return group_heads(self.tasks, pairs=True)

    def _found(
        self, items: list[Any], program: Program
    ) -> Iterator[tuple[list[Any], dict[str, tuple[Windows, Arrays]]]]:
        """Consecutive chunks of the items, and each head's windows and numbers of them."""
        if self._closed:
            names = ", ".join(task.checkpoint.name for task in self.tasks.values())
            raise UsageError(f"predictor of {names}: closed; load it again")
        with closing(_ahead(items, lambda chunk: program.encode(*_columns(chunk, pairs=program.pairs)))) as chunks:
            for chunk, encoded in chunks:
                found = {}
                for number, trunk in enumerate(self._trunks):
                    sequences, parts = program.shared(number, encoded)
                    wanted = {name: parts[program.encoding_of(name)] for name in program.trunks[number]}
                    for name, arrays in trunk.run(sequences, wanted, spread=True).items():
                        found[name] = (encoded[program.encoding_of(name)], arrays)
                yield chunk, found

    def close(self) -> None:
        """End the threads; it can't answer any more."""
        self._closed = True
        for trunk in self._trunks:
            trunk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self) -> dict[str, Any]:
        """Of each head: model, options and settings in plain values."""
        return {name: self._facts(name) for name in self.tasks}

    def _facts(self, name: str) -> dict[str, Any]:
        task = self.tasks[name]
        config = task.checkpoint.config
        return {
            "model": task.checkpoint.name,
            "task": task.name,
            "options": task.options,
            "fingerprint": self.fingerprint[name],
            "columns": self.columns[name],
            "layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "engine": self.settings.as_dict(),
        }


class _OneHead:
    """One head, ready to answer; several threads may call it at once.

    Its threads end with `close`, with a ``with`` block, or when the object is deleted.

    Attributes:
        task: the head.
        settings: what decides the bits.
        fingerprint: sha256 of everything that decides the answers; equal to a batch job's for the same head.
        columns: names of the columns that a batch job would write for it.
    """

    def __init__(self, task: Task, settings: EngineSettings, *, threads: int) -> None:
        self.task = task
        self.settings = settings
        name = task.name.replace("-", "_")
        self._heads = Heads({name: task}, settings, threads=threads)
        self.fingerprint = self._heads.fingerprint[name]
        self.columns = self._heads.columns[name]

    def _answers(self, items: Sequence[Any]) -> Any:
        refuse_bare(items)
        items = list(items)
        _check_kinds(self.task, items)
        (answers,) = self._heads(items).values()
        return answers

    def close(self) -> None:
        """End the predictor's threads; it can't answer any more."""
        self._heads.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self) -> dict[str, Any]:
        """Model, options and settings in plain values."""
        facts: dict[str, Any]
        (facts,) = self._heads.info().values()
        return facts


class Predictor(_OneHead):
    """Answers of one head; see `load`."""

    def __call__(self, items: Sequence[Any]) -> Any:
        """Answer ``items``, in order.

        Args:
            items: what the task takes: texts of any length; for classify also pairs of texts; for qa
                ``(question, context)``, for next-sentence pairs, for multiple-choice ``(prompt, [choice, ...])``.

        Returns:
            What the task gives: embed float32 [N, D], ner a list of `Entity` for each text, and so on.

        Raises:
            UsageError: a bare string where a list is meant; or the predictor is closed.
            RowError: an item that can't be processed (not a text, a lone surrogate), with its row.
        """
        return self._answers(items)


class Reranker(_OneHead):
    """Documents ranked by one head; see `load`."""

    def __call__(self, query: str, documents: Sequence[str]) -> list[Ranked]:
        """Rank documents by how well they answer a query.

        Returns:
            A `Ranked(index, score)` for every document, best first.

        Raises:
            UsageError: a bare string where a list is meant.
            RowError: a document that can't be processed, with its row.
        """
        refuse_bare(documents)
        return rank(self.scores([(query, document) for document in documents]))

    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Scores of (query, document) pairs, float32 [N], in their order."""
        found: np.ndarray = self._answers(pairs)
        return found


def _check_kinds(task: Task, items: Sequence[Any]) -> None:
    """Refuse texts where pairs are meant, and pairs where texts are."""
    takes_text, takes_pair = task.takes in ("text", "either"), task.takes != "text"
    for row, item in enumerate(items):
        is_pair = isinstance(item, tuple | list)
        if (is_pair and not takes_pair) or (not is_pair and not takes_text):
            wanted = _WANTED[task.takes]
            raise RowError(row, "wrong_type", f"expected {wanted}, got {type(item).__name__}")
        if is_pair != isinstance(items[0], tuple | list):
            raise RowError(row, "wrong_type", _MIXED if is_pair else "expected a pair of texts, got str")


_WANTED = {
    "text": "a text",
    "pair": "a pair of texts",
    "either": "a text or a pair of texts",
    "choices": "a prompt and a list of choices",
}
_MIXED = "expected a text, got a pair; pass texts and pairs in calls of their own"


def refuse_bare(items: object) -> None:
    """Refuse one text where a list is meant: its letters would be answered one by one.

    Raises:
        UsageError: it is one.
    """
    if isinstance(items, str | bytes):
        raise UsageError(f"texts: a bare {type(items).__name__} where a list of texts is meant; pass [text]")


def _columns(items: Sequence[Any], *, pairs: bool) -> tuple[list[Any], list[Any] | None]:
    """First and second members of pairs; texts as they are."""
    if not pairs:
        return list(items), None
    for row, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise RowError(row, "wrong_type", f"expected a pair of texts, got {type(item).__name__}")
    return [first for first, _ in items], [second for _, second in items]


def _ahead(items: list[Any], encode: Callable[[list[Any]], Any]) -> Generator[tuple[list[Any], Any]]:
    """Consecutive chunks, each with what ``encode`` makes of it, one chunk ahead of the reader."""
    begins = iter(range(0, len(items), _CHUNK_ITEMS))

    def encoded(begin: int) -> tuple[list[Any], Any]:
        chunk = items[begin : begin + _CHUNK_ITEMS]
        try:
            return chunk, encode(chunk)
        except RowError as error:
            raise RowError(begin + error.row, error.reason, error.detail) from None

    with ThreadPoolExecutor(1, thread_name_prefix="raybert-encode") as encoder:
        ahead = [encoder.submit(encoded, begin) for begin in islice(begins, 1)]
        while ahead:
            found = ahead.pop().result()
            ahead += [encoder.submit(encoded, begin) for begin in islice(begins, 1)]
            yield found


def _column_names(task: Task, name: str) -> list[str]:
    return [*(field.name for field in task.columns(name, "float32")), f"{name}_tokens", f"{name}_truncated"]


@overload
def load(model: str, task: Literal["rerank", "text-ranking"], **options: Any) -> Reranker: ...
@overload
def load(model: str, task: str, **options: Any) -> Predictor: ...
def load(
    model: str,
    task: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    max_length: int | None = None,
    threads: int | None = None,
    **task_options: Any,
) -> Predictor | Reranker:
    """Load one head into this process.

    Args:
        model: a folder, a hub id, or ``"demo"``.
        task: a task name (`raybert.config.TASK_NAMES`).
        device: auto, cpu or cuda.
        dtype: auto, float32, bfloat16 or float16; float32 is always exact.
        revision: branch, tag or commit of a hub id.
        max_length: tokens a text is cut to; None takes the checkpoint's.
        threads: processors to compute on; None takes all that this process may use. A GPU is fed by one.
        **task_options: the task's own, such as ``prompt`` and ``dimensions`` for embed.

    Raises:
        CheckpointError: the model can't be found, read or honoured.
        SettingsError: an option is unknown or out of range.
        DeviceError: the device or dtype is not to be had here.
    """
    name = task_name(task)
    known_options(name, task_options, TASKS[name].OPTIONS)
    if max_length is not None:
        task_options["max_length"] = max_length
    opened = make_task(
        HeadSpec(name=name.replace("-", "_"), task=name, model=str(model), revision=revision, options=task_options)
    )
    settings = choose_settings(device=device, dtype=dtype, tasks=[opened])
    count = _threads(threads, settings)
    if name == "rerank":
        return Reranker(opened, settings, threads=count)
    return Predictor(opened, settings, threads=count)


def load_heads(
    heads: Mapping[str, Sequence[Any] | HeadSpec],
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> Heads:
    """Load several heads into this process: one forward pass a trunk, wherever its heads ask for equal windows.

    Args:
        heads: ``{"v": ("demo", "embed"), "topic": ("path", "classify", {"top_k": 3})}``.
        device: auto, cpu or cuda.
        dtype: auto, float32, bfloat16 or float16, of all heads.
        threads: as of `load`.

    Raises:
        CheckpointError: a model can't be found, read or honoured.
        SettingsError: an entry or an option is unknown or out of range.
        DeviceError: the device or dtype is not to be had here.
    """
    tasks = {spec.name: make_task(spec) for spec in heads_from(heads)}
    settings = choose_settings(device=device, dtype=dtype, tasks=tasks.values())
    return Heads(tasks, settings, threads=_threads(threads, settings))


def _threads(asked: int | None, settings: EngineSettings) -> int:
    if asked is None:
        return default_threads(settings)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise SettingsError(f"threads {asked!r}: takes a whole number from 1")
    return asked
