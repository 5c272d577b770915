"""The packed form of BERT: frozen, inference only, no padding from embedding to last layer.

    pack(BertModel) -> PackedEncoder:  ids [T], lengths [N]  ->  hidden_TD

The arithmetic is that of the module form (Devlin et al. 2018); the shapes differ: the tokens of all sequences
lie in one flat row, linears see [T, D], attention sees each sequence by the `Layout`.
"""

# T tokens of a batch, N sequences, D width, F feed-forward width, H heads

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.architecture import BertModel
from raybert.model.attention import Attention, Groups, Layout, Varlen, layout_of
from raybert.model.blocks import Blocks
from raybert.model.encoder import BertLayer
from raybert.model.kernels import Kernels, Linear, make_linear


@dataclass(frozen=True)
class TokenBatch:
    """Sequences laid end to end, ready for one forward.

    Attributes:
        ids_T: int64 word ids, on the encoder's device.
        type_ids_T: int64 token types, or None where all are 0.
        layout: where each sequence lies.
    """

    ids_T: Tensor
    type_ids_T: Tensor | None
    layout: Layout

    @classmethod
    def of(cls, ids: np.ndarray, lengths: np.ndarray, type_ids: np.ndarray | None, device: torch.device) -> TokenBatch:
        """Build from flat numpy ``ids`` [T] and ``lengths`` [N]."""

        def to_device(values: np.ndarray) -> Tensor:
            tensor = torch.from_numpy(values.astype(np.int64))
            if device.type == "cuda":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor

        types = None if type_ids is None else to_device(type_ids)
        return cls(to_device(ids), types, layout_of(lengths, device))

    def firsts(self) -> TokenBatch:
        """The batch of each sequence's first token: what an encoder's first tokens are the hidden states of."""
        firsts = self.layout.firsts
        types = None if self.type_ids_T is None else self.type_ids_T[firsts]
        return TokenBatch(self.ids_T[firsts], types, layout_of(np.ones(len(firsts), np.int64), firsts.device))

    def select(self, tokens: Tensor, lengths: np.ndarray) -> TokenBatch:
        """The batch of some sequences: their tokens' places in this one, int64 on its device, and their lengths."""
        types = None if self.type_ids_T is None else self.type_ids_T[tokens]
        return TokenBatch(self.ids_T[tokens], types, layout_of(lengths, tokens.device))


class Encoder(Protocol):
    """What the engine runs: a packed encoder, or the module form where packing is impossible."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, batch: TokenBatch, *, first_only: bool = False) -> Tensor:
        """Hidden states of the last layer: [T, D]; of first tokens alone, which is less work, [N, D]."""
        ...


_ATTENTIONS: Mapping[str, Callable[[int], Attention[Any]]] = {"groups": Groups, "blocks": Blocks, "varlen": Varlen}


class _PackedLayer:
    """One layer: attention and feed-forward, each with its residual and LayerNorm."""

    def __init__(
        self, layer: BertLayer, config: BertConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device
    ) -> None:
        attention = layer.attention.self

        def linear(*modules: nn.Linear) -> Linear:
            return make_linear(kernels.linear, *modules, dtype=dtype, device=device)

        self.qkv = linear(attention.query, attention.key, attention.value)
        self.attention_output = linear(layer.attention.output.dense)
        self.widen = linear(layer.intermediate.dense)
        self.narrow = linear(layer.output.dense)
        self.norm_attention = _Norm(layer.attention.output.LayerNorm, dtype, device)
        self.norm_output = _Norm(layer.output.LayerNorm, dtype, device)
        self.activation = config.hidden_act
        self.attention = _ATTENTIONS[kernels.attention](config.num_attention_heads)

    def __call__(self, x_TD: Tensor, plan: Any) -> Tensor:
        context_TD = self.attention.attend(self.qkv(x_TD), plan)
        return self._behind(context_TD, x_TD)

    def _behind(self, context_TD: Tensor, x_TD: Tensor) -> Tensor:
        """All that each token goes through by itself."""
        x_TD = self.norm_attention(self.attention_output.added(context_TD, x_TD))
        wide_TF = self.widen.activated(x_TD, self.activation)
        return self.norm_output(self.narrow.added(wide_TF, x_TD))


class _LastLayer(_PackedLayer):
    """The last layer, of which only each sequence's first token may be wanted: [T, D] -> [N, D].

    Keys and values then come from all tokens, everything else from the first ones: of a layer's 12 D^2 products a
    token 2 D^2 remain.
    """

    def __init__(
        self, layer: BertLayer, config: BertConfig, kernels: Kernels, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(layer, config, kernels, dtype, device)
        attention = layer.attention.self
        self.query = make_linear(kernels.linear, attention.query, dtype=dtype, device=device)
        self.key_value = make_linear(kernels.linear, attention.key, attention.value, dtype=dtype, device=device)

    def firsts(self, x_TD: Tensor, layout: Layout, plan: Any) -> Tensor:
        """The first tokens alone."""
        first_ND = x_TD[layout.firsts]
        context_ND = self.attention.attend_first(self.query(first_ND), self.key_value(x_TD), plan)
        return self._behind(context_ND, first_ND)


class _Norm:
    """LayerNorm with frozen weights."""

    def __init__(self, module: nn.LayerNorm, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = module.weight.detach().to(device, dtype, copy=True)
        self.bias = module.bias.detach().to(device, dtype, copy=True)
        self.shape, self.eps = tuple(module.normalized_shape), module.eps

    def __call__(self, x_TD: Tensor) -> Tensor:
        return F.layer_norm(x_TD, self.shape, self.weight, self.bias, self.eps)


class PackedEncoder:
    """BERT's embeddings and layers over packed tokens. Made by `pack`, never trained."""

    def __init__(self, module: BertModel, *, dtype: torch.dtype, device: torch.device, kernels: Kernels) -> None:
        embeddings = module.embeddings
        self.device, self.dtype, self.kernels = device, dtype, kernels
        # A copy: loaded parameters are maps of the checkpoint's file, which may be written anew.
        self._words = embeddings.word_embeddings.weight.detach().to(device, dtype, copy=True)
        # Positions and token types are added in fp32 before they are rounded once.
        positions = embeddings.position_embeddings.weight.detach().float()
        types = embeddings.token_type_embeddings.weight.detach().float()
        self._places = [(positions + of_type).to(device, dtype) for of_type in types[:2]]
        self._norm = _Norm(embeddings.LayerNorm, dtype, device)
        *layers, last = module.encoder.layer
        parts = (module.config, kernels, dtype, device)
        self._layers = [_PackedLayer(layer, *parts) for layer in layers]
        self._last = _LastLayer(last, *parts)

    def __call__(self, batch: TokenBatch, *, first_only: bool = False) -> Tensor:
        """Hidden states of the last layer: [T, D], or [N, D] of each sequence's first token."""
        with torch.inference_mode():
            x_TD = F.embedding(batch.ids_T, self._words).add_(self._place(batch))
            x_TD = self._norm(x_TD)
            tokens = x_TD.shape[0]
            if self.kernels.linear == "onednn":
                x_TD = F.pad(x_TD, (0, 0, 0, _idle_rows(tokens)))
            plan = self._last.attention.plan(batch.layout, self.dtype)
            for layer in self._layers:
                x_TD = layer(x_TD, plan)
            if first_only:
                return self._last.firsts(x_TD, batch.layout, plan)
            return self._last(x_TD, plan)[:tokens]

    def _place(self, batch: TokenBatch) -> Tensor:
        positions_T = batch.layout.positions_T
        first_TD = F.embedding(positions_T, self._places[0])
        if batch.type_ids_T is None or len(self._places) == 1:
            return first_TD
        second_TD = F.embedding(positions_T, self._places[1])
        return torch.where(batch.type_ids_T[:, None] == 0, first_TD, second_TD)


