"""Embed, the other two outputs: a vector for each token, and weights of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raybert.checkpoint.digest import word_head_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.checkpoint.sentence import Splade
from raybert.errors import SettingsError
from raybert.tasks.arrays import Arrays
from raybert.tasks.base import Reduced, TextTask
from raybert.tasks.embed import PLAIN, Embed, find_prompt
from raybert.text.encoding import Windows

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch


class _Unpooled(TextTask):
    """What both share: the checkpoint's prompts, and texts of one window.

    Options: ``max_length``, ``prompt`` and ``prompt_name``, as of `Embed`; ``windows`` is "truncate".
    """

    name = "embed"
    WINDOWS = ("truncate",)
    OPTIONS = Embed.OPTIONS
    output: str

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        sentence = checkpoint.sentence
        for option in ("aggregation", "dimensions", "normalize", "pooling"):
            if options.get(option) is not None:
                raise SettingsError(f"embed: {option} {options[option]!r}: goes with output='pooled' only")
        super().__init__(checkpoint, options, prompt=find_prompt(options, sentence or PLAIN))

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options."""
        return {"output": self.output, "prompt": self.prompt}


class TokenEmbed(_Unpooled):
    """A vector for each token of a text, special tokens and prompt included: the trunk's last hidden states."""

    version = 1
    output = "tokens"

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        self.width = checkpoint.config.hidden_size

    def head_contents(self) -> list[str]:
        """Nothing beside the trunk."""
        return []

    def module(self) -> nn.Module:
        """None is needed."""
        from torch import nn

        return nn.Identity()

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states as they are, float32."""
        return hidden_TD.float(), batch.layout.lengths

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[np.ndarray]:
        """A float32 [tokens, D] for each text."""
        return arrays.rows()

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME: list<fixed_size_list<float32|float16>[D]>``."""
        import pyarrow as pa

        numbers = {"float32": pa.float32(), "float16": pa.float16()}[vector_type]
        return [pa.field(name, pa.list_(pa.list_(numbers, self.width)))]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The column of lists of vectors."""
        import pyarrow as pa

        field = self.columns(self.name, vector_type)[0]
        numbers = pa.array(arrays.values.astype(vector_type, copy=False).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(numbers, type=field.type.value_type)
        return [pa.ListArray.from_arrays(_offsets(arrays), vectors)]


@dataclass(frozen=True, eq=False)
class SparseVector:
    """The words that a text speaks of.

    Attributes:
        ids: int32 [n], token ids, ascending.
        weights: float32 [n], above 0.
    """

    ids: np.ndarray
    weights: np.ndarray


class SparseEmbed(_Unpooled):
    """Weights of words by the masked-word head, as sentence-transformers' SparseEncoder gives them (SPLADE)."""

    version = 1
    output = "sparse"

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, options)
        self.splade = (checkpoint.sentence.splade if checkpoint.sentence else None) or Splade()
        self.width = 2

    @property
    def own_options(self) -> dict[str, Any]:
        """Its own options, and how words are weighed."""
        return {**super().own_options, "log_twice": self.splade.log_twice, "strategy": self.splade.strategy}

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

        return load_word_head(self.checkpoint)

    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> (id, weight) of each text's words with a weight above 0."""
        from raybert.model.token_head import WordHead

        assert isinstance(module, WordHead)
        return module.words(hidden_TD, batch.layout, strategy=self.splade.strategy, log_twice=self.splade.log_twice)

    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> list[SparseVector]:
        """A sparse vector a text."""
        return [SparseVector(rows[:, 0].astype(np.int32), rows[:, 1].copy()) for rows in arrays.rows()]

    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """``NAME_ids: list<int32>``, ``NAME_weights: list<float32>``."""
        import pyarrow as pa

        weights = pa.field(f"{name}_weights", pa.list_(pa.float32()))
        return [pa.field(f"{name}_ids", pa.list_(pa.int32())), weights]

    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """The two columns."""
        import pyarrow as pa

        offsets = _offsets(arrays)
        ids = pa.array(arrays.values[:, 0].astype(np.int32))
        weights = pa.array(np.ascontiguousarray(arrays.values[:, 1]))
        return [pa.ListArray.from_arrays(offsets, ids), pa.ListArray.from_arrays(offsets, weights)]


def _offsets(arrays: Arrays) -> pa.Array:
    import pyarrow as pa

    assert arrays.counts is not None
    return pa.array(np.r_[0, np.cumsum(arrays.counts, dtype=np.int64)].astype(np.int32))
