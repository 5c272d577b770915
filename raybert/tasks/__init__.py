"""Tasks: what a head does with a text, defined once for Python, Ray Data and Ray Serve.

A task has three steps. `Task.encode` turns items into windows of token ids (CPU); `Task.reduce` turns hidden
states into small arrays with the head's module (on the device); `Task.decode` turns those into what the caller
gets (CPU). `TASKS` is the table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raybert.checkpoint.folder import open_checkpoint
from raybert.config import HeadSpec
from raybert.tasks.classify import Classify
from raybert.tasks.embed import Embed

if TYPE_CHECKING:  # the batch driver asks tasks for columns and fingerprints without torch
    import numpy as np
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.checkpoint.folder import Checkpoint
    from raybert.model.attention import Layout
    from raybert.text.encoding import Windows
    from raybert.text.tokenizer import Tokenizer

__all__ = ["TASKS", "Task", "make_task"]


class Task(Protocol):
    """One head's definition: checkpoint and resolved options, no weights until `module` is called."""

    name: str
    takes_pairs: bool
    checkpoint: Checkpoint

    @property
    def encoding_key(self) -> str:
        """Heads of equal keys encode every item to equal windows."""
        ...

    @property
    def options(self) -> dict[str, Any]:
        """Every option with its ``auto`` resolved, as plain JSON values."""
        ...

    @property
    def width(self) -> int:
        """Numbers per window that `reduce` gives."""
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

    def encode(self, items: Sequence[Any]) -> Windows:
        """Token ids of the items; on the CPU, no weights needed."""
        ...

    def module(self) -> nn.Module:
        """The head's own weights, loaded: the second argument of `reduce`."""
        ...

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, layout: Layout) -> torch.Tensor:
        """Hidden states of a token batch -> [N, width] float32, in the layout's order."""
        ...

    def decode(self, windows: Windows, arrays: np.ndarray) -> Any:
        """What a Python caller gets for the items, in their order."""
        ...

    def join(self, pieces: Sequence[Any]) -> Any:
        """Answers of consecutive calls of `decode` as one; none at all is the answer to no items."""
        ...

    def arrow(self, windows: Windows, arrays: np.ndarray, vector_type: str) -> list[pa.Array]:
        """The same for the columns of `columns`, in their order."""
        ...


TASKS: Mapping[str, type[Classify] | type[Embed]] = {"classify": Classify, "embed": Embed}
"""Task name -> its class."""


def make_task(spec: HeadSpec) -> Task:
    """Open the head's checkpoint and resolve its options; no weight is read.

    Raises:
        CheckpointError: the checkpoint can't be found or honoured.
        SettingsError: an option is unknown or out of range.
    """
    return TASKS[spec.task](open_checkpoint(spec.model, revision=spec.revision), spec.options)
