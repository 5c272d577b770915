"""Heads on every token over packed hidden states: labels of tokens, ends of answers, words."""

# T tokens, K labels, V words, D width, M masks, N sequences, B those of one piece, S their length

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

    def best(self, hidden_MD: Tensor, most: int, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """The most probable words of each token, best first: ids and probabilities [M, most].

        Args:
            hidden_MD: hidden states.
            most: how many words.
            chosen: ids of the only words that are looked at; None: all.
        """
        ids, scores = [], []
        for states in torch.split(hidden_MD.float(), _WORDS_AT_ONCE):
            scores_MV: Tensor = self.cls(states).softmax(-1)
            found = (scores_MV if chosen is None else scores_MV[:, chosen]).topk(most, dim=-1)
            ids.append(found.indices if chosen is None else chosen[found.indices])
            scores.append(found.values)
        return torch.cat(ids), torch.cat(scores)

    def words(self, hidden_TD: Tensor, layout: Layout, *, strategy: str, log_twice: bool) -> tuple[Tensor, Tensor]:
        """The words that each sequence speaks of, by max or sum over its tokens of log(1 + relu(logit)).

        Formal et al. 2021, SPLADE and SPLADE v2; with ``log_twice`` log(1 + that), Shen et al. 2025.

        Returns:
            (id, weight) of the words with a weight above 0, [R, 2], ids ascending in each sequence; and how many
            words each sequence has, [N]. An id is exact as a float32: it is far below 2^24.
        """
        pairs, counts = [], []
        for group in layout.groups:
            x_BSD = hidden_TD[group.tokens].view(group.count, group.length, -1).float()
            for states_BSD in torch.split(x_BSD, max(1, _WORDS_AT_ONCE // group.length)):
                said_BSV = self.cls(states_BSD).relu_().log1p_()
                if log_twice:
                    said_BSV.log1p_()
                weights_BV = said_BSV.amax(1) if strategy == "max" else said_BSV.sum(1)
                above_BV = weights_BV > 0
                ids = above_BV.nonzero()[:, 1]
                pairs.append(torch.stack([ids.float(), weights_BV[above_BV]], dim=1))
                counts.append(above_BV.sum(1))
        return torch.cat(pairs), torch.cat(counts)


def load_word_head(checkpoint: Checkpoint) -> WordHead:
    """Load the language-model head; its output matrix may be the word embeddings, so all of the model is read.

    Raises:
        CheckpointError: the checkpoint has no such head.
    """
    model, _ = BertForMaskedLM.from_checkpoint(checkpoint)
    return WordHead(model.cls)
