"""What all tasks share: options, tokenizer, encoding, fingerprint."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from raybert.checkpoint.digest import files_digest, trunk_digest
from raybert.checkpoint.folder import Checkpoint
from raybert.config import known_options, one_of
from raybert.errors import SettingsError
from raybert.text.encoding import Windows
from raybert.text.files import Keep
from raybert.text.taken import Taken
from raybert.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from raybert.model.packed import TokenBatch
    from raybert.tasks.arrays import Arrays

Reduced: TypeAlias = "tuple[torch.Tensor, torch.Tensor | None]"
"""Float32 [R, V] and how many rows each of the batch's N sequences has, int [N]; None: one each."""


_KEPT: Mapping[str | None, Keep | None] = {None: None, "left": "last", "right": "first"}
"""What stays of too long a text when this side of it goes."""


class TextTask(ABC):
    """One head: its checkpoint and its resolved options.

    Attributes:
        name: the task's own name.
        version: raised when its answers change.
        takes: what an item is: a text, a pair of texts, either, or a text and a list of choices.
        reads: the hidden states that `reduce` looks at: those of all tokens, or each window's first.
        one_row: whether `reduce` gives each window one row.
        width: numbers in a row.
        needs_texts: whether `decode` and `arrow` look at the items.
        needs_offsets: whether they look at the tokens' places in the texts.
        slides: whether longer texts get several windows unless told otherwise.
        WINDOWS: values of its option ``windows``.
        OPTIONS: names of its options.
        AGGREGATIONS: values of its option ``aggregation``.
        aggregates_tokens: whether that says how tokens become an answer, and not windows.
        given: the options as they were given.
        checkpoint: the opened checkpoint.
        prompt: text put before every text.
        lower_case: whether texts are lower-cased before the tokenizer.
        max_length: tokens a window holds.
        windows: what happens to longer texts: truncate or slide.
        truncation_side: which end of too long a text is left out; None: the checkpoint's choice.
        stride: tokens that neighbouring windows of a text share; None where nothing slides.
        aggregation: how the answers of a text's windows become one; None where nothing slides.
    """

    name: str
    version: int
    takes: Literal["text", "pair", "either", "choices"] = "text"
    reads: Literal["tokens", "first"] = "tokens"
    one_row = False
    width: int
    needs_texts = False
    needs_offsets = False
    slides = False
    WINDOWS: ClassVar[tuple[str, ...]] = ("truncate", "slide")
    OPTIONS: ClassVar[tuple[str, ...]]
    AGGREGATIONS: ClassVar[tuple[str, ...]] = ("mean", "max")
    aggregates_tokens = False

    def __init__(self, checkpoint: Checkpoint, options: Mapping[str, Any], *, prompt: str = "") -> None:
        known_options(self.name, options, self.OPTIONS)
        self.given = dict(options)
        self.checkpoint = checkpoint
        self.prompt = prompt
        self.lower_case = checkpoint.transformer.do_lower_case
        self.max_length = checkpoint.max_length
        if options.get("max_length") is not None:
            highest = checkpoint.config.max_position_embeddings
            self.max_length = self.whole_number("max_length", options["max_length"], 3, highest)
        usual = "slide" if self.slides else "truncate"
        self.windows = one_of(f"{self.name}: windows", named(options, "windows", usual), self.WINDOWS)
        self.truncation_side = self._side(options.get("truncation_side"))
        self.stride = self._stride(options.get("stride"))
        self.aggregation = self._aggregation(options.get("aggregation"))

    @classmethod
    def open(cls, checkpoint: Checkpoint, options: Mapping[str, Any]) -> TextTask:
        """The task with these options; the class is another one where an option decides what comes out."""
        return cls(checkpoint, options)

    def _side(self, asked: Any) -> str | None:
        if asked is None:
            return None
        if self.windows != "truncate":
            raise SettingsError(
                f"{self.name}: truncation_side {asked!r}: texts are not cut here; pass windows='truncate' too"
            )
        return one_of(f"{self.name}: truncation_side", str(asked), ("left", "right"))

    def _stride(self, asked: Any) -> int | None:
        if self.windows == "slide":
            # Two special tokens and one that moves on.
            return self.whole_number(
                "stride", self.default_stride() if asked is None else asked, 0, self.max_length - 3
            )
        if asked is not None:
            raise SettingsError(f"{self.name}: stride {asked!r}: texts are cut here; pass windows='slide' too")
        return None

    def default_stride(self) -> int:
        """Tokens that neighbours share where nothing is asked."""
        return 0

    def _aggregation(self, asked: Any) -> str | None:
        if asked is None:
            return "mean" if self.windows == "slide" else None
        if self.windows != "slide":
            raise SettingsError(f"{self.name}: aggregation {asked!r}: texts have one window; pass windows='slide' too")
        return one_of(f"{self.name}: aggregation", str(asked), self.AGGREGATIONS)

    @property
    @abstractmethod
    def own_options(self) -> dict[str, Any]:
        """The task's own options, resolved, as plain JSON values."""

    @property
    def options(self) -> dict[str, Any]:
        """Every option that decides a column, resolved, as plain JSON values."""
        return {
            "aggregation": self.aggregation,
            "lower_case": self.lower_case,
            "max_length": self.max_length,
            "stride": self.stride,
            "windows": self.windows,
            **({} if self.truncation_side is None else {"truncation_side": self.truncation_side}),
            **self.own_options,
        }

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

    @classmethod
    def truth(cls, place: str, value: Any) -> bool:
        """True or false.

        Raises:
            SettingsError: it is another thing.
        """
        if not isinstance(value, bool):
            raise SettingsError(f"{cls.name}: {place} {value!r}: takes true or false")
        return value

    @cached_property
    def text_key(self) -> str:
        """Digest of what decides the pieces of a text: tokenizer, prompt, length, lower case."""
        parts = [files_digest(self.checkpoint.tokenizer_files), self.prompt, self.max_length, self.lower_case]
        if self.truncation_side is not None:
            parts.append(self.truncation_side)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def encoding_key(self, *, pairs: bool) -> str:
        """Heads of equal keys encode every item to equal windows; ``pairs`` says whether items may be pairs."""
        is_text = self.takes == "text" or (self.takes == "either" and not pairs)
        kind = "text" if is_text else self.pair_key()
        return f"{self.text_key} {kind} {self.windows} {self.stride}"

    def pair_key(self) -> str:
        """What decides the windows of a pair beside the rest."""
        return "choices" if self.takes == "choices" else "pair"

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
        tokenizer = Tokenizer.from_files(
            self.checkpoint.path,
            max_length=self.max_length,
            lower_case=self.lower_case,
            keep=_KEPT[self.truncation_side],
        )
        tokenizer.check_vocab_size(self.checkpoint.config.vocab_size)
        return self._fitting(tokenizer)

    def _fitting(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, if its windows have room for this task's items."""
        if self.takes in ("pair", "choices"):
            _ = tokenizer.pair_room
        elif self.windows == "slide":
            self.cut(tokenizer.take([], prompt=self.prompt, whole=True), tokenizer)
        return tokenizer

    def borrow_tokenizer(self, other: TextTask) -> None:
        """Read no files again for a task of the same checkpoint that is cut in another way.

        Raises:
            SettingsError: its options leave no room in a window.
        """
        assert (self.checkpoint.path, self.lower_case) == (other.checkpoint.path, other.lower_case)
        self._tokenizer = self._fitting(other._tokenizer.cut_at(self.max_length, _KEPT[self.truncation_side]))

    def items(self, texts: Sequence[str], seconds: Sequence[Any] | None) -> Sequence[Any]:
        """This task's items of texts, and of what stands beside them if anything does."""
        if self.takes == "text" or seconds is None:
            return texts
        return list(zip(texts, seconds, strict=True))

    def encode(self, items: Sequence[Any], *, pairs: bool = False, offsets: bool = False) -> Windows:
        """Windows of the items.

        Args:
            items: what the task takes.
            pairs: for a task that takes either: whether these are pairs.
            offsets: also say where each token lies in its text.

        Raises:
            RowError: an item can't be encoded.
        """
        if self.takes == "pair" or (self.takes == "either" and pairs):
            return self._tokenizer.encode_pairs(items, offsets=offsets)
        return self.cut(self.take(items, offsets=offsets, whole=self.windows == "slide"))

    def take(self, texts: Sequence[str], *, offsets: bool, whole: bool) -> Taken:
        """The pieces of texts, the prompt before each; heads of one `text_key` share them."""
        return self._tokenizer.take(texts, prompt=self.prompt, offsets=offsets, whole=whole)

    def cut(self, taken: Taken, tokenizer: Tokenizer | None = None) -> Windows:
        """The task's windows of these pieces."""
        slide = self.windows == "slide"
        return (tokenizer or self._tokenizer).windows(
            taken, prompt=self.prompt, windows="slide" if slide else "truncate", stride=self.stride or 0
        )

    @property
    def module_options(self) -> dict[str, Any]:
        """The options that `module` looks at."""
        return self.own_options

    @property
    def module_key(self) -> str:
        """Heads of equal keys have equal modules."""
        return json.dumps([self.name, str(self.checkpoint.path), self.module_options])

    @abstractmethod
    def module(self) -> nn.Module:
        """The head's own weights, loaded."""

    @abstractmethod
    def reduce(self, hidden_TD: torch.Tensor, module: nn.Module, batch: TokenBatch) -> Reduced:
        """Hidden states -> numbers."""

    @abstractmethod
    def decode(self, items: Sequence[Any], windows: Windows, arrays: Arrays) -> Any:
        """Numbers -> answers."""

    @abstractmethod
    def columns(self, name: str, vector_type: str = "float32") -> list[pa.Field]:
        """The output columns."""

    @abstractmethod
    def arrow(self, items: Sequence[Any], windows: Windows, arrays: Arrays, vector_type: str) -> list[pa.Array]:
        """Numbers -> the columns' values."""

    def join(self, pieces: Sequence[Any]) -> Any:
        """Answers of several calls, one after the other."""
        return [answer for piece in pieces for answer in piece]


def named(options: Mapping[str, Any], key: str, default: str) -> str:
    """The word that an option was given, else its default."""
    return default if options.get(key) is None else str(options[key])
