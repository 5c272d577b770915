"""A checkpoint's tokenizer files, read and checked, before anything is built from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken

from raybert.checkpoint.jsonfile import read_json_object
from raybert.errors import CheckpointError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The named special tokens, in the order in which the reference adds those that the vocabulary lacks."""

BERT_NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

# Other names under which the reference gives BERT's own tokenizer.
BERT_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in (
        "Bert",
        "ConvBert",
        "DPRContextEncoder",
        "DPRQuestionEncoder",
        "DistilBert",
        "Electra",
        "LayoutLM",
        "Lxmert",
        "MobileBert",
        "SqueezeBert",
    )
)

MAX_NEVER_SPLIT = 1000


@dataclass(frozen=True, kw_only=True)
class Options:
    """How BERT's tokenizer treats a text, by the reference's names and with its defaults.

    Attributes:
        do_lower_case: whether letters become small.
        strip_accents: whether combining marks go; None: when letters become small.
        tokenize_chinese_chars: whether each CJK ideograph is a word.
        never_split: words that stay whole, one token each, unknown ones included.
        do_basic_tokenize: whether texts are cleaned and split at punctuation at all; without, words are what
            lies between white space, as it is.
    """

    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    never_split: tuple[str, ...] = ()
    do_basic_tokenize: bool = True


Keep = Literal["first", "last"]
"""Which end of too long a text survives."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """All that a folder's files say about its tokenizer.

    Attributes:
        folder: where they lie, for messages.
        files: the files that were read.
        options: of BERT's tokenizer. None: `serialized` stands as it is.
        vocabulary: token -> id. Of several equal lines of a vocab.txt the last one counts, as in the reference.
        serialized: the text of tokenizer.json, when `options` is None.
        added: tokens beside the vocabulary, each with the id that the files give it, if they do.
        names: role -> special token, for instance "cls_token" -> "[CLS]".
        extra: further special tokens.
        split_special: whether special tokens in a text are ordinary text.
        keep: which end of a text survives truncation.
    """

    folder: Path
    files: tuple[Path, ...]
    options: Options | None
    vocabulary: dict[str, int]
    serialized: str | None = None
    added: tuple[tuple[int, AddedToken], ...] = ()
    names: dict[str, AddedToken] = field(default_factory=dict)
    extra: tuple[AddedToken, ...] = ()
    split_special: bool = False
    keep: Keep = "first"


def read_definition(folder: Path, *, json_path: Path | None = None) -> Definition:
    """Read the tokenizer of a checkpoint folder.

    tokenizer_config.json decides as in the reference: if it names BERT's tokenizer or none, its options (or
    their defaults) hold, and tokenizer.json gives vocabulary and added tokens only. If it names another class,
    or is absent, tokenizer.json stands as it is. (Without any tokenizer_config.json the reference would
    lower-case whatever tokenizer.json says; raybert does not.) Without tokenizer.json, vocab.txt is read.

    Args:
        folder: the checkpoint.
        json_path: another file in place of its tokenizer.json.

    Raises:
        CheckpointError: a file is missing, malformed, or names a tokenizer that can't be built from it.
    """
    json_path, vocab_path = json_path or folder / "tokenizer.json", folder / "vocab.txt"
    config_path = folder / "tokenizer_config.json"
    files = [path for path in (json_path, config_path) if path.is_file()]
    config = read_json_object(config_path) if config_path in files else {}
    class_name = str(config.get("tokenizer_class") or "BertTokenizer").removesuffix("Fast")
    stored: dict[str, Any] = {}
    if json_path in files:
        stored = read_json_object(json_path)
        vocabulary = _stored_vocabulary(json_path, stored)
    elif class_name not in BERT_CLASSES:
        raise CheckpointError(
            f"{config_path}: tokenizer_class {class_name} needs a tokenizer.json; "
            "save it with the reference's fast tokenizer"
        )
    elif vocab_path.is_file():
        files.append(vocab_path)
        vocabulary = read_vocabulary(vocab_path)
    else:
        raise CheckpointError(f"{folder}: holds neither tokenizer.json nor vocab.txt; name a folder that does")
    literal = bool(stored) and (config_path not in files or class_name not in BERT_CLASSES or not _is_wordpiece(stored))
    config = _with_legacy_files(folder, config, stored, files)
    return Definition(
        folder=folder,
        files=tuple(sorted(files)),
        options=None if literal else _options(config_path, config),
        vocabulary=vocabulary,
        serialized=json.dumps(stored) if literal else None,
        added=_added(config_path, config["added_tokens_decoder"]),
        names=_names(config_path, config),
        extra=_extra(config_path, config),
        split_special=bool(config.get("split_special_tokens")),
        keep="last" if config.get("truncation_side") == "left" else "first",
    )


def read_vocabulary(path: Path) -> dict[str, int]:
    """A vocab.txt as token -> id: one token a line, its id the line's number from 0.

    Of several equal lines the last one counts, as in the reference; the ids of the others stay unused.

    Raises:
        CheckpointError: the file can't be read, or is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 at byte {error.start}") from error
    if lines[-1] == "":
        lines.pop()
    return {token: index for index, token in enumerate(lines)}


