"""What tasks over one text, or one pair of texts, share: options, tokenizer, encoding, fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from raybert.checkpoint.digest import files_digest, trunk_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.config import known_options, one_of
from raybert.errors import SettingsError
from raybert.text.encoding import Windows
from raybert.text.tokenizer import Tokenizer


class TextTask(ABC):
    """One head: its checkpoint and its resolved options.

    Attributes:
        name: the task's own name.
        version: raised when its answers change.
        takes_pairs: whether an item may be a pair of texts.
        OPTIONS: names of its options.
        checkpoint: the opened checkpoint.
        prompt: text put before every text.
        lower_case: whether texts are lower-cased before the tokenizer.
        max_length: tokens a window holds.
        windows: what happens to longer texts.
    """

    name: str
    version: int
    takes_pairs = False
    OPTIONS: ClassVar[tuple[str, ...]]

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any], *, prompt: str = "") -> None:
        known_options(self.name, options, self.OPTIONS)
        self.windows = one_of(f"{self.name}: windows", str(options.get("windows", "truncate")), ("truncate",))
        self.checkpoint = checkpoint
        self.prompt = prompt
        self.lower_case = checkpoint.transformer.do_lower_case
        self.max_length = checkpoint.max_length
        if options.get("max_length") is not None:
            highest = checkpoint.config.max_position_embeddings
            self.max_length = self.whole_number("max_length", options["max_length"], 3, highest)

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Every option, resolved, as plain JSON values."""

    @abstractmethod
    def head_contents(self) -> list[str]:
        """Digests of all that the head computes with beside the trunk."""

    @classmethod
    def whole_number(cls, place: str, value: Any, low: int, high: int) -> int:
        """A whole number in its range.

        Raises:
            SettingsError: it is another thing.
        """
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SettingsError(f"{cls.name}: {place} {value!r}: takes a whole number from {low} to {high}")
        return value

    @cached_property
    def encoding_key(self) -> str:
        """Digest of what decides the windows: tokenizer, prompt, length, lower case."""
        parts = [files_digest(self.checkpoint.tokenizer_files), self.prompt, self.max_length, self.lower_case]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def _contents(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "version": self.version,
            "options": self.options,
            "tokenizer": files_digest(self.checkpoint.tokenizer_files),
            "trunk": trunk_digest(self.checkpoint),
            "head": self.head_contents(),
        }

    def fingerprint(self, dtype: str) -> str:
        """Sha256 over options, tokenizer, trunk, head, task version and dtype; no paths."""
        text = json.dumps({**self._contents, "dtype": dtype}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, cut at this head's max length."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_files(self.checkpoint.path, max_length=self.max_length, lower_case=self.lower_case)
        tokenizer.check_vocab_size(self.checkpoint.config.vocab_size)
        return tokenizer

    def encode(self, items: Sequence[Any]) -> Windows:
        """One window a text, the prompt before it."""
        return self._tokenizer.encode(items, prompt=self.prompt)
