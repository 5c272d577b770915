"""BERT with a classifier: of texts, of choices, of tokens, and of an answer's first and last token.

Devlin et al. 2018, section 4 and figure 4.
"""

# B rows, C choices, S positions, D width, K labels

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.initialise import Linear
from raybert.model.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    LogitsOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from raybert.model.pretrained import BertPreTrainedModel, check_labels, classifier_dropout


class _Labelling(BertPreTrainedModel, ABC):
    """A head with one kind of logits and one kind of labels.

    A call takes the arguments of :class:`raybert.BertModel` up to ``inputs_embeds``, then ``labels``, then
    ``output_attentions, output_hidden_states, return_dict``.
    """

    output: ClassVar[type[LogitsOutput]]

    def forward(  # noqa: PLR0917  the reference's arguments, in its order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput | tuple[Any, ...]:
        """Run the model; the class says what comes out."""
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
        logits = self._logits(trunk)
        output = self.output(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return self._give(output, return_dict)

    @abstractmethod
    def _logits(self, trunk: BaseModelOutputWithPoolingAndCrossAttentions) -> Tensor:
        """What the head makes of the trunk's output."""

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the last axis; -100 is no label."""
        check_labels(labels, "labels", [tuple(logits.shape[:-1])])
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long())


class BertForSequenceClassification(_Labelling):
    """A linear layer on the pooled first token: logits [B, K].

    The loss follows ``config.problem_type``; where that is None the first labels decide it for good, as in the
    reference: one label regression, whole numbers [B] single-label, other numbers [B, K] multi-label
    classification.
    """

    families = ("classifier",)
    needs_pooler = True
    output = SequenceClassifierOutput

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.dropout = classifier_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self._begin()

    def _logits(self, trunk: BaseModelOutputWithPoolingAndCrossAttentions) -> Tensor:
        logits_BK: Tensor = self.classifier(self.dropout(trunk.pooler_output))
        return logits_BK

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        rows, classes = logits.shape
        if self.config.problem_type is None:
            self.config.problem_type = _problem_type(classes, labels)
        if self.config.problem_type == "single_label_classification":
            check_labels(labels, "labels", [(rows,), (rows, 1)])
            return F.cross_entropy(logits, labels.flatten())
        check_labels(labels, "labels", [(rows,), (rows, 1)] if classes == 1 else [(rows, classes)])
        wanted_BK = labels.view(rows, classes).to(logits.dtype)
        if self.config.problem_type == "regression":
            return F.mse_loss(logits, wanted_BK)
        return F.binary_cross_entropy_with_logits(logits, wanted_BK)


def _problem_type(classes: int, labels: Tensor) -> str:
    if classes == 1:
        return "regression"
    whole = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if whole else "multi_label_classification"


class BertForNextSentencePrediction(_Labelling):
    """Whether the second text follows the first: logits [B, 2], class 0 says yes."""

    families = ("next-sentence",)
    needs_pooler = True
    output = NextSentencePredictorOutput

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.cls = BertOnlyNSPHead(config)
        self._begin()

    def _logits(self, trunk: BaseModelOutputWithPoolingAndCrossAttentions) -> Tensor:
        assert trunk.pooler_output is not None
        logits_B2: Tensor = self.cls(trunk.pooler_output)
        return logits_B2

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        check_labels(labels, "labels", [(len(logits),), (len(logits), 1)])
        return F.cross_entropy(logits, labels.flatten())


class BertOnlyNSPHead(nn.Module):
    """The next-sentence classifier under the reference's parameter name."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.seq_relationship = Linear(config.hidden_size, 2)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Return logits [B, 2]."""
        logits_B2: Tensor = self.seq_relationship(pooled_BD)
        return logits_B2


class BertForTokenClassification(_Labelling):
    """A linear layer on every token: logits [B, S, K]; labels [B, S], -100 at tokens that don't count."""

    families = ("classifier",)
    output = TokenClassifierOutput

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.dropout = classifier_dropout(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self._begin()

    def _logits(self, trunk: BaseModelOutputWithPoolingAndCrossAttentions) -> Tensor:
        logits_BSK: Tensor = self.classifier(self.dropout(trunk.last_hidden_state))
        return logits_BSK


class BertForMultipleChoice(_Labelling):
    """Which of C texts fits: inputs [B, C, S], logits [B, C], labels [B].

    Every choice is read alone, beside its prompt; a linear layer on its pooled first token gives one number.
    """

    families = ("classifier",)
    needs_pooler = True
    output = MultipleChoiceModelOutput

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.dropout = classifier_dropout(config)
        self.classifier = Linear(config.hidden_size, 1)
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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput | tuple[Any, ...]:
        """Run the model; ids, mask, types and positions are [B, C, S], ``inputs_embeds`` [B, C, S, D]."""
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or given.dim() != (3 if input_ids is not None else 4):
            raise UsageError("input_ids: expected (rows, choices, positions), or inputs_embeds with the width behind")

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.flatten(0, 1)

        output = super().forward(
            rows(input_ids),
            rows(attention_mask),
            rows(token_type_ids),
            rows(position_ids),
            head_mask,
            rows(inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        assert isinstance(output, MultipleChoiceModelOutput)
        assert output.logits is not None
        output.logits = output.logits.view(given.shape[:2])
        if labels is not None:
            output.loss = self._loss(output.logits, labels)
        return self._give(output, return_dict)

    def _logits(self, trunk: BaseModelOutputWithPoolingAndCrossAttentions) -> Tensor:
        logits_R1: Tensor = self.classifier(self.dropout(trunk.pooler_output))
        return logits_R1


class BertForQuestionAnswering(BertPreTrainedModel):
    """Where in a text the answer lies: start_logits and end_logits [B, S].

    A call takes the arguments of :class:`raybert.BertModel` up to ``inputs_embeds``, then ``start_positions,
    end_positions`` [B] (a place behind the last token is no label), then ``output_attentions,
    output_hidden_states, return_dict``.
    """

    families = ("qa",)

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.qa_outputs = Linear(config.hidden_size, 2)
        self._begin()

    def forward(  # noqa: PLR0917  the reference's arguments, in its order
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
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
        start_BS, end_BS = self.qa_outputs(trunk.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            starts = _place_loss(start_BS, start_positions, "start_positions")
            loss = (starts + _place_loss(end_BS, end_positions, "end_positions")) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_BS.contiguous(),
            end_logits=end_BS.contiguous(),
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return self._give(output, return_dict)


def _place_loss(logits_BS: Tensor, places: Tensor, name: str) -> Tensor:
    rows, positions = logits_BS.shape
    check_labels(places, name, [(rows,), (rows, 1)])
    return F.cross_entropy(logits_BS, places.flatten().clamp(0, positions), ignore_index=positions)
