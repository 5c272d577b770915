"""Next sentence, and multiple choice: the other two heads of BERT over pairs of texts (Devlin et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import head_digest
from raybert.checkpoint.names import HEADS, POOLER
from raybert.errors import RowError
from raybert.tasks.arrays import Arrays
from raybert.tasks.base import Reduced, TextTask
from raybert.tasks.classify import Classification, best_first, label_fields, labelled
from raybert.text.encoding import Windows
from raybert.text.tokenizer import problem

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch

SENTENCE_LABELS = ("IsNext", "NotNext")
"""What the head's two numbers stand for, in the paper's words."""


class NextSentence(TextTask):
    """Whether the second text goes on where the first ends.

    Options:
        max_length: tokens of both texts together, special tokens included; the longer one gives way first.
        truncation_side: which end of too long a text is left out: right or left; None takes the checkpoint's.
        windows: "truncate".
    """

    name = "next-sentence"
    version = 1
    takes = "pair"
    reads = "first"
    one_row = True
    width = 2
    WINDOWS = ("truncate",)
    OPTIONS = ("max_length", "truncation_side", "windows")

    @property
    def own_options(self) -> dict[str, Any]:
        """Its labels."""
        return {"labels": list(SENTENCE_LABELS)}

    def head_contents(self) -> list[str]:
        """Pooler and the layer of two classes."""
        return [head_digest(self.checkpoint, (*POOLER, *HEADS["next-sentence"]))]

    def module(self) -> nn.Module:
        """Pooler and the layer of two classes, loaded."""
        from raybert.model.first_head import NextSentenceHead, load_head

        return load_head(self.checkpoint, lambda: NextSentenceHead(self.checkpoint.config))

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> probabilities [N, 2] float32."""
        return module(hidden_TD, batch.layout), None

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[Classification]:
        """An answer a pair."""
        return [best_first(SENTENCE_LABELS, scores) for scores in arrays.values]

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME_label: string, NAME_score: float32, NAME_scores: list<float32>``."""
        return label_fields(name, SENTENCE_LABELS)

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The columns' values."""
        return labelled(SENTENCE_LABELS, arrays.values)


class MultipleChoice(TextTask):
    """Which of several choices goes best with a prompt; an item is ``(prompt, [choice, ...])``.

    Options:
        max_length: tokens of prompt and one choice together, special tokens included; the longer gives way first.
        truncation_side: which end of too long a text is left out: right or left; None takes the checkpoint's.
        windows: "truncate".
    """

    name = "multiple-choice"
    version = 1
    takes = "choices"
    reads = "first"
    one_row = True
    needs_texts = True
    width = 1
    WINDOWS = ("truncate",)
    OPTIONS = ("max_length", "truncation_side", "windows")

    @property
    def own_options(self) -> dict[str, Any]:
        """None of its own."""
        return {}

    def head_contents(self) -> list[str]:
        """Pooler and the layer that scores a choice."""
        return [head_digest(self.checkpoint, (*POOLER, *HEADS["classifier"]))]

    def encode(self, items: Sequence[Any], *, pairs: bool = True, offsets: bool = False) -> Windows:
        """A window for each choice, in their order.

        Raises:
            RowError: an item is no prompt with a list of one or more texts.
        """
        for row, item in enumerate(items):
            _check_choices(row, item)
        counts = [len(choices) for _, choices in items]
        flat = [(prompt, choice) for prompt, choices in items for choice in choices]
        windows = self._tokenizer.encode_pairs(flat, offsets=offsets)
        item_of_pair = np.repeat(np.arange(len(items), dtype=np.int32), counts)
        cut_pairs = np.bincount(item_of_pair, weights=windows.truncated, minlength=len(items))
        tokens = np.bincount(item_of_pair, weights=windows.tokens, minlength=len(items))
        return replace(windows, row_of_window=item_of_pair, tokens=tokens.astype(np.int32), truncated=cut_pairs > 0)

    def module(self) -> nn.Module:
        """Pooler and the layer that scores a choice, loaded."""
        from raybert.model.first_head import ClassifierHead, load_head

        return load_head(self.checkpoint, lambda: ClassifierHead(self.checkpoint.config, "none", 1))

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> a logit a choice, [N, 1] float32."""
        return module(hidden_TD, batch.layout), None

    def _scores(self, windows: Windows, arrays: Arrays) -> list[np.ndarray]:
        """Softmax over the choices of each item."""
        logits = np.split(arrays.values[:, 0].astype(np.float64), windows.first_windows[1:])
        exponents = [np.exp(of_item - of_item.max()) for of_item in logits if len(of_item)]
        return [(of_item / of_item.sum()).astype(np.float32) for of_item in exponents]

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[Classification]:
        """An answer an item; its labels are the choices."""
        scores = self._scores(windows, arrays)
        return [best_first(choices, found) for (_, choices), found in zip(items, scores, strict=True)]

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME_label: string`` (the choice), ``NAME_score: float32, NAME_scores: list<float32>`` in their order."""
        return label_fields(name, None)

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The columns' values."""
        import pyarrow as pa

        answers, scores = self.decode(items, windows, arrays), self._scores(windows, arrays)
        return [
            pa.array([answer.label for answer in answers], pa.string()),
            pa.array([answer.score for answer in answers], pa.float32()),
            pa.array([found.tolist() for found in scores], pa.list_(pa.float32())),
        ]


def _check_choices(row: int, item: Any) -> None:
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[1], list | tuple) or not item[1]:
        raise RowError(row, "wrong_type", "expected a prompt and a list of choices, (text, [text, ...])")
    for text in (item[0], *item[1]):
        found = problem(text)
        if found is not None:
            raise RowError(row, *found)
