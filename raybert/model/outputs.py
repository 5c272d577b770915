"""What a forward pass returns: fields by name, by position, or as a tuple."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, overload

from torch import Tensor

from raybert.model.cache import KeyValueCache


class ModelOutput(Mapping[str, Any]):
    """Base of all outputs: a read-only mapping of the fields that are not None, in field order.

    ``out.logits``, ``out["logits"]`` and ``out[0]`` all work, as does ``out[:2]``. Iterating gives names,
    as for any mapping; :meth:`to_tuple` gives the values, for unpacking.
    """

    def _present(self) -> dict[str, Any]:
        # Not dataclasses.asdict, which would copy every tensor.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in field order."""
        return tuple(self._present().values())

    @overload
    def __getitem__(self, key: str | int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())


@dataclass(eq=False)
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Output of :class:`raybert.BertModel`. B rows, S positions, D width, H heads, K keys.

    Attributes:
        last_hidden_state: [B, S, D], after the last layer.
        pooler_output: [B, D], the first position through the pooler; None without one.
        hidden_states: embeddings and every layer's output, [B, S, D] each, when asked for.
        past_key_values: the cache of a decoder that was asked to keep one.
        attentions: the probabilities of each layer's self-attention, [B, H, S, K], when asked for.
        cross_attentions: likewise of the attention to ``encoder_hidden_states``.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: KeyValueCache | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class BertForPreTrainingOutput(ModelOutput):
    """Output of :class:`raybert.BertForPreTraining`. B rows, S positions, V words.

    Attributes:
        loss: masked-language loss plus next-sentence loss, when both kinds of labels were given.
        prediction_logits: [B, S, V], before the softmax.
        seq_relationship_logits: [B, 2]; class 0: the second text follows the first, class 1: it doesn't.
        hidden_states: as `BaseModelOutputWithPoolingAndCrossAttentions`.
        attentions: likewise.
    """

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class LogitsOutput(ModelOutput):
    """Output of a head with one kind of logits. B rows, S positions.

    Attributes:
        loss: a number, when labels were given.
        logits: before softmax or sigmoid; shaped as the class that gives them says.
        hidden_states: as `BaseModelOutputWithPoolingAndCrossAttentions`.
        attentions: likewise.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MaskedLMOutput(LogitsOutput):
    """Output of :class:`raybert.BertForMaskedLM`: logits [B, S, V] over the words."""


class NextSentencePredictorOutput(LogitsOutput):
    """Output of :class:`raybert.BertForNextSentencePrediction`: logits [B, 2]."""


class SequenceClassifierOutput(LogitsOutput):
    """Output of :class:`raybert.BertForSequenceClassification`: logits [B, labels]."""


class MultipleChoiceModelOutput(LogitsOutput):
    """Output of :class:`raybert.BertForMultipleChoice`: logits [B, choices]."""


class TokenClassifierOutput(LogitsOutput):
    """Output of :class:`raybert.BertForTokenClassification`: logits [B, S, labels]."""


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """Output of :class:`raybert.BertForQuestionAnswering`. B rows, S positions.

    Attributes:
        loss: mean of the losses of start and end, when both were given.
        start_logits: [B, S], that the answer begins at this token.
        end_logits: [B, S], that this token is the answer's last.
        hidden_states: as `BaseModelOutputWithPoolingAndCrossAttentions`.
        attentions: likewise.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Output of :class:`raybert.BertLMHeadModel`. B rows, S positions, V words.

    Attributes:
        loss: next-word loss, when labels were given.
        logits: [B, S, V], at the last positions only where ``logits_to_keep`` said so.
        past_key_values: the cache of a decoder that was asked to keep one.
        hidden_states: as `BaseModelOutputWithPoolingAndCrossAttentions`.
        attentions: likewise.
        cross_attentions: likewise.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
