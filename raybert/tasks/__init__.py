"""Tasks: what a head does with a text, defined once for Python, Ray Data and Ray Serve.

A task has three steps. `Task.encode` turns items into windows of token ids (CPU); `Task.reduce` turns hidden
states into small arrays with the head's module (on the device); `Task.decode` turns those into what the caller
gets (CPU). `TASKS` is the table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raybert.checkpoint.folder import open_checkpoint
from raybert.config import HeadSpec
from raybert.tasks.answer import Qa
from raybert.tasks.base import Reduced, TextTask
from raybert.tasks.classify import Classify
from raybert.tasks.embed import Embed
from raybert.tasks.fill_mask import FillMask
from raybert.tasks.ner import Ner
from raybert.tasks.pairs import MultipleChoice, NextSentence
from raybert.tasks.rerank import Rerank

if TYPE_CHECKING:  # the batch driver asks tasks for columns and fingerprints without torch
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.checkpoint.folder import Checkpoint
    from raybert.model.packed import TokenBatch
    from raybert.tasks.arrays import Arrays
    from raybert.text.encoding import Windows
    from raybert.text.taken import Taken
    from raybert.text.tokenizer import Tokenizer

__all__ = ["TASKS", "Task", "make_task", "vary"]


class Task(Protocol):
    """One head's definition: checkpoint and resolved options, no weights until `module` is called.

    `raybert.tasks.base.TextTask` says what the attributes mean.
    """

    name: str
    takes: Literal["text", "pair", "either", "choices"]
    reads: Literal["tokens", "first"]
    one_row: bool
    width: int
    windows: str
    max_length: int
    prompt: str
    needs_texts: bool
    needs_offsets: bool
    checkpoint: Checkpoint
    given: dict[str, Any]

    @property
    def text_key(self) -> str:
        """Heads of equal keys make equal pieces of a text."""
        ...

    def encoding_key(self, *, pairs: bool) -> str:
        """Heads of equal keys encode every item to equal windows."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its ``auto`` resolved, as plain JSON values."""
        ...

    def fingerprint(self, dtype: str) -> str:
        """Sha256 of everything that decides the head's answers, arithmetic in ``dtype``."""
        ...

    def columns(self, name: str, vector_type: str) -> list[pa.Field]:
        """The head's output columns without its token counts."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, loaded on first use."""
        ...

    def items(self, texts: Sequence[str], seconds: Sequence[Any] | None) -> Sequence[Any]:
        """The task's items of texts and of what stands beside them."""
        ...

    def encode(self, items: Sequence[Any], *, pairs: bool = False, offsets: bool = False) -> Windows:
        """Token ids of the items; on the CPU, no weights needed."""
        ...

    def take(self, texts: Sequence[str], *, offsets: bool, whole: bool) -> Taken:
        """The pieces of texts."""
        ...

    def cut(self, taken: Taken) -> Windows:
        """The task's windows of these pieces."""
        ...

    @property
    def module_key(self) -> str:
        """Heads of equal keys have equal modules."""
        ...

    def module(self) -> nn.Module:
        """The head's own weights, loaded: the second argument of `reduce`."""
        ...

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states of a token batch -> a few numbers a sequence, or a token, in the batch's order."""
        ...

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> Any:
        """What a Python caller gets for the items, in their order."""
        ...

    def join(self, pieces: Sequence[Any]) -> Any:
        """Answers of consecutive calls of `decode` as one; none at all is the answer to no items."""
        ...

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The same for the columns of `columns`, in their order."""
        ...


TASKS: Mapping[str, type[TextTask]] = {
    "classify": Classify,
    "embed": Embed,
    "fill-mask": FillMask,
    "multiple-choice": MultipleChoice,
    "ner": Ner,
    "next-sentence": NextSentence,
    "qa": Qa,
    "rerank": Rerank,
}
"""Task name -> its class."""


def make_task(spec: HeadSpec) -> Task:
    """Open the head's checkpoint and resolve its options; no weight is read.

    Raises:
        CheckpointError: the checkpoint can't be found or honoured.
        SettingsError: an option is unknown or out of range.
    """
    return TASKS[spec.task].open(open_checkpoint(spec.model, revision=spec.revision), spec.options)


def vary(task: Task, options: Mapping[str, Any]) -> Task:
    """The same head with some options changed; it shares checkpoint and tokenizer.

    Raises:
        SettingsError: an option is unknown or out of range, or does not go with the head's own.
    """
    varied = TASKS[task.name].open(task.checkpoint, {**task.given, **options})
    assert isinstance(task, TextTask)
    varied.borrow_tokenizer(task)
    return varied
