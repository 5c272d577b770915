"""Keys and values that a decoder keeps from one step to the next."""

# B rows, H heads, K keys, E width of a head

from __future__ import annotations

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class KeyValueCache:
    """Keys and values of the positions that a decoder has seen, and of the encoder it attends to.

    A forward with ``past_key_values=cache`` appends to it in place, as in the reference, and takes only the
    positions that are new. Every entry is a pair of [B, H, K, E].
    """

    def __init__(self) -> None:
        self._seen: dict[int, KeysValues] = {}
        self._memory: dict[int, KeysValues] = {}

    def get_seq_length(self) -> int:
        """How many positions have been seen."""
        return self._seen[0][0].shape[2] if self._seen else 0

    @property
    def rows(self) -> int:
        """How many rows were seen; 0 before the first position."""
        return self._seen[0][0].shape[0] if self._seen else 0

    def append(self, layer: int, k_BHKE: Tensor, v_BHKE: Tensor) -> KeysValues:
        """Add new positions of a layer and return all of them."""
        if layer in self._seen:
            seen_k_BHKE, seen_v_BHKE = self._seen[layer]
            k_BHKE = torch.cat([seen_k_BHKE, k_BHKE], dim=2)
            v_BHKE = torch.cat([seen_v_BHKE, v_BHKE], dim=2)
        self._seen[layer] = (k_BHKE, v_BHKE)
        return k_BHKE, v_BHKE

    def memory(self, layer: int) -> KeysValues | None:
        """The encoder's keys and values as a layer's cross-attention projected them, if it has."""
        return self._memory.get(layer)

    def remember(self, layer: int, k_BHKE: Tensor, v_BHKE: Tensor) -> KeysValues:
        """Keep the encoder's keys and values: they are the same in every step."""
        self._memory[layer] = (k_BHKE, v_BHKE)
        return k_BHKE, v_BHKE

    @property
    def has_memory(self) -> bool:
        """Whether an encoder's keys and values are kept."""
        return bool(self._memory)
