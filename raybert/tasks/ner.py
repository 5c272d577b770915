"""NER: named entities, or any spans that a token classifier tags, with their places in the text.

The tokens of a long text's windows become one row again before anything is grouped: of two windows that hold a token,
the one counts in which it lies farther from an edge. So no entity is cut or doubled where windows meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import head_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.names import HEADS
from raybert.config import one_of
from raybert.errors import SettingsError
from raybert.tasks.arrays import Arrays
from raybert.tasks.base import Reduced, TextTask
from raybert.tasks.tags import Tags
from raybert.text.encoding import Int32s, Int64s, Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch


@dataclass(frozen=True)
class Entity:
    """A span of a text.

    Attributes:
        label: its type; with aggregation none the raw tag.
        score: mean probability of its tokens or words.
        start, end: its place in the text, in code points, the end not part of it.
        text: what stands there.
        index: with aggregation none: the token's number in the text, the first special token being 0.
        token: with aggregation none: the token as the vocabulary has it; the text itself where it is unknown.
    """

    label: str
    score: float
    start: int
    end: int
    text: str
    index: int | None = None
    token: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tokens:
    """The tokens of N texts, each once and in order, without special tokens.

    Attributes:
        row: int32 [T], ascending.
        index: int64 [T], number in the text, special tokens before it counted.
        ids: int32 [T].
        offsets: int32 [T, 2].
        values: float32 [T, V], of `Ner.reduce`.
    """

    row: Int32s
    index: Int64s
    ids: Int32s
    offsets: Int32s
    values: np.ndarray


class Ner(TextTask):
    """Spans of tagged tokens, as transformers' token-classification pipeline groups them.

    Options:
        aggregation: "none": tokens with their tags; "simple": neighbours of one type; "first", "average", "max":
            the pieces of a word first agree on a tag, by the first piece, the mean of all scores, or the surest piece.
        ignore_labels: types (with aggregation none: tags) that are left out; ["O"].
        max_length: tokens of a window, special tokens included; None takes the checkpoint's.
        stride: tokens that neighbouring windows share; a quarter of max_length.
        truncation_side: with truncation: the end that is left out, right or left; None takes the checkpoint's.
        windows: what happens to a longer text: slide, or truncate.
    """

    name = "ner"
    version = 1
    needs_texts = True
    needs_offsets = True
    slides = True
    aggregates_tokens = True
    AGGREGATIONS = ("none", "simple", "first", "average", "max")
    OPTIONS = ("aggregation", "ignore_labels", "max_length", "stride", "truncation_side", "windows")

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        self.labels = checkpoint.config.labels
        ignored = options.get("ignore_labels")
        self._tags = Tags(self.labels)
        self.ignore_labels = ("O",) if ignored is None else _labels(ignored, [*self.labels, *self._tags.types])
        # Only the mean over a word needs all scores; else a token's best label and its score say everything.
        self.width = len(self.labels) if self.aggregation == "average" else 2

    def default_stride(self) -> int:
        """A quarter of a window: every token has an eighth of one around it."""
        return min(self.max_length // 4, self.max_length - 3)

    def _aggregation(self, asked: Any) -> str:
        return one_of("ner: aggregation", "simple" if asked is None else str(asked), self.AGGREGATIONS)

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options."""
        return {"ignore_labels": list(self.ignore_labels), "labels": list(self.labels)}

    def head_contents(self) -> list[str]:
        """The classifier of tokens."""
        return [head_digest(self.checkpoint, HEADS["classifier"])]

    @property
    def module_options(self) -> dict[str, Any]:
        """None: its module is the checkpoint's layer as it is."""
        return {}

    def module(self) -> nn.Module:
        """The classifier, loaded."""
        from raybert.model.first_head import load_head
        from raybert.model.token_head import TokenClassifierHead

        return load_head(self.checkpoint, lambda: TokenClassifierHead(self.checkpoint.config))

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> (number of the best label, its probability), or all labels' probabilities, a token."""
        import torch

        scores_TK = module(hidden_TD)
        if self.width != 2 or self.aggregation == "average":
            return scores_TK, batch.layout.lengths
        best, labels = scores_TK.max(-1)
        return torch.stack([labels.float(), best], dim=1), batch.layout.lengths

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[list[Entity]]:
        """The entities of each text, in its order."""
        found: list[list[Entity]] = [[] for _ in items]
        tokens = self._joined(windows, arrays)
        if self.aggregation == "none":
            self._add_tokens(found, items, tokens)
            return found
        for row, label, score, start, end in self._groups(tokens):
            found[row].append(Entity(label, score, start, end, items[row][start:end]))
        return found

    def _joined(self, windows: Windows, arrays: Arrays) -> _Tokens:
        """Each token once, with the numbers of the window in which it lies farthest from an edge."""
        assert windows.offsets is not None
        lengths = windows.lengths.astype(np.int64)
        window_T = np.repeat(np.arange(windows.n_windows), lengths)
        place_T = np.arange(len(windows.ids)) - np.repeat(windows.starts, lengths)
        lead, room = self._tokenizer.lead, self._tokenizer.room
        trail = self.max_length - room - lead
        text_T = (place_T >= lead) & (place_T < lengths[window_T] - trail)
        number_W = np.arange(windows.n_windows) - windows.first_windows[windows.row_of_window]
        index_T = number_W[window_T] * (room - (self.stride or 0)) + place_T
        row_T = windows.row_of_window[window_T]
        chosen = np.flatnonzero(text_T)
        if windows.n_windows > windows.n_items:
            edge_T = np.minimum(place_T, lengths[window_T] - 1 - place_T)
            order = np.lexsort((window_T[chosen], -edge_T[chosen], index_T[chosen], row_T[chosen]))
            chosen = chosen[order]
            row, index = row_T[chosen], index_T[chosen]
            chosen = chosen[np.r_[True, (row[1:] != row[:-1]) | (index[1:] != index[:-1])][: len(chosen)]]
        return _Tokens(
            row=row_T[chosen],
            index=index_T[chosen],
            ids=windows.ids[chosen],
            offsets=windows.offsets[chosen],
            values=arrays.values[chosen],
        )

    def _best(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the best label, and its score, of each row of `reduce` or of means of such rows."""
        if self.aggregation != "average":
            return values[:, 0].astype(np.int64), values[:, 1]
        best = values.argmax(1)
        return best, values[np.arange(len(values)), best]

    def _add_tokens(self, found: list[list[Entity]], items: Sequence[str], tokens: _Tokens) -> None:
        labels, scores = self._best(tokens.values)
        wanted = np.array([label not in self.ignore_labels for label in self.labels])
        pieces, unknown = self._tokenizer.pieces, self._tokenizer.unk_id
        for at in np.flatnonzero(wanted[labels]).tolist():
            row, (start, end), word = int(tokens.row[at]), tokens.offsets[at].tolist(), int(tokens.ids[at])
            text = items[row][start:end]
            token = text if word == unknown else pieces[word]
            label, score = self.labels[labels[at]], float(scores[at])
            found[row].append(Entity(label, score, start, end, text, int(tokens.index[at]), token))

    def _groups(self, tokens: _Tokens) -> list[tuple[int, str, float, int, int]]:
        """(row, type, score, start, end) of each entity, in order."""
        begins, ends = np.arange(len(tokens.row)), np.arange(len(tokens.row))
        values = tokens.values
        if self.aggregation != "simple" and len(begins):
            begins = np.flatnonzero(self._begins_word(tokens))
            ends = np.append(begins[1:], len(tokens.row)) - 1
            values = self._of_words(values, begins)
        labels, scores = self._best(values)
        units = self._tags.kept(labels, self.ignore_labels)
        return self._tags.groups(
            units=units,
            labels=labels,
            scores=scores,
            rows=tokens.row[begins],
            starts=tokens.offsets[begins, 0],
            ends=tokens.offsets[ends, 1],
        )

    def _begins_word(self, tokens: _Tokens) -> np.ndarray:
        """Which tokens begin a word: all but pieces that continue one, and the first of each text."""
        begins: np.ndarray = ~self._tokenizer.continues[tokens.ids]
        begins[np.r_[True, tokens.row[1:] != tokens.row[:-1]]] = True
        return begins

    def _of_words(self, values: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """One row a word of one row a token."""
        if self.aggregation == "first":
            firsts: np.ndarray = values[begins]
            return firsts
        if self.aggregation == "average":
            counts = np.diff(np.append(begins, len(values)))
            means: np.ndarray = np.add.reduceat(values, begins, axis=0) / counts[:, None].astype(np.float32)
            return means
        # The surest piece; of equal ones the first.
        word_of = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(values))))
        order = np.lexsort((np.arange(len(values)), -values[:, 1], word_of))
        surest: np.ndarray = values[order[begins]]
        return surest

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: list<struct<label, score, start, end, text>>``; with aggregation none also index and token."""
        import pyarrow as pa

        fields = [
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("text", pa.string()),
        ]
        if self.aggregation == "none":
            fields += [pa.field("index", pa.int32()), pa.field("token", pa.string())]
        return [pa.field(name, pa.list_(pa.struct(fields)))]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The column of lists of entities."""
        return [struct_lists(self.decode(items, windows, arrays), self.columns(self.name)[0].type)]


def struct_lists(answers: Sequence[Sequence[Any]], kind: pa.DataType) -> pa.Array:
    """Lists of dataclasses as a column of lists of structs with fields of the same names."""
    import pyarrow as pa

    flat = [answer for of_row in answers for answer in of_row]
    struct = kind.value_type
    columns = [pa.array([getattr(answer, field.name) for answer in flat], field.type) for field in struct]
    offsets = np.r_[0, np.cumsum([len(of_row) for of_row in answers], dtype=np.int64)].astype(np.int32)
    values = pa.StructArray.from_arrays(columns, fields=list(struct))
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _labels(value: Any, known: Sequence[str]) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(label, str) for label in given):
        raise SettingsError(f"ner: ignore_labels {value!r}: takes a list of labels")
    return tuple(one_of("ner: ignore_labels", label, list(dict.fromkeys(["O", *known]))) for label in given if label)
