"""BERT with its language-model head: masked words, both pretraining objectives, and next words as a decoder.

Devlin et al. 2018, section 3.1. The output matrix is the word embeddings' (Press and Wolf 2017), unless
``config.tie_word_embeddings`` is off.
"""

# B rows, S positions, D width, V words

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.activations import activation
from raybert.model.cache import KeyValueCache
from raybert.model.generation import Choice, generate
from raybert.model.initialise import Linear, initialise
from raybert.model.outputs import (
    BertForPreTrainingOutput,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
)
from raybert.model.pretrained import BertPreTrainedModel, check_labels


class BertPredictionHeadTransform(nn.Module):
    """One more dense layer before words are predicted."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = activation(config.hidden_act)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return [B, S, D]."""
        normed_BSD: Tensor = self.LayerNorm(self.activation(self.dense(x_BSD)))
        return normed_BSD


class BertLMPredictionHead(nn.Module):
    """Transform, then a number for every word."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size)
        # One bias under two names, as checkpoints have it.
        self.bias = self.decoder.bias

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return logits [B, S, V]."""
        logits_BSV: Tensor = self.decoder(self.transform(x_BSD))
        return logits_BSV


class BertOnlyMLMHead(nn.Module):
    """The language-model head under the reference's parameter names."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return logits [B, S, V]."""
        logits_BSV: Tensor = self.predictions(x_BSD)
        return logits_BSV


class BertPreTrainingHeads(BertOnlyMLMHead):
    """Both heads of pretraining."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.seq_relationship = Linear(config.hidden_size, 2)


class _LanguageModel(BertPreTrainedModel):
    """What classes with words to predict share."""

    families: ClassVar[tuple[str, ...]] = ("masked-lm",)
    cls: BertOnlyMLMHead

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.cls.predictions.decoder.weight = self.get_input_embeddings().weight

    def _resize_head(self, words: int) -> None:
        head = self.cls.predictions
        old, old_bias = head.decoder.weight, head.bias
        head.decoder = Linear(old.shape[1], words).to(old.device, old.dtype)
        initialise(head.decoder, self.config.initializer_range)
        head.bias = head.decoder.bias
        kept = min(words, old.shape[0])
        with torch.no_grad():
            head.decoder.weight[:kept] = old[:kept]
            head.bias[:kept] = old_bias[:kept]

    def get_output_embeddings(self) -> nn.Linear:
        """The layer that gives every word its number."""
        return self.cls.predictions.decoder


class BertForMaskedLM(_LanguageModel):
    """The word behind each mask: logits [B, S, V]; labels [B, S], -100 at tokens that don't count.

    A call takes the arguments of :class:`raybert.BertModel` up to ``encoder_attention_mask``, then ``labels``, then
    ``output_attentions, output_hidden_states, return_dict``.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyMLMHead(config)
        self._begin()

    def forward(  # noqa: PLR0917  the reference's arguments, in its order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Run the model; the class says what the arguments mean."""
        trunk = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits_BSV = self.cls(trunk.last_hidden_state)
        output = MaskedLMOutput(
            loss=None if labels is None else _word_loss(logits_BSV, labels),
            logits=logits_BSV,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return self._give(output, return_dict)


class BertForPreTraining(_LanguageModel):
    """Masked words and next sentence at once: prediction_logits [B, S, V], seq_relationship_logits [B, 2].

    A call takes the arguments of :class:`raybert.BertModel` up to ``inputs_embeds``, then ``labels`` [B, S],
    ``next_sentence_label`` [B], then ``output_attentions, output_hidden_states, return_dict``. The loss needs both
    kinds of labels.
    """

    families = ("masked-lm", "next-sentence")
    needs_pooler = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls: BertPreTrainingHeads = BertPreTrainingHeads(config)
        self._begin()

    def forward(  # noqa: PLR0917  the reference's arguments, in its order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BertForPreTrainingOutput | tuple[Any, ...]:
        """Run the model; the class says what the arguments mean."""
        trunk = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        words_BSV = self.cls(trunk.last_hidden_state)
        follows_B2 = self.cls.seq_relationship(trunk.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            check_labels(next_sentence_label, "next_sentence_label", [(len(follows_B2),), (len(follows_B2), 1)])
            loss = _word_loss(words_BSV, labels) + F.cross_entropy(follows_B2, next_sentence_label.flatten())
        output = BertForPreTrainingOutput(
            loss=loss,
            prediction_logits=words_BSV,
            seq_relationship_logits=follows_B2,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return self._give(output, return_dict)


class BertLMHeadModel(_LanguageModel):
    """The next word, as a decoder (``config.is_decoder``): logits [B, S, V]; see also :meth:`generate`.

    A call takes the arguments of :class:`raybert.BertModel` up to ``encoder_attention_mask``, then ``labels``
    [B, S] (the inputs themselves: they are shifted inside; -100 counts for nothing), ``past_key_values, use_cache,
    output_attentions, output_hidden_states, return_dict, cache_position``, and ``logits_to_keep``: so many last
    positions, or a tensor of positions, get logits; 0 means all.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyMLMHead(config)
        self._begin()

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
        labels: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Run the model; the class says what the arguments mean."""
        trunk = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            False if labels is not None else use_cache,
            output_attentions,
            output_hidden_states,
            True,
            cache_position,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BSV = self.cls(trunk.last_hidden_state[:, keep])
        output = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else _next_word_loss(logits_BSV, labels),
            logits=logits_BSV,
            past_key_values=trunk.past_key_values,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
            cross_attentions=trunk.cross_attentions,
        )
        return self._give(output, return_dict)

    def generate(  # noqa: PLR0913  one parameter a setting
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Continue texts word by word.

        Args:
            input_ids: [B, S], what each text begins with; pad shorter ones on the left.
            attention_mask: [B, S], 0 at the padding.
            token_type_ids: [B, S]; added words are of the last one's type.
            max_new_tokens: how many words to add at most.
            do_sample: draw words; False takes the likeliest each time.
            temperature: above 1 evens the draws out, below 1 sharpens them.
            top_k: draw among the so many likeliest words; 0: among all.
            top_p: then among the likeliest that together have this probability.
            generator: of the draws; None takes torch's own.
            eos_token_id: a text ends with it, or with one of them; None: the config's.
            pad_token_id: what follows an end; None: the config's.
            use_cache: keep keys and values from word to word; the words are the same without.
            encoder_hidden_states: [B, M, D] that cross-attention attends to.
            encoder_attention_mask: [B, M].

        Returns:
            Ids [B, S + new], the beginnings included; until all texts have ended, or ``max_new_tokens``.

        Raises:
            UsageError: the model is no decoder, has too few positions, or a setting is out of range.
        """
        choice = Choice(do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        return generate(
            self,
            input_ids,
            attention_mask,
            token_type_ids,
            choice,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )


def _word_loss(logits_BSV: Tensor, labels: Tensor) -> Tensor:
    check_labels(labels, "labels", [tuple(logits_BSV.shape[:-1])])
    return F.cross_entropy(logits_BSV.flatten(0, 1), labels.flatten())


def _next_word_loss(logits_BSV: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each position with the label after it, in fp32 whatever the model's dtype."""
    check_labels(labels, "labels (with logits at every position)", [tuple(logits_BSV.shape[:-1])])
    if labels.shape[1] < 2:
        raise UsageError("labels: one position has no next word; give two or more")
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