def _stored_vocabulary(path: Path, stored: dict[str, Any]) -> dict[str, int]:
    """The vocabulary inside tokenizer.json, of whichever model."""
    model = stored.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: [piece, score] pairs, the id is the place
        return {str(pair[0]): index for index, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    if not isinstance(vocabulary, dict) or not all(isinstance(value, int) for value in vocabulary.values()):
        raise CheckpointError(f"{path}: holds no vocabulary under model.vocab")
    return vocabulary


def _is_wordpiece(stored: dict[str, Any]) -> bool:
    # Files of old releases carry no type; the prefix is WordPiece's own.
    model = stored["model"]
    return bool(model.get("type", "WordPiece") == "WordPiece" and "continuing_subword_prefix" in model)


def _with_legacy_files(
    folder: Path, config: dict[str, Any], stored: dict[str, Any], files: list[Path]
) -> dict[str, Any]:
    """The settings with what older files add to them; those count only without added_tokens_decoder."""
    decoder = config.get("added_tokens_decoder")
    if decoder is not None:
        _expect(isinstance(decoder, dict), folder / "tokenizer_config.json", "added_tokens_decoder", decoder)
        return config
    map_path, added_path = folder / "special_tokens_map.json", folder / "added_tokens.json"
    config = dict(config)
    if map_path.is_file():
        files.append(map_path)
        config.update(read_json_object(map_path))
    decoder = {}
    if added_path.is_file():
        files.append(added_path)
        special = [_content(config.get(role)) for role in ROLES]
        special += [_content(token) for token in _listed_extra(map_path, config)]
        for content, index in read_json_object(added_path).items():
            is_special = content in special
            decoder[str(index)] = {"content": content, "special": is_special, "normalized": not is_special}
    listed = stored.get("added_tokens") or []
    is_list = isinstance(listed, list) and all(isinstance(token, dict) for token in listed)
    _expect(is_list, folder / "tokenizer.json", "added_tokens", listed)
    for token in listed:
        decoder[str(token.get("id"))] = {key: value for key, value in token.items() if key != "id"}
    config["added_tokens_decoder"] = decoder
    return config


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _expect(is_right: bool, path: Path, name: str, value: Any) -> None:
    if not is_right:
        raise CheckpointError(f"{path}: {name} is {str(value)[:60]!r}, which is not what belongs there")


def _listed_extra(path: Path, config: dict[str, Any]) -> list[Any]:
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    _expect(isinstance(listed, list | dict), path, "extra_special_tokens", listed)
    return list(listed.values()) if isinstance(listed, dict) else listed


def _options(path: Path, config: dict[str, Any]) -> Options:
    """BERT's options out of the settings; null means the default."""
    given: dict[str, Any] = {}
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize"):
        value = config.get(name)
        if isinstance(value, bool):
            given[name] = value
        elif value is not None:
            raise CheckpointError(f"{path}: {name} is {value!r}; true or false is meant")
    never_split = config.get("never_split") or []
    if not isinstance(never_split, list) or not all(isinstance(word, str) for word in never_split):
        raise CheckpointError(f"{path}: never_split is {never_split!r}; a list of words is meant")
    if len(never_split) > MAX_NEVER_SPLIT:
        raise CheckpointError(f"{path}: never_split has {len(never_split)} words; at most {MAX_NEVER_SPLIT}")
    return Options(never_split=tuple(never_split), **given)


def _names(path: Path, config: dict[str, Any]) -> dict[str, AddedToken]:
    """Role -> special token, for those roles that have one."""
    given = {role: config[role] for role in ROLES if config.get(role) is not None}
    named = {**BERT_NAMES, **given}
    return {role: _token(path, named[role], special=True) for role in ROLES if role in named}


def _extra(path: Path, config: dict[str, Any]) -> tuple[AddedToken, ...]:
    """Further special tokens: those of roles of the model's own (any "..._token"), then those of the list."""
    own = [value for key, value in config.items() if key.endswith("_token") and key not in ROLES]
    listed = [token for token in own if isinstance(token, str)] + _listed_extra(path, config)
    return tuple(_token(path, token, special=True) for token in listed)


def _added(path: Path, decoder: dict[str, Any]) -> tuple[tuple[int, AddedToken], ...]:
    """The added tokens by ascending id."""
    try:
        by_id = {int(index): token for index, token in decoder.items()}
    except ValueError as error:
        raise CheckpointError(f"{path}: an added token's id is no number: {error}") from error
    return tuple((index, _token(path, by_id[index])) for index in sorted(by_id))


def _token(path: Path, value: Any, *, special: bool = False) -> AddedToken:
    """A special or added token from its text or its object."""
    if isinstance(value, str):
        return AddedToken(value, special=special)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        given = {flag: bool(value[flag]) for flag in flags if flag in value}
        return AddedToken(value["content"], **{"special": special, **given})
    raise CheckpointError(f"{path}: {value!r} is no token; a text, or an object with a text as content is meant")
