"""What every BERT with a head shares: the trunk, loading with an account of every weight, saving, tied embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import nn

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.folder import Checkpoint, open_checkpoint
from raybert.checkpoint.names import HEADS, POOLER
from raybert.errors import UsageError
from raybert.model.architecture import BertModel, ConfiguredModule, changed
from raybert.model.filling import LoadReport, build_filled, has_pooler
from raybert.model.initialise import initialise
from raybert.model.outputs import ModelOutput
from raybert.model.readers import WeightReader

Output = TypeVar("Output", bound=ModelOutput)
_REMEDY = "load another checkpoint, or begin a new head for training with new_head=True"


class BertPreTrainedModel(ConfiguredModule):
    """Base of the classes with a head.

    Attributes:
        families: the heads of `raybert.checkpoint.names.HEADS` that the class has.
        needs_pooler: whether its head reads the pooler's output.
        bert: the trunk.
    """

    families: ClassVar[tuple[str, ...]]
    needs_pooler: ClassVar[bool] = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=self.needs_pooler)

    def _begin(self) -> None:
        """Draw the head's weights; the last step of every class's ``__init__``."""
        for part in self.children():
            if part is not self.bert:
                initialise(part, self.config.initializer_range)
        self.tie_weights()  # behind the drawing: the embeddings keep the numbers they have

    def tie_weights(self) -> None:
        """Have the words' output weights be their embeddings, where the class and its config say so."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        dtype: torch.dtype | str | None = None,
        new_head: bool = False,
        seed: int = 0,
        **changes: Any,
    ) -> Self:
        """Load a checkpoint with this head, in eval mode.

        Args:
            model: a folder, a hub id, or "demo".
            revision: branch, tag or commit of a hub id.
            token: access token for a hub id.
            cache_dir: where hub files are kept, if not in the hub's own cache.
            dtype: of the parameters; None means float32, whatever the file's.
            new_head: begin with a head of random weights, and a pooler if the head needs one that the checkpoint
                lacks; a head in the checkpoint is left out.
            seed: of these random weights.
            changes: fields of the config that override the file's; ``num_labels=5`` too.

        Raises:
            CheckpointError: no such checkpoint, or one that isn't exactly this model; without its head, the
                message says which heads it has.
            UsageError: a change that no BERT config knows.
        """
        checkpoint = open_checkpoint(str(model), revision=revision, token=token, cache_dir=cache_dir)
        config = changed(checkpoint.config, changes)
        loaded, _ = cls.from_checkpoint(checkpoint, config=config, dtype=dtype, new_head=new_head, seed=seed)
        return loaded

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        config: BertConfig | None = None,
        dtype: torch.dtype | str | None = None,
        new_head: bool = False,
        seed: int = 0,
    ) -> tuple[Self, LoadReport]:
        """As :meth:`from_pretrained`, from an open checkpoint, with the account of its weights."""
        reader = WeightReader(checkpoint.weight_files)
        # A copy: a model's config may be changed without changing the checkpoint's.
        own_config = (config or checkpoint.config).replace()
        fresh: set[str] = set()
        if new_head:
            fresh = {name for family in cls.families for name in HEADS[family]}
            if cls.needs_pooler and not has_pooler(reader):
                fresh |= set(POOLER)
            told = ", ".join(sorted(fresh))
            logging.getLogger("raybert").info("%s: new weights from seed %d for %s", checkpoint.name, seed, told)
        with torch.random.fork_rng(devices=[], enabled=new_head):
            if new_head:
                torch.default_generator.manual_seed(seed)
            model, report = build_filled(
                lambda: cls(own_config), reader, place=checkpoint.path, dtype=dtype, fresh=fresh, remedy=_REMEDY
            )
        return model, report

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.bert.get_input_embeddings()

    def resize_token_embeddings(self, words: int) -> nn.Embedding:
        """As :meth:`raybert.BertModel.resize_token_embeddings`; a language-model head follows."""
        self.bert.resize_token_embeddings(words)
        self._resize_head(words)
        self.config.vocab_size = words
        self.tie_weights()
        return self.get_input_embeddings()

    def _resize_head(self, words: int) -> None:
        """Where a head has a number for each word: make room in it."""

    def _give(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """The output as it was asked for."""
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


def classifier_dropout(config: BertConfig) -> nn.Dropout:
    """Dropout before a classifier: its own rate, or that of the other layers."""
    rate = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if rate is None else rate)


def check_labels(labels: torch.Tensor, name: str, expected: Iterable[tuple[int, ...]]) -> None:
    """Refuse labels of another shape, which would broadcast or fail far away.

    Raises:
        UsageError: naming both shapes.
    """
    shapes = list(expected)
    if tuple(labels.shape) not in shapes:
        raise UsageError(f"{name}: shape {tuple(labels.shape)}; expected {' or '.join(map(str, shapes))}")