def _idle_rows(tokens: int) -> int:
    """Rows to add for a number of rows that comes up again: oneDNN compiles its kernels anew for every number.

    Multiples of 64, and of less below 1,024 tokens, so that never more than a sixteenth is idle. With this, the
    powers of two in attention and its softmax by whole vectors, bf16 went from 3.43 to 3.56 times
    sentence-transformers in ``jobs/bench.py engine``, whose texts are new at every turn (2 cores of Zen 4).
    """
    step = min(64, max(1, (1 << tokens.bit_length() - 1) // 16))
    return -tokens % step


class ModuleEncoder:
    """The module form behind the same call, for models that `pack` refuses; groups need no padding."""

    def __init__(self, module: BertModel, *, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self.dtype = device, dtype
        self._module = module.to(device, dtype).eval()

    def __call__(self, batch: TokenBatch, *, first_only: bool = False) -> Tensor:
        """Hidden states of the last layer: [T, D], or [N, D] of each sequence's first token."""
        kept = 1 if first_only else None
        pieces = []
        with torch.inference_mode():
            for group in batch.layout.groups:
                shape = (group.count, group.length)
                types_T = batch.type_ids_T
                output = self._module(
                    input_ids=batch.ids_T[group.tokens].view(shape),
                    token_type_ids=None if types_T is None else types_T[group.tokens].view(shape),
                )
                pieces.append(output.last_hidden_state[:, :kept].flatten(0, 1))
            return torch.cat(pieces)


def why_not_packed(config: BertConfig) -> str | None:
    """The property of a model that the packed form can't compute, or None."""
    if config.is_decoder or config.add_cross_attention:
        return "a decoder attends to earlier positions only"
    if config.position_embedding_type != "absolute":
        return f"position_embedding_type {config.position_embedding_type}"
    if config.type_vocab_size > 2:
        return f"{config.type_vocab_size} token types"
    return None


def pack(module: BertModel, *, dtype: torch.dtype, device: torch.device, kernels: Kernels) -> PackedEncoder:
    """Freeze a module into its packed form.

    Args:
        module: the trunk; its parameters are copied, later changes to them are not seen.
        dtype: of the arithmetic; weights are rounded to it.
        device: where it runs.
        kernels: from `choose_kernels`, or imposed by a run.

    Raises:
        UsageError: the packed form can't compute this model (decoder, relative positions).
    """
    reason = why_not_packed(module.config)
    if reason is not None:
        raise UsageError(f"pack: {reason} has no packed form; run the module form")
    return PackedEncoder(module, dtype=dtype, device=device, kernels=kernels)


def make_encoder(module: BertModel, *, dtype: torch.dtype, device: torch.device, kernels: Kernels) -> Encoder:
    """`pack` where it is possible, else the module form."""
    if why_not_packed(module.config) is None:
        return pack(module, dtype=dtype, device=device, kernels=kernels)
    return ModuleEncoder(module, dtype=dtype, device=device)
