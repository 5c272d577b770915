"""Embed: one vector a text, as sentence-transformers computes it for the same folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import module_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.sentence import Dense, Normalize, Pooling, SentenceModules
from raybert.config import known_options, one_of
from raybert.errors import SettingsError
from raybert.tasks.arrays import Arrays, per_item, unit
from raybert.tasks.base import Reduced, TextTask
from raybert.text.encoding import Windows
from raybert.text.tokenizer import problem

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch

POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PLAIN = SentenceModules(pooling=Pooling(modes=("mean",)))


OUTPUTS = ("pooled", "tokens", "sparse")


class Embed(TextTask):
    """Pooled embeddings; `raybert.tasks.embed_tokens` has the other two outputs.

    Options:
        output: "pooled": a vector a text; "tokens": one a token; "sparse": weights of words, for checkpoints made
            for it. None takes sparse where the checkpoint's modules say so, else pooled.
        aggregation: with sliding windows: mean of their vectors, weighted by tokens, or max; then scaled again
            where vectors are normalised.
        prompt: text put before every text; None takes the checkpoint's default prompt.
        prompt_name: one of the checkpoint's named prompts.
        normalize: scale vectors to unit length; None does what the checkpoint's modules say.
        dimensions: keep the first so many numbers of a vector, then scale again where it is normalised.
        pooling: a mode of `POOLING_MODES`, or several joined by "+"; None takes the checkpoint's, else mean.
        max_length: tokens of a window, special tokens included; None takes the checkpoint's.
        stride: with sliding windows: tokens that neighbours share; 0.
        truncation_side: which end of too long a text is left out: right or left; None takes the checkpoint's.
        windows: what happens to a longer text: truncate, or slide.
    """

    name = "embed"
    version = 1
    one_row = True
    OPTIONS = (
        "aggregation",
        "dimensions",
        "max_length",
        "normalize",
        "output",
        "pooling",
        "prompt",
        "prompt_name",
        "stride",
        "truncation_side",
        "windows",
    )

    @classmethod
    def open(cls, checkpoint: Checkpoint, options: Mapping[str, Any]) -> TextTask:
        """The task that gives the output asked for."""
        from raybert.tasks.embed_tokens import SparseEmbed, TokenEmbed

        known_options(cls.name, options, cls.OPTIONS)
        output = options.get("output")
        if output is None:
            is_sparse = checkpoint.sentence is not None and checkpoint.sentence.splade is not None
            output = "sparse" if is_sparse else "pooled"
        kinds: dict[str, type[TextTask]] = {"pooled": cls, "tokens": TokenEmbed, "sparse": SparseEmbed}
        return kinds[one_of("embed: output", str(output), OUTPUTS)](checkpoint, options)

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        sentence = checkpoint.sentence or PLAIN
        super().__init__(checkpoint, options, prompt=find_prompt(options, sentence))
        self.pooling = _pooling(options.get("pooling"), sentence)
        self.include_prompt = sentence.pooling.include_prompt
        self.dense = tuple(module for module in sentence.after if isinstance(module, Dense))
        self.normalize = self._normalize(options.get("normalize"), sentence)
        self._after = tuple(sentence.after)
        full = self.dense[-1].out_features if self.dense else checkpoint.config.hidden_size * len(self.pooling)
        self._check_pooling_width(full)
        asked = options.get("dimensions")
        self.dimensions = None if asked is None else self.whole_number("dimensions", asked, 1, full)
        self.width = self.dimensions or full
        # Pooling that leaves a prompt out begins behind it.
        if self.pooling == ("cls",) and (self.include_prompt or not self.prompt):
            self.reads = "first"

    def _normalize(self, asked: Any, sentence: SentenceModules) -> bool:
        if asked is not None:
            return self.truth("normalize", asked)
        # One before a Dense stays where it is and says nothing about the vector that leaves.
        return bool(sentence.after) and isinstance(sentence.after[-1], Normalize)

    def _check_pooling_width(self, full: int) -> None:
        pooled = self.checkpoint.config.hidden_size * len(self.pooling)
        if self.dense and self.dense[0].in_features != pooled:
            raise SettingsError(
                f"embed: pooling {'+'.join(self.pooling)} gives {pooled} numbers, "
                f"the checkpoint's Dense module takes {self.dense[0].in_features} (and gives {full})"
            )

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options."""
        return {
            "dimensions": self.dimensions,
            "include_prompt": self.include_prompt,
            "normalize": self.normalize,
            "output": "pooled",
            "pooling": "+".join(self.pooling),
            "prompt": self.prompt,
        }

    def head_contents(self) -> list[str]:
        """The modules behind pooling."""
        return [module_digest(module) if isinstance(module, Dense) else "normalize" for module in self._after]

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: fixed_size_list<float32|float16>[D]``."""
        import pyarrow as pa

        numbers = {"float32": pa.float32(), "float16": pa.float16()}[vector_type]
        return [pa.field(name, pa.list_(numbers, self.width))]

    @property
    def module_options(self) -> dict[str, Any]:
        """Its own, and the length that a prompt must leave room in."""
        return {**self.own_options, "max_length": self.max_length}

    def module(self) -> nn.Module:
        """Pooling and what follows it, Dense weights loaded."""
        from raybert.model.embed_head import build_embed_head

        if self._skip and self._skip >= self.max_length - 1:
            raise SettingsError(
                f"embed: the prompt's {self._skip} tokens leave no room in max_length {self.max_length}"
            )
        return build_embed_head(
            self.pooling, self._after, skip=self._skip, normalize=self.normalize, dimensions=self.dimensions
        )

    @cached_property
    def _skip(self) -> int:
        """Leading tokens of a window that pooling leaves out."""
        return self._tokenizer.prompt_tokens(self.prompt) if self.prompt and not self.include_prompt else 0

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> vectors [N, D] float32."""
        return module(hidden_TD, batch.layout), None

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> np.ndarray:
        """Vectors [N, D] float32."""
        if self.windows != "slide":
            return arrays.values
        vectors = per_item(windows, arrays.values, self.aggregation, left_out=self._skip)
        if self.normalize:
            # Of one window too: law 1 wants no answer to depend on what else is in the call.
            vectors = unit(vectors)
        return vectors

    def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of several calls, one under the other."""
        return np.concatenate([np.empty((0, self.width), np.float32), *pieces])

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The vector column."""
        import pyarrow as pa

        field = self.columns(self.name, vector_type)[0]
        numbers = self.decode(items, windows, arrays).astype(vector_type, copy=False).reshape(-1)
        return [pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=field.type)]


def _pooling(asked: str | None, sentence: SentenceModules) -> tuple[str, ...]:
    if asked is None:
        return sentence.pooling.modes
    return tuple(one_of("embed: pooling", mode, POOLING_MODES) for mode in str(asked).split("+"))


def find_prompt(options: Mapping[str, Any], sentence: SentenceModules) -> str:
    """The prompt that options and checkpoint name; an empty text is none.

    Raises:
        SettingsError: it is no text, or no prompt of the checkpoint has that name.
    """
    prompt, prompt_name = options.get("prompt"), options.get("prompt_name")
    if prompt is not None and prompt_name is not None:
        raise SettingsError("embed: prompt and prompt_name are both given; pass one")
    if prompt is not None:
        found = problem(prompt)
        if found is not None:
            raise SettingsError(f"embed: prompt {prompt!r}: {found[1]}; pass a text")
        return str(prompt)
    if prompt_name is None:
        prompt_name = sentence.default_prompt
    if prompt_name is None:
        return ""
    if not sentence.prompts:
        raise SettingsError(f"embed: prompt_name {prompt_name!r}: this checkpoint names no prompts; pass prompt=")
    return sentence.prompts[one_of("embed: prompt_name", str(prompt_name), sorted(sentence.prompts))]
