"""What the reference's tokenizers return: lists or tensors by name, and where each token comes from."""

from __future__ import annotations

import importlib
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import tokenizers

from raybert.errors import UsageError

Texts = str | Sequence[str] | Sequence[Sequence[str]]
"""One text or several; words in place of a text where a call is told so."""

TENSOR_KINDS = ("pt", "np")


class Span(NamedTuple):
    """Characters or tokens ``[start, end)``."""

    start: int
    end: int


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

    def __getitem__(self, key: Any) -> Any:
        """A value by its name, or the library's encoding of a row by its number."""
        return self.encodings[key] if isinstance(key, int) else super().__getitem__(key)

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

    # Each of these takes (row, number), or the number alone for row 0, as in the reference.

    def token_to_chars(self, row_or_token: int, token: int | None = None) -> Span | None:
        """Where a token lies in its text; None for a special one."""
        row, number = _place(row_or_token, token)
        return _span(self.encodings[row].token_to_chars(number))

    def char_to_token(self, row_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The token that a character of a text lies in; None for white space."""
        row, number = _place(row_or_char, char)
        return self.encodings[row].char_to_token(number, sequence_index)

    def word_to_tokens(self, row_or_word: int, word: int | None = None, sequence_index: int = 0) -> Span | None:
        """The tokens of a word."""
        row, number = _place(row_or_word, word)
        return _span(self.encodings[row].word_to_tokens(number, sequence_index))

    def word_to_chars(self, row_or_word: int, word: int | None = None, sequence_index: int = 0) -> Span | None:
        """Where a word lies in its text."""
        row, number = _place(row_or_word, word)
        return _span(self.encodings[row].word_to_chars(number, sequence_index))

    def char_to_word(self, row_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        """The number of the word that a character of a text lies in."""
        row, number = _place(row_or_char, char)
        return self.encodings[row].char_to_word(number, sequence_index)

    def token_to_word(self, row_or_token: int, token: int | None = None) -> int | None:
        """The number of a token's word in its text; None for a special one."""
        row, number = _place(row_or_token, token)
        return self.encodings[row].token_to_word(number)

    def convert_to_tensors(self, kind: str | None) -> Self:
        """Make tensors of all values: "pt" torch's, "np" numpy's arrays; None leaves them as they are.

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


def _place(row_or_number: int, number: int | None) -> tuple[int, int]:
    return (0, row_or_number) if number is None else (row_or_number, number)


def _span(found: tuple[int, int] | None) -> Span | None:
    return None if found is None else Span(*found)


def _array(name: str, value: Any) -> np.ndarray:
    """Whole numbers as int64, others (somebody's labels) as float32."""
    try:
        array = np.array(value)
        return array.astype(np.float32 if array.dtype.kind == "f" and array.size else np.int64)
    except ValueError as error:
        raise UsageError(
            f"{name}: rows of unequal lengths make no tensor; pass padding=True, and truncation=True for long texts"
        ) from error


def library_rows(text: Texts, pairs: Texts | None, *, words: bool) -> tuple[bool, list[Any]]:
    """Whether a list was given, and the library's rows."""
    is_list = isinstance(text, list | tuple)
    batched = is_list and (not words or bool(text and isinstance(text[0], list | tuple)))
    if not is_list and not isinstance(text, str):
        raise UsageError(f"text: {type(text).__name__}; takes a text or a list of texts")
    if not batched:
        return False, [(text, pairs)] if pairs else [text]
    if pairs is None:
        return True, list(text)
    if isinstance(pairs, str) or len(pairs) != len(text):
        given = "one text" if isinstance(pairs, str) else f"{len(pairs)} texts"
        raise UsageError(f"text_pair: {given} beside {len(text)} texts; give a list of as many")
    return True, list(zip(text, pairs, strict=True))
