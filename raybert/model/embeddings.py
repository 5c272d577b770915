"""The sum of word, position and token-type embeddings, normalised: what enters the first layer."""

# B rows, S positions, D width

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybert.checkpoint.config import BertConfig
from raybert.model.initialise import Embedding


class BertEmbeddings(nn.Module):
    """Embeddings of BERT; positions are added unless the config makes them relative."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        # The padding row gets no gradient, as in the reference.
        self.word_embeddings = Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        # Part of every checkpoint, even where relative positions leave it unused.
        self.position_embeddings = Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.absolute = config.position_embedding_type == "absolute"

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        *,
        past: int = 0,
    ) -> Tensor:
        """Return [B, S, D].

        Args:
            input_ids: [B, S], or None with ``inputs_embeds``.
            token_type_ids: [B, S]; None means all of type 0.
            position_ids: [B, S] or [1, S]; None counts from ``past``.
            inputs_embeds: [B, S, D] in place of the word embeddings.
            past: positions that a cache holds before these.
        """
        if inputs_embeds is None:
            x_BSD: Tensor = self.word_embeddings(input_ids)
        else:
            x_BSD = inputs_embeds.to(self.word_embeddings.weight.dtype)
        if token_type_ids is None:
            x_BSD = x_BSD + self.token_type_embeddings.weight[0]
        else:
            x_BSD = x_BSD + self.token_type_embeddings(token_type_ids)
        if self.absolute:
            if position_ids is None:
                position_ids = torch.arange(past, past + x_BSD.shape[1], device=x_BSD.device)[None]
            x_BSD = x_BSD + self.position_embeddings(position_ids)
        embedded_BSD: Tensor = self.dropout(self.LayerNorm(x_BSD))
        return embedded_BSD
