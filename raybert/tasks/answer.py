"""Question answering: spans of a context that answer a question, as the reference's pipeline finds them (SQuAD).

The rules are those of transformers 4.57, the last version with such a pipeline. Each window has probabilities of its
own: a softmax over all its tokens, of the context's and the first special token's logits. A span's score is the
product of its ends' probabilities; spans of several windows that read the same are one answer, their scores added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import head_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.names import HEADS
from raybert.tasks.arrays import Arrays
from raybert.tasks.base import Reduced, TextTask
from raybert.tasks.ner import struct_lists
from raybert.text.encoding import Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch

_LONGEST_WINDOW = 384  # of the reference's, where the model could take more: SQuAD's own
_NOT_ALLOWED = np.float32(-10_000.0)


@dataclass(frozen=True)
class Answer:
    """A span of the context.

    Attributes:
        text: what stands there; empty for "the context has no answer".
        score: its probability; above 1 where the same words were found more than once.
        start, end: its place in the context, in code points, the end not part of it.
    """

    text: str
    score: float
    start: int
    end: int


class Qa(TextTask):
    """Answers to a question out of a context, best first.

    Options:
        align_to_words: answers begin and end with whole words; True.
        handle_impossible_answer: "no answer" competes too, as an empty text; False.
        max_answer_len: most tokens of an answer; 15.
        max_question_len: tokens that a question is cut to; 64.
        max_length: tokens of a window, special tokens included; None takes the checkpoint's, at most 384.
        stride: tokens of the context that neighbouring windows share; half of max_length, at most 128. Less where
            a long question leaves no room for it.
        top_k: how many answers a question gets at most; 1.
        truncation_side: with truncation: the end that is left out, right or left; None takes the checkpoint's.
        windows: what happens to a longer context: slide, or truncate.
    """

    name = "qa"
    version = 1
    takes = "pair"
    needs_texts = True
    needs_offsets = True
    slides = True
    width = 2
    OPTIONS = (
        "align_to_words",
        "handle_impossible_answer",
        "max_answer_len",
        "max_length",
        "max_question_len",
        "stride",
        "top_k",
        "truncation_side",
        "windows",
    )

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        given = dict(options)
        if given.get("max_length") is None:
            given["max_length"] = min(checkpoint.max_length, _LONGEST_WINDOW)
        super().__init__(checkpoint, given)
        self.align_to_words = self.truth("align_to_words", options.get("align_to_words", True))
        self.may_be_impossible = self.truth("handle_impossible_answer", options.get("handle_impossible_answer", False))
        numbers = {"max_answer_len": 15, "max_question_len": 64, "top_k": 1}
        asked = {key: default if options.get(key) is None else options[key] for key, default in numbers.items()}
        self.max_answer_len, self.max_question_len, self.top_k = (
            self.whole_number(key, value, 1, 10**6) for key, value in asked.items()
        )

    def default_stride(self) -> int:
        """Half a window, at most 128."""
        return max(0, min(self.max_length // 2, 128, self.max_length - 3))

    def _aggregation(self, asked: Any) -> None:
        return None

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options."""
        return {
            "align_to_words": self.align_to_words,
            "handle_impossible_answer": self.may_be_impossible,
            "max_answer_len": self.max_answer_len,
            "max_question_len": self.max_question_len,
            "top_k": self.top_k,
        }

    def pair_key(self) -> str:
        """Questions of their own length."""
        return f"pair {self.max_question_len}" if self.windows == "slide" else "pair"

    def head_contents(self) -> list[str]:
        """The layer that finds both ends."""
        return [head_digest(self.checkpoint, HEADS["qa"])]

    def encode(self, items: Sequence[Any], *, pairs: bool = True, offsets: bool = True) -> Windows:
        """Windows over the contexts, the question in each."""
        if self.windows == "truncate":
            return self._tokenizer.encode_pairs(items, offsets=True)
        return self._tokenizer.encode_pairs(
            items, offsets=True, windows="slide", stride=self.stride or 0, first_limit=self.max_question_len
        )

    @property
    def module_options(self) -> dict[str, Any]:
        """None: its module is the checkpoint's layer as it is."""
        return {}

    def module(self) -> nn.Module:
        """The layer that finds both ends, loaded."""
        from raybert.model.first_head import load_head
        from raybert.model.token_head import AnswerHead

        return load_head(self.checkpoint, lambda: AnswerHead(self.checkpoint.config))

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> start and end logits [T, 2] float32."""
        return module(hidden_TD), batch.layout.lengths

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[list[Answer]]:
        """The answers to each question, best first."""
        assert windows.offsets is not None
        assert windows.second is not None
        merged: list[dict[str, Answer]] = [{} for _ in items]
        impossible = [1e6] * len(items)
        starts, rows = windows.starts, windows.row_of_window.tolist()
        for window, logits in enumerate(arrays.rows()):
            row, first = rows[window], starts[window]
            begin, end = windows.second[window].tolist()
            p_start, p_end, null = _probabilities(logits, begin, end)
            impossible[row] = min(impossible[row], null)
            places = windows.offsets[first + begin : first + end]
            if self.align_to_words:
                continues = self._tokenizer.continues[windows.ids[first + begin : first + end]]
                places = _whole_words(places, continues)
            self._merge(merged[row], items[row][1], p_start, p_end, places)
        return [self._ranked(found, null) for found, null in zip(merged, impossible, strict=True)]

    def _merge(
        self, found: dict[str, Answer], context: str, p_start: np.ndarray, p_end: np.ndarray, places: np.ndarray
    ) -> None:
        """Add a window's spans to the answers found; words read before, whatever their case, add to their score."""
        most = 2 * self.top_k + 10 if self.align_to_words else self.top_k
        for begin, end, score in _best_spans(p_start, p_end, self.max_answer_len, most):
            start, stop = int(places[begin, 0]), int(places[end, 1])
            text = context[start:stop]
            before = found.get(text.lower())
            if before is None:
                found[text.lower()] = Answer(text, score, start, stop)
            else:
                found[text.lower()] = Answer(before.text, before.score + score, before.start, before.end)

    def _ranked(self, found: Mapping[str, Answer], impossible: float) -> list[Answer]:
        answers = list(found.values())
        if self.may_be_impossible:
            answers.append(Answer("", impossible, 0, 0))
        return sorted(answers, key=lambda answer: -answer.score)[: self.top_k]

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: list<struct<text, score, start, end>>``."""
        import pyarrow as pa

        answer = [("text", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
        return [pa.field(name, pa.list_(pa.struct(answer)))]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The column of lists of answers."""
        return [struct_lists(self.decode(items, windows, arrays), self.columns(self.name)[0].type)]


