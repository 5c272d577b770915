"""Heads on every token over packed hidden states: labels of tokens, ends of answers, words."""

# T tokens, K labels, V words, D width, M masks, N sequences

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.folder import Checkpoint
from raybert.model.attention import Layout
from raybert.model.initialise import Linear
from raybert.model.language import BertForMaskedLM, BertOnlyMLMHead

# Logits of so many tokens are in memory at once: 250 MB of a BERT's 30,522 words.
_WORDS_AT_ONCE = 2048


class TokenClassifierHead(nn.Module):
    """Probabilities of each token's labels, in fp32 whatever the trunk's dtype."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Return [T, K]."""
        scores_TK: Tensor = self.classifier(hidden_TD.float()).softmax(-1)
        return scores_TK


class AnswerHead(nn.Module):
    """How well an answer begins and ends at each token: logits, in fp32 whatever the trunk's dtype."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.qa_outputs = Linear(config.hidden_size, 2)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """Return [T, 2]: start, end."""
        logits: Tensor = self.qa_outputs(hidden_TD.float())
        return logits


class WordHead(nn.Module):
    """The language-model head over chosen tokens, in fp32 whatever the trunk's dtype."""

    def __init__(self, cls: BertOnlyMLMHead) -> None:
        super().__init__()
        self.cls = cls

    def probabilities(self, hidden_MD: Tensor) -> Tensor:
        """Of every word: [M, V]."""
        logits_MV: Tensor = self.cls(hidden_MD.float())
        return logits_MV.softmax(-1)

    def word_weights(self, hidden_TD: Tensor, layout: Layout, *, strategy: str, log_twice: bool) -> Tensor:
        """How strongly each sequence speaks of each word: max or sum over its tokens of log(1 + relu(logit)), [N, V].

        Formal et al. 2021, SPLADE and SPLADE v2; with ``log_twice`` log(1 + that), Shen et al. 2025.
        """
        rows = []
        for states_SD in torch.split(hidden_TD.float(), layout.lengths.tolist()):
            pieces = [self._said(piece, log_twice=log_twice) for piece in torch.split(states_SD, _WORDS_AT_ONCE)]
            if strategy == "max":
                rows.append(torch.stack([piece.amax(0) for piece in pieces]).amax(0))
            else:
                rows.append(torch.stack([piece.sum(0) for piece in pieces]).sum(0))
        return torch.stack(rows)

    def _said(self, states_SD: Tensor, *, log_twice: bool) -> Tensor:
        logits_SV: Tensor = self.cls(states_SD)
        said_SV = logits_SV.relu_().log1p_()
        return said_SV.log1p_() if log_twice else said_SV


def load_word_head(checkpoint: Checkpoint) -> WordHead:
    """Load the language-model head; its output matrix may be the word embeddings, so all of the model is read.

    Raises:
        CheckpointError: the checkpoint has no such head.
    """
    model, _ = BertForMaskedLM.from_checkpoint(checkpoint)
    return WordHead(model.cls)
