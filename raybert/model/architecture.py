"""`BertModel`: embeddings, encoder and pooler with the reference's parameters, arguments and outputs.

This is the *module* form: padded, every kind of mask, decoder use, gradients. Inference over many texts runs
the packed form that is made from it.
"""

# B rows, S positions, K keys (cached positions and S), M positions of an encoder, D width, H heads, L layers

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.folder import Checkpoint, open_checkpoint
from raybert.errors import UsageError
from raybert.model.cache import KeyValueCache
from raybert.model.checks import check_cache, check_inputs, check_memory, head_mask_by_layer
from raybert.model.embeddings import BertEmbeddings
from raybert.model.encoder import BertEncoder, BertPooler, Surroundings
from raybert.model.filling import LoadReport, build_filled, has_pooler
from raybert.model.initialise import Embedding, initialise
from raybert.model.masks import cross_attention_bias, has_blind_query, self_attention_bias
from raybert.model.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from raybert.model.readers import WeightReader
from raybert.model.saving import save_module


class ConfiguredModule(nn.Module, ABC):
    """What `BertModel` and the classes with heads share.

    Attributes:
        config: sizes and settings.
    """

    config: BertConfig

    @abstractmethod
    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.get_input_embeddings().weight.dtype

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors into a folder; the reference loads them too.

        Raises:
            OutputError: the folder can't be made or written.
        """
        save_module(self, self.config, folder)


class BertModel(ConfiguredModule):
    """BERT without a head, as an encoder or, with ``config.is_decoder``, as a decoder.

    Args:
        config: the sizes and settings.
        add_pooling_layer: whether there is a pooler; without one ``pooler_output`` is None.

    Weights are drawn from torch's global generator: seed it to repeat them. A call takes these arguments, all
    optional, in this order; flags that are None follow the config:

    ========================  ======================================================================
    input_ids                 [B, S] token ids; or give ``inputs_embeds``
    attention_mask            [B, K] nonzero at real tokens, in any pattern; or [B, S, K], or
                              [B, 1 or H, S, K], for every query its own keys; None: all are real
    token_type_ids            [B, S]; None: all 0
    position_ids              [B, S]; None: counted from 0, or on from the cache
    head_mask                 [H] or [L, H], factors of the heads' attention probabilities
    inputs_embeds             [B, S, D] instead of word embeddings
    encoder_hidden_states     [B, M, D] that a decoder with cross-attention attends to
    encoder_attention_mask    as ``attention_mask``, with M for K
    past_key_values           a decoder's cache, grown in place; the inputs are the positions after it
    use_cache                 whether a decoder returns a cache; an encoder never does
    output_attentions         whether to return attention probabilities
    output_hidden_states      whether to return every layer's output
    return_dict               False gives the tuple of the output's fields that are not None
    cache_position            [S], where the inputs lie in the cache; only the positions after it will do
    ========================  ======================================================================

    Arguments that can't be meant (ids out of range, too many positions, wrong shapes) are a UsageError.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__()
        if config.add_cross_attention and not config.is_decoder:
            raise UsageError("config: add_cross_attention needs is_decoder=True; set both, or neither")
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        initialise(self, config.initializer_range)

    def forward(  # noqa: PLR0913, PLR0917  the reference's arguments, in its order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[Any, ...]:
        """Run the model; the class says what the arguments mean."""
        config = self.config
        past = check_cache(config, past_key_values, encoder_hidden_states, cache_position)
        check_inputs(config, input_ids, inputs_embeds, token_type_ids, position_ids, cache=past_key_values)
        use_cache = config.is_decoder and _flag(use_cache, config.use_cache)
        if use_cache and past_key_values is None:
            past_key_values = KeyValueCache()
        x_BSD = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, past=past)
        heads = config.num_attention_heads
        bias = self_attention_bias(attention_mask, heads=heads, past=past, causal=config.is_decoder, x_BSD=x_BSD)
        memory_bias = cross_attention_bias(
            encoder_attention_mask, heads=heads, memory_BMD=encoder_hidden_states, x_BSD=x_BSD
        )
        around = Surroundings(
            bias=bias,
            memory_BMD=check_memory(config, encoder_hidden_states, rows=x_BSD.shape[0]),
            memory_bias=memory_bias,
            cache=past_key_values,
            head_mask_LH=head_mask_by_layer(head_mask, config, x_BSD),
            want_attentions=_flag(output_attentions, config.output_attentions),
            blind_queries=has_blind_query(bias) or has_blind_query(memory_bias),
        )
        want_states = _flag(output_hidden_states, config.output_hidden_states)
        encoded = self.encoder(x_BSD, around, want_hidden_states=want_states)
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=encoded.last_BSD,
            pooler_output=None if self.pooler is None else self.pooler(encoded.last_BSD),
            hidden_states=encoded.hidden_states or None,
            past_key_values=past_key_values if use_cache else None,
            attentions=encoded.attentions or None,
            cross_attentions=encoded.cross_attentions or None,
        )
        return output if _flag(return_dict, config.return_dict) else output.to_tuple()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        dtype: torch.dtype | str | None = None,
        add_pooling_layer: bool | None = None,
        **changes: Any,
    ) -> Self:
        """Load the trunk of a checkpoint, and its pooler if it has one, in eval mode.

        Args:
            model: a folder, a hub id, or "demo".
            revision: branch, tag or commit of a hub id.
            token: access token for a hub id.
            cache_dir: where hub files are kept, if not in the hub's own cache.
            dtype: of the parameters; None means float32, whatever the file's.
            add_pooling_layer: None: whether the file has a pooler.
            changes: fields of the config that override the file's.

        Raises:
            CheckpointError: no such checkpoint, or one that isn't exactly this model.
        """
        checkpoint = open_checkpoint(str(model), revision=revision, token=token, cache_dir=cache_dir)
        config = changed(checkpoint.config, changes)
        loaded, _ = cls.from_checkpoint(checkpoint, config=config, pooler=add_pooling_layer, dtype=dtype)
        return loaded

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        config: BertConfig | None = None,
        pooler: bool | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> tuple[Self, LoadReport]:
        """As :meth:`from_pretrained`, from an open checkpoint, with the account of its weights."""
        reader = WeightReader(checkpoint.weight_files)
        with_pooler = has_pooler(reader) if pooler is None else pooler
        # A copy: a model's config may be changed without changing the checkpoint's.
        own_config = (config or checkpoint.config).replace()
        return build_filled(
            lambda: cls(own_config, add_pooling_layer=with_pooler),
            reader,
            place=checkpoint.path,
            dtype=dtype,
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def resize_token_embeddings(self, words: int) -> nn.Embedding:
        """Make room for so many words, as after a tokenizer's ``add_tokens``; returns the new embeddings.

        Known rows are kept, new ones drawn as those of a fresh model; ``config.vocab_size`` follows.

        Raises:
            UsageError: less than one word.
        """
        if words < 1:
            raise UsageError(f"words: {words}; takes a whole number from 1")
        old = self.embeddings.word_embeddings
        pad = old.padding_idx if old.padding_idx is not None and old.padding_idx < words else None
        new = Embedding(words, old.embedding_dim, padding_idx=pad).to(old.weight.device, old.weight.dtype)
        initialise(new, self.config.initializer_range)
        kept = min(words, old.num_embeddings)
        with torch.no_grad():
            new.weight[:kept] = old.weight[:kept]
        self.embeddings.word_embeddings = new
        self.config.vocab_size = words
        return new


def changed(config: BertConfig, changes: dict[str, Any]) -> BertConfig:
    """A config with other values for some of its fields.

    Raises:
        UsageError: a name that is no field: kept as an extra key it would do nothing.
        CheckpointError: a value that no BERT can have.
    """
    known = {field.name for field in fields(config)} | {"num_labels"}
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(f"{name}: no setting of a BERT config{f'; did you mean {near[0]}?' if near else ''}")
    return config.replace(**changes) if changes else config


def _flag(given: bool | None, default: bool | None) -> bool:
    return bool(default if given is None else given)