def _probabilities(logits: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Of the context's tokens to begin and to end the answer, float32 [end - begin] each, and of "no answer"."""
    masked = np.full_like(logits, _NOT_ALLOWED)
    masked[0], masked[begin:end] = logits[0], logits[begin:end]
    exponents = np.exp(masked - masked.max(0))
    p = exponents / exponents.sum(0)
    return p[begin:end, 0], p[begin:end, 1], float(p[0, 0] * p[0, 1])


def _whole_words(places: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Each token's place widened to the word of which it is a piece, as far as the window holds it."""
    if not len(places):
        return places
    begins = ~continues
    begins[0] = True
    word = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(places)) - 1
    return np.stack([places[first[word], 0], places[last[word], 1]], axis=1)


def _best_spans(p_start: np.ndarray, p_end: np.ndarray, longest: int, most: int) -> list[tuple[int, int, float]]:
    """(first token, last token, score) of the best spans with a score above 0, best first, at most ``most``."""
    tokens = len(p_start)
    longest = min(longest, tokens)
    if not tokens:
        return []
    padded = np.concatenate([p_end, np.zeros(longest - 1, np.float32)])
    scores = p_start[:, None] * np.lib.stride_tricks.sliding_window_view(padded, longest)
    flat = scores.ravel()
    chosen = np.arange(len(flat))
    if len(flat) > most:
        # Of equal scores at the edge the first spans count, whatever the partition does.
        least = np.partition(flat, len(flat) - most)[len(flat) - most]
        chosen = np.flatnonzero(flat >= least)
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")][:most]
    chosen = chosen[flat[chosen] > 0]
    begin, length = np.divmod(chosen, longest)
    return list(zip(begin.tolist(), (begin + length).tolist(), flat[chosen].tolist(), strict=True))
