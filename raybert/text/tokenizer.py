"""Texts to windows of ids, fast and in bounded memory, over the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, Self

import numpy as np

from raybert.errors import CheckpointError, RowError, SettingsError
from raybert.text.build import build, lower_first, stand_ins
from raybert.text.encoding import Bools, Int32s, Windows
from raybert.text.files import Definition, Keep, Options, read_definition
from raybert.text.framing import Frame
from raybert.text.pieces import pieces, safe_cut
from raybert.text.taken import Taken, joined
from raybert.text.windows import Spans, beside, cut, interleaved, of_pairs, share, slide

CHUNK_CHARS = 262_144
CHUNK_TEXTS = 512
"""At most so much goes to the library at once: its results take 100 to 400 bytes per character."""


def problem(text: object) -> tuple[str, str] | None:
    """Why a value can't be tokenized, as (reason, detail), or None if it can.

    Reasons: ``null``, ``wrong_type``, ``lone_surrogate`` (half of a UTF-16 pair, which no UTF-8 can carry). Any
    other text is fine: empty, of any length, with control characters, NUL or unassigned code points.
    """
    if text is None:
        return "null", "the text is missing (null)"
    if not isinstance(text, str):
        return "wrong_type", f"expected a text, got {type(text).__name__}"
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        return "lone_surrogate", f"character {error.start} is U+{half:04X}, half of a surrogate pair"
    return None


class Tokenizer:
    """A checkpoint's tokenizer, cut at one maximal length.

    How many threads a call uses is the library's affair: all cores, unless the process started with
    ``TOKENIZERS_PARALLELISM=false`` or a number in ``RAYON_NUM_THREADS``. They hold for the whole process, so
    whoever starts it sets them; nothing here writes to the environment.

    Attributes:
        backend: the library's tokenizer; it neither truncates nor pads. (Words of never_split have ids of their
            own in it, above all others; what leaves this class has theirs.)
        max_length: tokens that a window holds, special tokens included.
        files: the files that define it, sorted.
        vocabulary: token -> id, added tokens included.
        vocab_size: 1 + the largest id.
        unk_id, cls_id, sep_id: ids of special tokens.
        pad_id, mask_id: likewise; None if there is no such token.
        special_ids: the ids of all special tokens.
    """

    def __init__(self, definition: Definition, *, max_length: int, lower_case: bool = False) -> None:
        self.backend = build(definition)
        if lower_case:
            lower_first(self.backend)
        self.max_length = max_length
        self.files, self._folder = definition.files, definition.folder
        added = self.backend.get_added_tokens_decoder()
        self.vocabulary = definition.vocabulary | {token.content: index for index, token in added.items()}
        self.vocab_size = 1 + max(self.vocabulary.values())
        ids = {role: self.vocabulary.get(token.content) for role, token in definition.names.items()}
        self.unk_id, self.cls_id, self.sep_id = (
            self.vocabulary[definition.names[role].content] for role in ("unk_token", "cls_token", "sep_token")
        )
        self.pad_id, self.mask_id = ids["pad_token"], ids["mask_token"]
        extra = (self.vocabulary.get(token.content) for token in definition.extra)
        self.special_ids = frozenset(index for index in (*ids.values(), *extra) if index is not None)
        self._real_ids = self._without_stand_ins(definition.options)
        self._keep = self._kept = definition.keep
        self._safe = safe_cut(self.backend, definition.options)
        self._alone = Frame.of(self.backend, "a")
        self._room(self._alone)

    @classmethod
    def from_files(cls, folder: Path, *, max_length: int, lower_case: bool = False, keep: Keep | None = None) -> Self:
        """Read a checkpoint folder's tokenizer: tokenizer.json, else vocab.txt, with tokenizer_config.json.

        Args:
            folder: the checkpoint.
            max_length: tokens that a window holds, special tokens included.
            lower_case: lower-case texts before anything else, whatever the tokenizer does (sentence-transformers'
                do_lower_case).
            keep: which end of too long a text survives; None: as the files say.

        Raises:
            CheckpointError: a file is missing or malformed, or the vocabulary lacks [UNK], [CLS] or [SEP].
            SettingsError: `max_length` holds no token beside the special ones.
        """
        return cls(read_definition(folder), max_length=max_length, lower_case=lower_case).cut_at(max_length, keep)

    def cut_at(self, max_length: int, keep: Keep | None) -> Self:
        """The same tokenizer, cut at another length; of ``keep`` and errors `from_files` says more."""
        other = copy(self)
        other.max_length, other._keep = max_length, keep or self._kept
        other._room(other._alone)
        return other

    def check_vocab_size(self, vocab_size: int) -> None:
        """Refuse a model that has no embedding for some of this tokenizer's ids.

        Raises:
            CheckpointError: the largest id is `vocab_size` (the model's) or more.
        """
        if self.vocab_size > vocab_size:
            token = max(self.vocabulary, key=self.vocabulary.__getitem__)
            raise CheckpointError(
                f"{self._folder}: the tokenizer's {token!r} has id {self.vocab_size - 1}, but config.json's "
                f"vocab_size is {vocab_size}; the two belong to different models"
            )

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        offsets: bool = False,
        windows: Literal["truncate", "slide"] = "truncate",
        stride: int = 0,
    ) -> Windows:
        """Encode texts, each between its special tokens.

        Args:
            texts: N texts.
            prompt: put before every text, as it is.
            offsets: also say where each token lies in its text; slower by a half.
            windows: "truncate": one window a text, of its first tokens (its last ones, if the checkpoint's
                truncation_side is left). "slide": as many windows as it takes.
            stride: tokens that neighbouring windows of a text share.

        Raises:
            RowError: a text is none, or holds a lone surrogate; see `problem`.
            SettingsError: a stride that leaves no step forward.
        """
        taken = self.take(texts, prompt=prompt, offsets=offsets, whole=windows == "slide")
        return self.windows(taken, prompt=prompt, windows=windows, stride=stride)

    def take(self, texts: Sequence[str], *, prompt: str = "", offsets: bool = False, whole: bool = False) -> Taken:
        """The first step of `encode`: the pieces of each text, all of them (``whole``) or those of one window.

        Raises:
            RowError: as `encode`.
        """
        limit = None if whole or self._keep == "last" else self._room(self._alone)
        return self._tokenize(texts, prompt, limit, offsets)

    def windows(
        self,
        taken: Taken,
        *,
        prompt: str = "",
        windows: Literal["truncate", "slide"] = "truncate",
        stride: int = 0,
    ) -> Windows:
        """The second step of `encode`; several ways of cutting may follow one `take`.

        Args:
            taken: for "slide" whole.
            prompt: that the pieces begin with. Sliding, it stands in every window.
            windows: as of `encode`.
            stride: as of `encode`.

        Raises:
            SettingsError: a stride, or a prompt, that leaves no step forward.
        """
        room, counts = self._room(self._alone), taken.counts
        if windows == "truncate":
            spans = cut(counts, room, self._keep)
            inner, row = spans.end - spans.begin, spans.row
        else:
            led = self._led(prompt)
            over = slide(np.maximum(counts - led, 0), room - led, stride)
            begin = cut(np.minimum(counts, led), led, "first").take(over.row)
            spans, row = interleaved(begin, Spans(over.row, over.begin + led, over.end + led)), over.row
            inner = (begin.end - begin.begin) + (over.end - over.begin)
        framed = self._alone.around(inner[:, None], *taken.select(spans))
        tokens = counts + self._alone.size
        return Windows(
            **framed._asdict(),
            row_of_window=row,
            tokens=tokens.astype(np.int32),
            truncated=tokens > self.max_length if windows == "truncate" else np.zeros(len(tokens), np.bool_),
        )

    def _led(self, prompt: str) -> int:
        """Pieces of a prompt."""
        if not prompt:
            return 0
        led = int(self.count([prompt])[0]) - self._alone.size
        if led >= self.room:
            raise SettingsError(f"prompt: its {led} tokens leave no room in max_length {self.max_length}")
        return led

    def encode_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        offsets: bool = False,
        windows: Literal["truncate", "slide"] = "truncate",
        stride: int = 0,
        first_limit: int | None = None,
    ) -> Windows:
        """Encode pairs of texts, with token types.

        Args:
            pairs: N pairs.
            offsets: also say where each token lies in its own text of the two.
            windows: "truncate": one window a pair; too long a pair is cut by `share`: the longer text gives way
                first ("longest_first" of the reference). "slide": as many windows as the second text takes, the
                first text whole in each ("only_second" of the reference with ``return_overflowing_tokens``).
            stride: sliding: tokens of the second text that neighbours share; less where the first leaves no room.
            first_limit: sliding: tokens that the first text is cut to; to half of the room where that leaves
                the second text's windows no step forward.

        Raises:
            RowError: a pair is not two texts, or one holds a lone surrogate; see `problem`.
        """
        room = self._room(self._pair)
        slides = windows == "slide"
        taken = self._tokenize(_both(pairs), "", room if self._keep == "first" and not slides else None, offsets)
        first, second = taken.counts[::2], taken.counts[1::2]
        tokens = first + second + self._pair.size
        if slides:
            kept_first = beside(first, second, room, stride, first_limit)
            rooms = room - kept_first
            over = slide(second, rooms, np.clip(stride, 0, rooms - 1))
            row, truncated = over.row, first > kept_first
            spans = interleaved(of_pairs(cut(kept_first, kept_first, "first").take(row), 0), of_pairs(over, 1))
        else:
            row, truncated = np.arange(len(tokens), dtype=np.int32), tokens > self.max_length
            shares = np.stack(share(first, second, room), axis=1)
            spans = cut(taken.counts, shares.ravel(), self._keep)
        inner = (spans.end - spans.begin).reshape(-1, 2)
        framed = self._pair.around(inner, *taken.select(spans))
        begin = self._pair.second_lead + inner[:, 0]
        return Windows(
            **framed._asdict(),
            row_of_window=row,
            tokens=tokens.astype(np.int32),
            truncated=truncated,
            second=np.stack([begin, begin + inner[:, 1]], axis=1).astype(np.int32),
        )

    @cached_property
    def pieces(self) -> list[str]:
        """Token of each id; empty for an id without one."""
        pieces = [""] * self.vocab_size
        for piece, number in self.vocabulary.items():
            pieces[number] = piece
        return pieces

    @cached_property
    def continues(self) -> Bools:
        """Bool [vocab_size]: whether a token goes on in the word of the one before it, as ``##ing`` does."""
        mark = str(getattr(self.backend.model, "continuing_subword_prefix", None) or "")
        found = np.array([bool(mark) and piece.startswith(mark) for piece in self.pieces], np.bool_)
        # "##" itself and added tokens are words.
        found[[number for piece, number in self.vocabulary.items() if piece == mark]] = False
        found[list(self.backend.get_added_tokens_decoder())] = False
        return found

    def text_of(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Ids as text, pieces joined to words, as the reference's ``decode`` without clean-up."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    @property
    def lead(self) -> int:
        """Special tokens before a text."""
        return self._alone.lead

    @property
    def room(self) -> int:
        """Pieces that a window of one text holds."""
        return self._room(self._alone)

    @property
    def pair_room(self) -> int:
        """Pieces that a window of two texts holds.

        Raises:
            SettingsError: none.
        """
        return self._room(self._pair)

    def count(self, texts: Sequence[str]) -> Int32s:
        """Tokens of each text before truncation, special tokens included, int32 [N]."""
        taken = self._tokenize(texts, "", 0, False)
        return (taken.counts + self._alone.size).astype(np.int32)

    def prompt_tokens(self, prompt: str) -> int:
        """How many leading tokens of a window belong to a prompt, by sentence-transformers' count.

        That is the prompt's own encoding, cut to `max_length`, without a special token at its end; where prompt
        and text share a token, the sum may be off by that token, there and here.
        """
        if not prompt:
            return 0
        ids = self.encode([prompt]).ids
        return len(ids) - (int(ids[-1]) in self.special_ids)

    def _without_stand_ins(self, options: Options | None) -> Int32s | None:
        """The id of each id that the backend gives; None: the same one."""
        places = stand_ins(options) if options else {}
        if not places:
            return None
        real_ids = np.arange(1 + max(self.backend.get_vocab(with_added_tokens=True).values()), dtype=np.int32)
        for word, stand_in in places.items():
            real_ids[self.backend.token_to_id(stand_in)] = self.vocabulary.get(word, self.unk_id)
        return real_ids

    @cached_property
    def _pair(self) -> Frame:
        return Frame.of(self.backend, "a", "a")

    def _room(self, frame: Frame) -> int:
        """Pieces that fit a window beside its special tokens."""
        if self.max_length <= frame.size:
            raise SettingsError(
                f"max_length: {self.max_length} leaves no room beside {frame.size} special tokens; "
                f"give {frame.size + 1} or more"
            )
        return self.max_length - frame.size

    def _tokenize(self, texts: Sequence[str], prompt: str, limit: int | None, offsets: bool) -> Taken:
        """Pieces of each text: how many there are, and the first `limit` of them (None: all)."""
        if isinstance(texts, str):
            raise TypeError("a list of texts is meant, not one text; pass [text]")
        encode_batch = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        counts, kept = [0] * len(texts), [0] * len(texts)
        ids: list[Int32s] = []
        places: list[Int32s] = []
        for chunk in _chunks(texts, prompt, self._safe):
            encodings = encode_batch([piece for _, _, piece in chunk], add_special_tokens=False)
            chunk_ids: list[list[int]] = []
            for (row, begin, _), encoding in zip(chunk, encodings, strict=True):
                count = len(encoding)
                take = count if limit is None else min(count, limit - kept[row])
                counts[row] += count
                kept[row] += take
                if take > 0:
                    chunk_ids.append(encoding.ids[:take])
                    if offsets:
                        places.append(np.array(encoding.offsets[:take], np.int32) + (begin - len(prompt)))
            ids.append(np.fromiter(chain.from_iterable(chunk_ids), np.int32))
        all_ids = joined(ids, np.empty(0, np.int32))
        return Taken(
            counts=np.array(counts, np.int64),
            kept=np.array(kept, np.int64),
            ids=all_ids if self._real_ids is None else self._real_ids[all_ids],
            # What lies in the prompt lies at 0 of the text, with no width.
            offsets=np.maximum(joined(places, np.empty((0, 2), np.int32)), 0) if offsets else None,
        )


def _chunks(texts: Sequence[str], prompt: str, safe: re.Pattern[str] | None) -> Iterator[list[tuple[int, int, str]]]:
    """Chunks of (row, place of the piece in prompt and text, piece), bounded in texts and in characters."""
    chunk: list[tuple[int, int, str]] = []
    chars = 0
    for row, text in enumerate(texts):
        found = problem(text)
        if found is not None:
            raise RowError(row, *found)
        for begin, piece in pieces(prompt + text, safe):
            if len(chunk) == CHUNK_TEXTS or (chunk and chars + len(piece) > CHUNK_CHARS):
                yield chunk
                chunk, chars = [], 0
            chunk.append((row, begin, piece))
            chars += len(piece)
    if chunk:
        yield chunk


def _both(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """First and second texts in turn, each checked, because a problem is the pair's."""
    texts: list[str] = []
    for row, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise RowError(row, "wrong_type", f"expected a pair of texts, got {type(pair).__name__}")
        for text in pair:
            found = problem(text)
            if found is not None:
                raise RowError(row, *found)
            texts.append(text)
    return texts
