"""The layers of BERT, padded, as the reference computes them: attention, feed-forward, encoder, pooler.

Module attributes spell the reference's parameter names (``layer.0.attention.self.query.weight``). The
arithmetic follows Devlin et al. 2018 (https://arxiv.org/abs/1810.04805); relative positions follow Shaw et
al. 2018 (``relative_key``) and method 4 of Huang et al. 2020 (``relative_key_query``).
"""

# B rows, S positions (queries), K keys, M positions of the encoder attended to, D width, H heads,
# E width of a head, F feed-forward width, L layers

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybert.checkpoint.config import BertConfig
from raybert.model.activations import activation
from raybert.model.cache import KeysValues, KeyValueCache
from raybert.model.initialise import Embedding, Linear


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every layer of one forward shares.

    Attributes:
        bias: added to self-attention's scores, broadcastable to [B, H, S, K]; see `masks`.
        memory_BMD: hidden states of an encoder that cross-attention attends to.
        memory_bias: added to cross-attention's scores, broadcastable to [B, H, S, M].
        cache: keys and values of earlier positions, appended to in place.
        head_mask_LH: factor of every head's probabilities.
        want_attentions: whether layers return their probabilities.
        blind_queries: whether some query sees no key, and so sees all evenly. torch's fused attention can't do
            these: it keeps lowest + log K for the gradient, where the log is lost to rounding, and its CUDA
            kernels scale the lowest number to minus infinity.
    """

    bias: Tensor | None = None
    memory_BMD: Tensor | None = None
    memory_bias: Tensor | None = None
    cache: KeyValueCache | None = None
    head_mask_LH: Tensor | None = None
    want_attentions: bool = False
    blind_queries: bool = False

    @property
    def needs_probabilities(self) -> bool:
        """Whether attention must have its probabilities in memory rather than be fused."""
        return self.want_attentions or self.blind_queries or self.head_mask_LH is not None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What the layers of one forward made; tuples are empty where nothing was asked for."""

    last_BSD: Tensor
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]
    cross_attentions: tuple[Tensor, ...]


class BertSelfAttention(nn.Module):
    """Multi-head attention of the positions to one another."""

    def __init__(self, config: BertConfig, *, layer: int, positions: str) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer = layer
        self.heads = config.num_attention_heads
        self.head_width = width // self.heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.positions = positions
        self.max_positions = config.max_position_embeddings
        if positions != "absolute":
            self.distance_embedding = Embedding(2 * self.max_positions - 1, self.head_width)

    def forward(self, x_BSD: Tensor, around: Surroundings) -> tuple[Tensor, Tensor | None]:
        """Return the context [B, S, D] and, if asked for, the probabilities [B, H, S, K]."""
        q_BHSE = self._split(self.query(x_BSD))
        k_BHKE, v_BHKE = self._keys_values(x_BSD, around)
        bias = self._bias(around)
        if self.positions != "absolute" or around.needs_probabilities:
            context_BHSE, probs_BHSK = self._attend(q_BHSE, k_BHKE, v_BHKE, bias, around)
        else:
            dropout = self.dropout.p if self.training else 0.0
            context_BHSE = F.scaled_dot_product_attention(q_BHSE, k_BHKE, v_BHKE, bias, dropout)
            probs_BHSK = None
        return context_BHSE.transpose(1, 2).flatten(2), probs_BHSK

    def _split(self, x_BSD: Tensor) -> Tensor:
        rows, positions, _ = x_BSD.shape
        return x_BSD.view(rows, positions, self.heads, self.head_width).transpose(1, 2)

    def _bias(self, around: Surroundings) -> Tensor | None:
        return around.bias

    def _keys_values(self, x_BSD: Tensor, around: Surroundings) -> KeysValues:
        k_BHSE, v_BHSE = self._split(self.key(x_BSD)), self._split(self.value(x_BSD))
        return around.cache.append(self.layer, k_BHSE, v_BHSE) if around.cache is not None else (k_BHSE, v_BHSE)

    def _attend(
        self, q_BHSE: Tensor, k_BHKE: Tensor, v_BHKE: Tensor, bias: Tensor | None, around: Surroundings
    ) -> tuple[Tensor, Tensor | None]:
        """Attention with its probabilities in memory, for what the fused operator has no place for."""
        scores_BHSK = q_BHSE @ k_BHKE.transpose(-1, -2)
        if self.positions != "absolute":
            scores_BHSK = scores_BHSK + self._distance_scores(q_BHSE, k_BHKE)
        scores_BHSK = scores_BHSK / math.sqrt(self.head_width)
        if bias is not None:
            # Halves can overflow here; a row of nothing but -inf would become NaN.
            scores_BHSK = (scores_BHSK + bias).clamp(min=torch.finfo(scores_BHSK.dtype).min)
        probs_BHSK = self.dropout(scores_BHSK.softmax(dim=-1))
        if around.head_mask_LH is not None:
            probs_BHSK = probs_BHSK * around.head_mask_LH[self.layer][:, None, None]
        return probs_BHSK @ v_BHKE, probs_BHSK if around.want_attentions else None

    def _distance_scores(self, q_BHSE: Tensor, k_BHKE: Tensor) -> Tensor:
        """Scores of how far query and key lie apart; the queries are the last S of the K positions."""
        keys = k_BHKE.shape[2]
        position_K = torch.arange(keys, device=k_BHKE.device)
        distance_SK = position_K[keys - q_BHSE.shape[2] :, None] - position_K[None, :]
        embedded_SKE = self.distance_embedding(distance_SK + self.max_positions - 1)
        scores_BHSK = torch.einsum("bhse,ske->bhsk", q_BHSE, embedded_SKE)
        if self.positions == "relative_key_query":
            scores_BHSK = scores_BHSK + torch.einsum("bhke,ske->bhsk", k_BHKE, embedded_SKE)
        return scores_BHSK


