"""The part of the reference's tokenizers that is about tokens and ids: names, conversion, adding, saving."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from raybert.checkpoint.wholefile import write_text, write_whole
from raybert.errors import OutputError, UsageError
from raybert.text.build import build, stand_ins
from raybert.text.files import ROLES, Definition

# Spaces that English writing doesn't have, in the order in which the reference takes them out.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Vocabulary:
    """Tokens and ids of one tokenizer.

    Each role has its token and id as attributes: ``cls_token``, ``cls_token_id``, and so for unk, sep, pad, mask; both
    are None for a token that the vocabulary lacks.

    Attributes:
        backend: the library's tokenizer.
    """

    backend: tokenizers.Tokenizer
    clean_up_tokenization_spaces: bool
    model_max_length: int
    model_input_names: list[str]
    padding_side: str
    truncation_side: str
    is_fast = True
    pad_token_type_id = 0

    def _define(self, definition: Definition, backend: tokenizers.Tokenizer) -> None:
        self._lock = threading.Lock()
        # A dict of its own: roles are changed in it.
        self._definition = replace(definition, names=dict(definition.names))
        self._more: list[AddedToken] = []
        self._take(backend)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_lock", "backend"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The library's own copy numbers tokens anew where some were added beside stand-ins.
        self.__dict__.update(state, _lock=threading.Lock())
        self._take(build(self._definition, self._more))

    def __setattr__(self, name: str, value: Any) -> None:
        """``tokenizer.pad_token = "[MASK]"`` names a special token, which calls use from now on."""
        if name not in ROLES or "_definition" not in self.__dict__:
            super().__setattr__(name, value)
            return
        token = value if isinstance(value, AddedToken) else AddedToken(value, special=True)
        if self.backend.token_to_id(token.content) is None:
            self._more.append(token)
        self._definition.names[name] = token
        self._take(build(self._definition, self._more))

    def _take(self, backend: tokenizers.Tokenizer) -> None:
        """Use a tokenizer that was just made, and know what its stand-ins stand for."""
        self.backend = backend
        options = self._definition.options
        places = stand_ins(options) if options is not None else {}
        self._words = {stand_in: word for word, stand_in in places.items()}
        self._real_id: dict[int, int] = {}
        for word, stand_in in places.items():
            index = backend.token_to_id(stand_in)
            assert index is not None, "build gives every stand-in an id"
            self._real_id[index] = self._definition.vocabulary.get(word, self.unk_token_id)

    def _real(self, ids: list[int]) -> list[int]:
        return [self._real_id.get(index, index) for index in ids] if self._real_id else ids

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_id")
        if role not in ROLES or "_definition" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        token = self._definition.names.get(role)
        index = None if token is None else self.backend.token_to_id(token.content)
        if index is None or token is None:
            return None
        return index if name.endswith("_id") else token.content

    def __len__(self) -> int:
        """How many tokens there are, added ones included."""
        return len(self.get_vocab())

    @property
    def vocab_size(self) -> int:
        """How many tokens the vocabulary has, added ones not counted."""
        return self.backend.get_vocab_size(with_added_tokens=False) - len(self._real_id)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return {token: index for token, index in vocabulary.items() if token not in self._words}

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab`."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Token -> id of the added tokens."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> added token."""
        return dict(sorted(self.backend.get_added_tokens_decoder().items()))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Role -> special token, of those there are."""
        return {role: getattr(self, role) for role in ROLES if getattr(self, role) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, each once."""
        extra = [token.content for token in self._definition.extra]
        added = [token.content for token in self._more if token.special]
        return list(dict.fromkeys([*self.special_tokens_map.values(), *extra, *added]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of each token; an unknown one has [UNK]'s."""
        if isinstance(tokens, str):
            index = None if tokens in self._words else self.backend.token_to_id(tokens)
            return int(self.unk_token_id if index is None else index)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Any:
        """The token of each id.

        Raises:
            UsageError: an id is no token's.
        """
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if isinstance(ids, int):
            token = None if ids in self._real_id else self.backend.id_to_token(ids)
            if token is None:
                raise UsageError(f"ids: {ids} is no token's; ids are 0 to {max(self.get_vocab().values())}")
            return token
        special = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.convert_ids_to_tokens(int(index)) for index in ids if int(index) not in special]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens, pieces joined to words."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of ids (list, array or tensor), or the texts of a list of such.

        Args:
            token_ids: ids, in one or two dimensions.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: take spaces before punctuation out; None: the tokenizer's setting.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        ids = [index.tolist() if hasattr(index, "tolist") else index for index in ids]
        if ids and not isinstance(ids[0], int):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        cleans = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return clean_up(text) if cleans else text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **arguments: Any) -> list[str]:
        """`decode` of each sequence."""
        return [self.decode(ids, skip_special_tokens, **arguments) for ids in sequences]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens are put around a text, or a pair."""
        return self.backend.num_special_tokens_to_add(pair)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``[CLS] A [SEP]``, or ``[CLS] A [SEP] B [SEP]``."""
        first = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return first if token_ids_1 is None else [*first, *token_ids_1, self.sep_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for the first text and its special tokens, 1 for the second and its [SEP]."""
        first = [0] * (len(token_ids_0) + 2)
        return first if token_ids_1 is None else first + [1] * (len(token_ids_1) + 1)

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a special token, or where one is already."""
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(index in special) for index in token_ids_0]
        first = [1, *[0] * len(token_ids_0), 1]
        return first if token_ids_1 is None else [*first, *[0] * len(token_ids_1), 1]

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens that are found in texts before anything is split; returns how many are new.

        A model needs a row of word embeddings for each new one.
        """
        listed = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        tokens = [
            AddedToken(token, special=special_tokens, normalized=not special_tokens)
            if isinstance(token, str)
            else token
            for token in listed
        ]
        if special_tokens:
            for token in tokens:
                token.special = True
        count = self.backend.add_tokens(tokens)
        self._more += tokens
        if self._words:  # the library numbered them behind the stand-ins, which have no ids of their own
            self._take(build(self._definition, self._more))
        return count

    def add_special_tokens(self, special_tokens_dict: Mapping[str, Any]) -> int:
        """Add tokens by role (``{"pad_token": "[PAD]"}``) or under "additional_special_tokens"; how many are new.

        Raises:
            UsageError: a key is no role.
        """
        count = 0
        for role, value in special_tokens_dict.items():
            if role in {"additional_special_tokens", "extra_special_tokens"}:
                count += self.add_tokens(list(value), special_tokens=True)
            elif role in ROLES:
                token = value if isinstance(value, AddedToken) else AddedToken(value, special=True)
                count += self.backend.token_to_id(token.content) is None
                setattr(self, role, token)
            else:
                raise UsageError(f"special_tokens_dict: {role!r}; takes {', '.join(ROLES)}, additional_special_tokens")
        return count

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str]:
        """Write ``[PREFIX-]vocab.txt`` into a folder that is there, and return its path.

        Raises:
            OutputError: it can't be written.
        """
        path = Path(save_directory, f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt")
        _write({path: self._vocabulary_text()})
        return (str(path),)

    def _vocabulary_text(self) -> str:
        """Lines by id. Ids that no token has (of lines that came twice) repeat the last line, which counts."""
        by_id = {index: token for token, index in self._definition.vocabulary.items()}
        highest = max(by_id)
        return "".join(f"{by_id.get(index, by_id[highest])}\n" for index in range(highest + 1))

    def save_pretrained(self, folder: str | Path) -> tuple[str, ...]:
        """Write vocab.txt, tokenizer.json and tokenizer_config.json, which the reference loads too.

        Raises:
            OutputError: the folder can't be made or written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: can't be made: {error.strerror or error}") from error
        plain = self._definition.options is None or not self._words
        saved = self.backend if plain else build(_without_stand_ins(self._definition), self._more)
        state = json.loads(saved.to_str())
        state["truncation"] = state["padding"] = None
        files = {
            folder / "vocab.txt": self._vocabulary_text(),
            folder / "tokenizer.json": json.dumps(state, ensure_ascii=False),
            folder / "tokenizer_config.json": json.dumps(self._settings(saved), indent=2, ensure_ascii=False),
        }
        _write(files)
        return tuple(map(str, files))

    def _settings(self, saved: tokenizers.Tokenizer) -> dict[str, Any]:
        options = self._definition.options
        known = {} if options is None else {**vars(options), "never_split": list(options.never_split) or None}
        added = {str(index): _plain(token) for index, token in sorted(saved.get_added_tokens_decoder().items())}
        extra = [token for token in self.all_special_tokens if token not in self.special_tokens_map.values()]
        return {
            "tokenizer_class": "BertTokenizer" if options is not None else "PreTrainedTokenizerFast",
            **known,
            **self.special_tokens_map,
            "additional_special_tokens": extra,
            "added_tokens_decoder": added,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_input_names": self.model_input_names,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "split_special_tokens": self._definition.split_special,
        }


def clean_up(text: str) -> str:
    """Take out the spaces before punctuation and in contractions, as the reference does."""
    for spaced, plain in _CLEAN_UP:
        text = text.replace(spaced, plain)
    return text


def _without_stand_ins(definition: Definition) -> Definition:
    assert definition.options is not None
    return replace(definition, options=replace(definition.options, never_split=()))


def _plain(token: AddedToken) -> dict[str, Any]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {flag: getattr(token, flag) for flag in flags}


def _write(files: Mapping[Path, str]) -> None:
    try:
        write_whole({path: partial(write_text, text=text) for path, text in files.items()})
    except (OSError, UnicodeEncodeError) as error:
        folder = next(iter(files)).parent
        raise OutputError(f"{folder}: the tokenizer can't be written: {error}") from error
