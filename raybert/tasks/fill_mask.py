"""Fill-mask: the words that stand behind each mask of a text, as transformers' pipeline of that name gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import word_head_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.errors import CheckpointError, SettingsError
from raybert.tasks.arrays import Arrays
from raybert.tasks.base import Reduced, TextTask
from raybert.text.encoding import Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch
    from raybert.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fill:
    """One word for one mask.

    Attributes:
        token_id: its id.
        token: the word, or piece of one.
        score: its probability.
        text: the text with it in the mask's place, other masks left as they are.
    """

    token_id: int
    token: str
    score: float
    text: str


class FillMask(TextTask):
    """The most probable words for each mask. A text without a mask has an empty answer.

    Options:
        targets: only these words are looked at, each one token of the vocabulary; None: all.
        top_k: how many words a mask gets; 5.
        max_length: tokens a text is cut to, special tokens included; a mask behind them has no answer.
        truncation_side: which end of too long a text is left out: right or left; None takes the checkpoint's.
        windows: "truncate".
    """

    name = "fill-mask"
    version = 1
    WINDOWS = ("truncate",)
    OPTIONS = ("max_length", "targets", "top_k", "truncation_side", "windows")

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        self.targets = _targets(options.get("targets"))
        words = len(self.targets) if self.targets else checkpoint.config.vocab_size
        top_k = options.get("top_k")
        self.top_k = min(words, self.whole_number("top_k", 5 if top_k is None else top_k, 1, 2**24))
        self.width = 2 * self.top_k

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options."""
        return {"targets": list(self.targets) if self.targets else None, "top_k": self.top_k}

    def head_contents(self) -> list[str]:
        """The masked-word head."""
        return [word_head_digest(self.checkpoint)]

    @property
    def module_options(self) -> dict[str, Any]:
        """None: its module is the checkpoint's layer as it is."""
        return {}

    def module(self) -> nn.Module:
        """The masked-word head, loaded."""
        from raybert.model.token_head import load_word_head

        self.tokenizer()
        return load_word_head(self.checkpoint)

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            SettingsError: a target is no single token of it.
        """
        _ = self.target_ids
        return super().tokenizer()

    @property
    def _mask_id(self) -> int:
        if self._tokenizer.mask_id is None:
            raise CheckpointError(f"{self.checkpoint.path}: fill-mask: the tokenizer has no mask token")
        return self._tokenizer.mask_id

    @cached_property
    def target_ids(self) -> list[int] | None:
        """The targets' ids, each once; None: every word is one.

        Raises:
            SettingsError: one is no single token.
        """
        ids: list[int] = []
        for word in self.targets or ():
            pieces = self._tokenizer.take([word], whole=True).ids.tolist()
            if word in self._tokenizer.vocabulary:
                pieces = [self._tokenizer.vocabulary[word]]
            if len(pieces) != 1:
                split = " ".join(self._tokenizer.pieces[piece] for piece in pieces)
                raise SettingsError(f"fill-mask: target {word!r}: {len(pieces)} tokens ({split}); name single tokens")
            ids += pieces
        return list(dict.fromkeys(ids)) or None

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> ids and probabilities of each mask's best words, [masks, 2 top_k] float32.

        An id is exact as a float32: it is far below 2^24.
        """
        import torch

        from raybert.model.token_head import WordHead

        masks = (batch.ids_T == self._mask_id).nonzero()[:, 0]
        lengths = batch.layout.lengths
        sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        counts = torch.bincount(sequence_T[masks.cpu()], minlength=len(lengths))
        assert isinstance(module, WordHead)
        chosen = self.target_ids
        ids, scores = module.best(
            hidden_TD[masks],
            min(self.top_k, self.checkpoint.config.vocab_size if chosen is None else len(chosen)),
            None if chosen is None else torch.tensor(chosen, device=hidden_TD.device),
        )
        return torch.cat([ids.float(), scores], dim=1), counts

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[list[list[Fill]]]:
        """For each text, for each of its masks, words, best first."""
        starts = windows.starts
        answers = []
        for window, rows in enumerate(arrays.rows()):
            ids = windows.ids[starts[window] : starts[window] + windows.lengths[window]]
            masks = np.flatnonzero(ids == self._mask_id).tolist()
            lone = len(masks) == 1
            answers.append([self._fills(ids, mask, row, lone=lone) for mask, row in zip(masks, rows, strict=True)])
        return answers

    def _fills(self, ids: np.ndarray, mask: int, row: np.ndarray, *, lone: bool) -> list[Fill]:
        """The words of one mask; only a lone mask's text goes without special tokens: the other masks are some."""
        words, scores = np.split(row, 2)
        fills = []
        for word, score in zip(words.astype(np.int64).tolist(), scores.tolist(), strict=True):
            filled = ids.copy()
            filled[mask] = word
            token = self._tokenizer.text_of([word], skip_special=False)
            text = self._tokenizer.text_of(filled[filled != self._tokenizer.pad_id].tolist(), skip_special=lone)
            fills.append(Fill(word, token, score, text))
        return fills

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: list<list<struct<token_id, token, score, text>>>``."""
        import pyarrow as pa

        fill = [("token_id", pa.int32()), ("token", pa.string()), ("score", pa.float32()), ("text", pa.string())]
        return [pa.field(name, pa.list_(pa.list_(pa.struct(fill))))]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The column of lists of lists of words."""
        import pyarrow as pa

        from raybert.tasks.ner import struct_lists

        answers = self.decode(items, windows, arrays)
        masks = struct_lists(
            [mask for of_row in answers for mask in of_row], self.columns(self.name)[0].type.value_type
        )
        offsets = np.r_[0, np.cumsum([len(of_row) for of_row in answers], dtype=np.int64)].astype(np.int32)
        return [pa.ListArray.from_arrays(pa.array(offsets), masks)]


def _targets(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given or not all(isinstance(word, str) and word for word in given):
        raise SettingsError(f"fill-mask: targets {value!r}: takes a list of words")
    return tuple(given)