class BertCrossAttention(BertSelfAttention):
    """Multi-head attention of a decoder's positions to an encoder's."""

    def _bias(self, around: Surroundings) -> Tensor | None:
        return around.memory_bias

    def _keys_values(self, x_BSD: Tensor, around: Surroundings) -> KeysValues:
        kept = around.cache.memory(self.layer) if around.cache is not None else None
        if kept is not None:
            return kept
        assert around.memory_BMD is not None
        memory_BMD = around.memory_BMD.to(x_BSD.dtype)
        k_BHME, v_BHME = self._split(self.key(memory_BMD)), self._split(self.value(memory_BMD))
        return around.cache.remember(self.layer, k_BHME, v_BHME) if around.cache is not None else (k_BHME, v_BHME)


class AddAndNorm(nn.Module):
    """Project to the width, drop out, add the residual, normalise."""

    def __init__(self, config: BertConfig, *, inputs: int) -> None:
        super().__init__()
        self.dense = Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_BSF: Tensor, residual_BSD: Tensor) -> Tensor:
        """Return [B, S, D]."""
        normed_BSD: Tensor = self.LayerNorm(self.dropout(self.dense(x_BSF)) + residual_BSD)
        return normed_BSD


class BertAttention(nn.Module):
    """Attention with its output projection: the first half of a layer, or the middle of a decoder's."""

    def __init__(self, config: BertConfig, *, layer: int, cross: bool = False) -> None:
        super().__init__()
        # As in the reference, relative positions are those of self-attention only.
        self.self: BertSelfAttention = (
            BertCrossAttention(config, layer=layer, positions="absolute")
            if cross
            else BertSelfAttention(config, layer=layer, positions=config.position_embedding_type)
        )
        self.output = AddAndNorm(config, inputs=config.hidden_size)

    def forward(self, x_BSD: Tensor, around: Surroundings) -> tuple[Tensor, Tensor | None]:
        """Return [B, S, D] and the probabilities if asked for."""
        context_BSD, probs_BHSK = self.self(x_BSD, around)
        return self.output(context_BSD, x_BSD), probs_BHSK


class BertIntermediate(nn.Module):
    """The widening half of the feed-forward network."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return [B, S, F]."""
        return self.activation(self.dense(x_BSD))


class BertLayer(nn.Module):
    """Self-attention, in a decoder with an encoder behind it cross-attention, and feed-forward."""

    def __init__(self, config: BertConfig, *, layer: int) -> None:
        super().__init__()
        self.attention = BertAttention(config, layer=layer)
        if config.add_cross_attention:
            self.crossattention = BertAttention(config, layer=layer, cross=True)
        self.intermediate = BertIntermediate(config)
        self.output = AddAndNorm(config, inputs=config.intermediate_size)

    def forward(self, x_BSD: Tensor, around: Surroundings) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return [B, S, D] and, if asked for, the probabilities of self- and cross-attention."""
        x_BSD, probs_BHSK = self.attention(x_BSD, around)
        cross_BHSM = None
        if around.memory_BMD is not None:
            x_BSD, cross_BHSM = self.crossattention(x_BSD, around)
        return self.output(self.intermediate(x_BSD), x_BSD), probs_BHSK, cross_BHSM


class BertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        layers = nn.ModuleList(BertLayer(config, layer=i) for i in range(config.num_hidden_layers))
        # A ModuleList doesn't say what it holds.
        self.layer = cast("Sequence[BertLayer]", layers)

    def forward(self, x_BSD: Tensor, around: Surroundings, *, want_hidden_states: bool = False) -> Encoded:
        """Run all layers over the embeddings [B, S, D]."""
        states = [x_BSD] if want_hidden_states else []
        attentions, cross_attentions = [], []
        for layer in self.layer:
            x_BSD, probs_BHSK, cross_BHSM = layer(x_BSD, around)
            if want_hidden_states:
                states.append(x_BSD)
            if probs_BHSK is not None:
                attentions.append(probs_BHSK)
            if cross_BHSM is not None:
                cross_attentions.append(cross_BHSM)
        return Encoded(
            last_BSD=x_BSD,
            hidden_states=tuple(states),
            attentions=tuple(attentions),
            cross_attentions=tuple(cross_attentions),
        )


class BertPooler(nn.Module):
    """The first position through a dense layer and tanh, as trained by next-sentence prediction."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return [B, D]."""
        return torch.tanh(self.dense(x_BSD[:, 0]))
