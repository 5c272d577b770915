"""Embed: one vector a text, as sentence-transformers computes it for the same folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import module_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.sentence import Dense, Normalize, Pooling, SentenceModules
from raybert.config import known_options, one_of
from raybert.errors import SettingsError
from raybert.tasks.base import TextTask
from raybert.text.encoding import Windows
from raybert.text.tokenizer import problem

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.attention import Layout

POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_PLAIN = SentenceModules(pooling=Pooling(modes=("mean",)))


class Embed(TextTask):
    """Pooled embeddings.

    Options:
        prompt: text put before every text; None takes the checkpoint's default prompt.
        prompt_name: one of the checkpoint's named prompts.
        normalize: scale vectors to unit length; None does what the checkpoint's modules say.
        dimensions: keep the first so many numbers of a vector, then scale again where it is normalised.
        pooling: a mode of `POOLING_MODES`, or several joined by "+"; None takes the checkpoint's, else mean.
        max_length: tokens a text is cut to, special tokens included; None takes the checkpoint's.
        windows: "truncate", what happens to a longer text.
    """

    name = "embed"
    version = 1
    OPTIONS = ("dimensions", "max_length", "normalize", "pooling", "prompt", "prompt_name", "windows")

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        sentence = checkpoint.sentence or _PLAIN
        known_options(self.name, options, self.OPTIONS)
        super().__init__(checkpoint, options, prompt=_prompt(options, sentence))
        self.pooling = _pooling(options.get("pooling"), sentence)
        self.include_prompt = sentence.pooling.include_prompt
        self.dense = tuple(module for module in sentence.after if isinstance(module, Dense))
        self.normalize = _normalize(options.get("normalize"), sentence)
        self._after = tuple(sentence.after)
        full = self.dense[-1].out_features if self.dense else checkpoint.config.hidden_size * len(self.pooling)
        self._check_pooling_width(full)
        asked = options.get("dimensions")
        self.dimensions = None if asked is None else self.whole_number("dimensions", asked, 1, full)
        self.width = self.dimensions or full

    def _check_pooling_width(self, full: int) -> None:
        pooled = self.checkpoint.config.hidden_size * len(self.pooling)
        if self.dense and self.dense[0].in_features != pooled:
            raise SettingsError(
                f"embed: pooling {'+'.join(self.pooling)} gives {pooled} numbers, "
                f"the checkpoint's Dense module takes {self.dense[0].in_features} (and gives {full})"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Every option, resolved."""
        return {
            "dimensions": self.dimensions,
            "include_prompt": self.include_prompt,
            "lower_case": self.lower_case,
            "max_length": self.max_length,
            "normalize": self.normalize,
            "pooling": "+".join(self.pooling),
            "prompt": self.prompt,
            "windows": self.windows,
        }

    def head_contents(self) -> list[str]:
        """The modules behind pooling."""
        return [module_digest(module) if isinstance(module, Dense) else "normalize" for module in self._after]

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: fixed_size_list<float32|float16>[D]``."""
        import pyarrow as pa

        numbers = {"float32": pa.float32(), "float16": pa.float16()}[vector_type]
        return [pa.field(name, pa.list_(numbers, self.width))]

    def module(self) -> nn.Module:
        """Pooling and what follows it, Dense weights loaded."""
        from raybert.model.embed_head import build_embed_head

        skip = 0
        if self.prompt and not self.include_prompt:
            skip = self._tokenizer.prompt_tokens(self.prompt)
            if skip >= self.max_length - 1:
                raise SettingsError(f"embed: the prompt's {skip} tokens leave no room in max_length {self.max_length}")
        return build_embed_head(
            self.pooling, self._after, skip=skip, normalize=self.normalize, dimensions=self.dimensions
        )

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, layout: Layout) -> torch.Tensor:
        """Hidden states -> vectors [N, D] float32."""
        vectors: torch.Tensor = module(hidden_TD, layout)
        return vectors

    def decode(self, windows: Windows, arrays: np.ndarray) -> np.ndarray:
        """Vectors [N, D] float32; a text has one window."""
        assert windows.n_windows == len(arrays)
        return arrays

    def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of several calls, one under the other."""
        return np.concatenate([np.empty((0, self.width), np.float32), *pieces])

    def arrow(self, windows: Windows, arrays: np.ndarray, vector_type: str) -> list[pa.Array]:
        """The vector column."""
        import pyarrow as pa

        field = self.columns(self.name, vector_type)[0]
        numbers = arrays.astype(vector_type, copy=False).reshape(-1)
        return [pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=field.type)]


def _pooling(asked: str | None, sentence: SentenceModules) -> tuple[str, ...]:
    if asked is None:
        return sentence.pooling.modes
    return tuple(one_of("embed: pooling", mode, POOLING_MODES) for mode in str(asked).split("+"))


def _prompt(options: Mapping[str, Any], sentence: SentenceModules) -> str:
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


def _normalize(asked: Any, sentence: SentenceModules) -> bool:
    if asked is None:
        # One before a Dense stays where it is and says nothing about the vector that leaves.
        return bool(sentence.after) and isinstance(sentence.after[-1], Normalize)
    if not isinstance(asked, bool):
        raise SettingsError(f"embed: normalize {asked!r}: takes true or false")
    return asked
