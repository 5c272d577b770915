"""What the reference's tokenizers return: lists or tensors by name, and where each token comes from."""

from __future__ import annotations

import importlib
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import tokenizers

from raybert.errors import UsageError

TENSOR_KINDS = ("pt", "np")


class BatchEncoding(UserDict[str, Any]):
    """Names to lists (one text) or lists of lists (several), or to tensors; names are attributes too.

    Args:
        data: "input_ids", "token_type_ids", "attention_mask", and what else was asked for.
        encodings: of the `tokenizers` library, one a row.
        stand_ins: private characters in their tokens -> the words that they stand for.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        encodings: Sequence[tokenizers.Encoding] = (),
        stand_ins: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data)
        self.encodings = list(encodings)
        self._words = dict(stand_ins or {})

    def __getattr__(self, name: str) -> Any:
        # Only what isn't found otherwise comes here; `data` itself is looked for while an object is unpickled.
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}; it has {', '.join(self.__dict__.get('data', ()))}"
        )

    def tokens(self, row: int = 0) -> list[str]:
        """The tokens of a row, special ones and padding included."""
        return [self._words.get(token, token) for token in self.encodings[row].tokens]

    def word_ids(self, row: int = 0) -> list[int | None]:
        """For each token of a row the number of its word; None for special ones and padding."""
        return list(self.encodings[row].word_ids)

    def sequence_ids(self, row: int = 0) -> list[int | None]:
        """For each token of a row 0 or 1: which text of the pair it is of; None for special ones and padding."""
        return list(self.encodings[row].sequence_ids)

    def token_to_chars(self, row: int, token: int) -> tuple[int, int] | None:
        """Where a token lies in its text, [start, end); None for a special one."""
        return self.encodings[row].token_to_chars(token)

    def char_to_token(self, row: int, char: int, sequence: int = 0) -> int | None:
        """The token that a character of a text lies in; None for white space."""
        return self.encodings[row].char_to_token(char, sequence)

    def word_to_tokens(self, row: int, word: int, sequence: int = 0) -> tuple[int, int] | None:
        """The tokens of a word, [start, end)."""
        return self.encodings[row].word_to_tokens(word, sequence)

    def token_to_word(self, row: int, token: int) -> int | None:
        """The number of a token's word in its text; None for a special one."""
        return self.encodings[row].token_to_word(token)

    def convert_to_tensors(self, kind: str | None) -> Self:
        """Make tensors of all values: "pt" torch's, "np" numpy's int64 arrays; None leaves them as they are.

        Raises:
            UsageError: the kind is another, or rows are of unequal lengths.
        """
        if kind is None:
            return self
        if kind not in TENSOR_KINDS:
            raise UsageError(f"return_tensors: {kind!r}; takes one of {', '.join(TENSOR_KINDS)}")
        arrays = {name: _array(name, value) for name, value in self.data.items()}
        if kind == "pt":
            # By name: the text layer works where there is no torch; who asks for its tensors has it.
            torch = importlib.import_module("torch")
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.data.update(arrays)
        return self

    def to(self, device: Any) -> Self:
        """Move torch's tensors to a device."""
        self.data.update({name: value.to(device) for name, value in self.data.items() if hasattr(value, "to")})
        return self


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.array(value, np.int64)
    except ValueError as error:
        raise UsageError(
            f"{name}: rows of unequal lengths make no tensor; pass padding=True, and truncation=True for long texts"
        ) from error
