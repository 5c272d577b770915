"""Which of a checkpoint's files decide what about its tokenizer, with transformers 5 as the oracle; and errors."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from raybert.errors import CheckpointError, SettingsError
from raybert.text.tokenizer import Tokenizer
from tests.tiny import vocabulary, write_json, write_tiny_checkpoint

TEXTS = [
    "Héllo WORLD, foo-bar c++ [MASK] 中国 cafe\u0301 [unused5]",
    "a <ENT> b<ent>c [ENT] x[SEP]y the [mask] [CLS]",
    "  NEWTOKEN newtokens (newtoken) new token",
    "",
]
BERT = {"tokenizer_class": "BertTokenizer"}
MODEL = {"model_type": "bert"}
ADDED = {"lstrip": False, "rstrip": False, "single_word": False}


def write_folder(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    stored: dict[str, Any] | None = None,
    vocab: str | None = None,
    **files: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", MODEL)
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    if stored is not None:
        write_json(folder / "tokenizer.json", stored)
    if vocab is not None:
        (folder / "vocab.txt").write_text(vocab, "utf-8")
    for name, value in files.items():
        write_json(folder / f"{name}.json", value)
    return folder


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("stored"), tokenizer_json=True)
    return (folder / "tokenizer.json").read_text("utf-8")


@functools.cache
def vocab_text() -> str:
    return "".join(f"{token}\n" for token in vocabulary())


def ids_of(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_files(folder, max_length=1000)
    return [tokenizer.encode([text]).ids.tolist() for text in TEXTS]


def reference_ids(folder: Path) -> list[list[int]]:
    found: list[list[int]] = AutoTokenizer.from_pretrained(str(folder))(TEXTS)["input_ids"]
    return found


def changed(stored: str, **sections: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(stored)
    for name, section in sections.items():
        value[name] = value[name] | section if isinstance(section, dict) and value[name] else section
    return value


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer"])
@pytest.mark.parametrize("lower", [True, False, None])
def test_tokenizer_config_decides_over_tokenizer_json(
    tokenizer_json: str, tmp_path: Path, name: str, lower: bool | None
) -> None:
    config = {"tokenizer_class": name} | ({} if lower is None else {"do_lower_case": lower})
    stored = changed(tokenizer_json, normalizer={"lowercase": not lower}, pre_tokenizer={"type": "Whitespace"})
    folder = write_folder(tmp_path, config=config, stored=stored)
    assert ids_of(folder) == reference_ids(folder)


@pytest.mark.parametrize("lower", [True, False])
def test_of_another_class_tokenizer_json_stands_as_it_is(tokenizer_json: str, tmp_path: Path, lower: bool) -> None:
    stored = changed(tokenizer_json, normalizer={"lowercase": lower}, pre_tokenizer={"type": "Whitespace"})
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": not lower}
    folder = write_folder(tmp_path, config=config, stored=stored)
    assert ids_of(folder) == reference_ids(folder)


def test_alone_tokenizer_json_stands_as_it_is(tokenizer_json: str, tmp_path: Path) -> None:
    """The reference would lower-case here, whatever the file says; the file is right."""
    cased = changed(tokenizer_json, normalizer={"lowercase": False, "strip_accents": False})
    alone = write_folder(tmp_path / "alone", stored=cased)
    told = {**BERT, "do_lower_case": False, "strip_accents": False}
    with_config = write_folder(tmp_path / "told", config=told, stored=cased)
    assert ids_of(alone) == ids_of(with_config) == reference_ids(with_config)


def test_stored_truncation_and_padding_are_off(tokenizer_json: str, tmp_path: Path) -> None:
    settings = {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    }
    for number, config in enumerate(({"config": BERT}, {})):
        plain = write_folder(tmp_path / f"plain{number}", stored=json.loads(tokenizer_json), **config)
        cut = write_folder(tmp_path / f"cut{number}", stored=json.loads(tokenizer_json) | settings, **config)
        assert ids_of(cut) == ids_of(plain)


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({}, {}),
        ({"tokenize_chinese_chars": False, "strip_accents": False}, {}),
        ({"strip_accents": True, "do_lower_case": False}, {}),
        ({"mask_token": {"__type": "AddedToken", "content": "[MASK]", **ADDED, "lstrip": True}}, {}),
        ({}, {"special_tokens_map": {"mask_token": {"content": "[MASK]", **ADDED, "lstrip": True}}}),
        ({}, {"added_tokens": {"<ent>": 2000, "newtoken": 2001}}),
        ({"additional_special_tokens": ["<ent>", "[ENT]"]}, {"added_tokens": {"[ENT]": 2001, "<ent>": 2000}}),
        ({"extra_special_tokens": ["[unused5]", "new"]}, {}),
        ({"extra_special_tokens": {"entity_token": "[ENT]"}}, {}),
        ({"entity_token": "<ent>"}, {}),
        ({"added_tokens_decoder": {"2000": {"content": "<ENT>", **ADDED, "normalized": True}}}, {}),
        (
            {"added_tokens_decoder": {"2000": {"content": "newtoken", **ADDED, "single_word": True}}},
            {"special_tokens_map": {"mask_token": "the"}},
        ),
        ({"split_special_tokens": True}, {}),
        ({"mask_token": "the", "pad_token": "[MASK]"}, {}),
    ],
)
def test_options_and_tokens_as_transformers_reads_them(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any]
) -> None:
    folder = write_folder(tmp_path, config=BERT | config, vocab=vocab_text(), **files)
    assert ids_of(folder) == reference_ids(folder)
    # And from the tokenizer.json that the reference would save beside it.
    AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer.save(str(folder / "tokenizer.json"))
    assert ids_of(folder) == reference_ids(folder)


@pytest.mark.parametrize(
    "vocab",
    [
        "{0}[UNK]\nhello\nworld\n",  # equal lines: the last one counts
        "{0}",
        "\n{0}\n\n",
        "[unused99]\r\n{1}",
    ],
)
def test_vocabularies_as_transformers_reads_them(tmp_path: Path, vocab: str) -> None:
    text = vocab.format(vocab_text(), vocab_text().replace("\n", "\r\n"))
    folder = write_folder(tmp_path, config=BERT)
    (folder / "vocab.txt").write_bytes(text.encode("utf-8"))
    assert ids_of(folder) == reference_ids(folder)


def test_without_any_settings_the_defaults_hold(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, vocab=vocab_text())
    assert ids_of(folder) == reference_ids(folder)
    tokenizer = Tokenizer.from_files(folder, max_length=16)
    assert (tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id) == (
        tuple(vocabulary().index(token) for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    )
    assert tokenizer.files == (folder / "vocab.txt",)
    assert tokenizer.vocab_size == len(vocabulary())


def test_truncation_side_left(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, config=BERT | {"truncation_side": "left"}, vocab=vocab_text())
    text = "one two three four five six seven eight"
    reference = AutoTokenizer.from_pretrained(str(folder))
    ours = Tokenizer.from_files(folder, max_length=6)
    assert ours.encode([text]).ids.tolist() == reference(text, truncation=True, max_length=6)["input_ids"]
    pair = (text, "the end of it all")
    expected = reference(*pair, truncation=True, max_length=9)["input_ids"]
    assert Tokenizer.from_files(folder, max_length=9).encode_pairs([pair]).ids.tolist() == expected


def test_a_special_token_that_nothing_numbers_gets_no_id(tmp_path: Path) -> None:
    """The reference would number it beyond the vocabulary, where the model has no embedding."""
    vocab = "".join(f"{token}\n" for token in vocabulary() if token not in ("[MASK]", "[PAD]"))
    tokenizer = Tokenizer.from_files(write_folder(tmp_path, config=BERT, vocab=vocab), max_length=64)
    assert tokenizer.mask_id is None
    assert tokenizer.pad_id is None
    assert tokenizer.vocab_size == len(vocabulary()) - 2
    assert tokenizer.encode(["a [MASK] b"]).ids.max() < tokenizer.vocab_size


def test_a_unigram_tokenizer_frames_texts_its_own_way(tmp_path: Path) -> None:
    pieces = [["<s>", 0.0], ["</s>", 0.0], ["<unk>", -9.0], ["▁the", -2.0], ["▁", -3.0], ["a", -4.0], ["t", -4.0]]
    stored = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 1],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": False},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "cls_token": "<s>"}
    folder = write_folder(tmp_path, config=config | {"sep_token": "</s>"}, stored=stored)
    tokenizer = Tokenizer.from_files(folder, max_length=8)
    assert tokenizer.encode(["the cat", "a" * 99]).ids.tolist() == [0, 3, 4, 2, 5, 6, 1, 0, 4, *[5] * 5, 1]
    assert tokenizer.encode_pairs([("a", "t")]).ids.tolist() == [0, 4, 5, 1, 1, 4, 6, 1]


def without(token: str) -> str:
    return vocab_text().replace(f"{token}\n", "")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor vocab.txt"),
        ({"vocab": without("[UNK]")}, r"lacks '\[UNK\]', its unk_token"),
        ({"vocab": without("[CLS]")}, r"lacks '\[CLS\]', its cls_token"),
        ({"vocab": without("[SEP]")}, r"lacks '\[SEP\]', its sep_token"),
        ({"vocab": ""}, r"lacks '\[UNK\]'"),
        ({"vocab": vocab_text(), "config": BERT | {"unk_token": "<unk>"}}, "lacks '<unk>'"),
        ({"vocab": vocab_text(), "config": {"tokenizer_class": "BertJapaneseTokenizer"}}, "BertJapaneseTokenizer"),
        ({"vocab": vocab_text(), "config": BERT | {"do_lower_case": "yes"}}, "do_lower_case is 'yes'"),
        ({"vocab": vocab_text(), "config": BERT | {"never_split": "word"}}, "never_split is 'word'"),
        ({"vocab": vocab_text(), "config": BERT | {"never_split": ["w"] * 1001}}, "1001 words; at most 1000"),
        ({"vocab": vocab_text(), "config": BERT | {"cls_token": 3}}, "3 is no token"),
        ({"vocab": vocab_text(), "added_tokens": {"<ent>": 2005}}, "'<ent>' should have id 2005"),
        ({"vocab": vocab_text(), "added_tokens": {"<ent>": "x"}}, "id is no number"),
        ({"stored": {"model": {"type": "WordPiece"}}}, "no vocabulary under model.vocab"),
        ({"stored": {"model": {"type": "BPE", "vocab": {"a": 0}}}}, "tokenizers library refuses it"),
        ({"stored": {"version": "1.0"}}, "no vocabulary"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer.from_files(write_folder(tmp_path / "m", **files), max_length=16)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": "\xff"}', b"null"])
def test_malformed_json_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_folder(tmp_path / "m", vocab=vocab_text())
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        Tokenizer.from_files(folder, max_length=16)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: is not UTF-8 at byte 6"):
        Tokenizer.from_files(folder, max_length=16)


def test_a_model_too_small_for_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_files(write_folder(tmp_path, vocab=vocab_text()), max_length=16)
    tokenizer.check_vocab_size(len(vocabulary()))
    with pytest.raises(CheckpointError, match=f"has id {len(vocabulary()) - 1}, but config.json's vocab_size is 9"):
        tokenizer.check_vocab_size(9)


def test_a_max_length_without_room(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, vocab=vocab_text())
    with pytest.raises(SettingsError, match="max_length: 2 leaves no room beside 2 special tokens; give 3"):
        Tokenizer.from_files(folder, max_length=2)
    with pytest.raises(SettingsError, match="max_length: 3 leaves no room beside 3"):
        Tokenizer.from_files(folder, max_length=3).encode_pairs([("a", "b")])


@pytest.mark.parametrize(
    "value", [None, 0, 1.5, True, "x", [], [1], [[]], {}, {"a": 1}, {"1": 1}, {"1": {"b": 2}}, "[UNK]"]
)
@pytest.mark.parametrize("where", ["config", "stored", "stored.model", "special_tokens_map", "added_tokens"])
def test_no_value_in_a_file_causes_another_error(tokenizer_json: str, tmp_path: Path, where: str, value: Any) -> None:
    stored = json.loads(tokenizer_json)
    config_keys = ["tokenizer_class", "do_lower_case", "never_split", "added_tokens_decoder", "extra_special_tokens"]
    config_keys += ["additional_special_tokens", "unk_token", "mask_token", "my_token", "truncation_side"]
    keys = {
        "config": [*config_keys, "split_special_tokens", "strip_accents"],
        "stored": list(stored),
        "stored.model": list(stored["model"]),
        "special_tokens_map": ["unk_token", "mask_token", "additional_special_tokens", "extra_special_tokens"],
        "added_tokens": ["<ent>", "[UNK]"],
    }[where]
    for number, key in enumerate(keys):
        for class_name in ("BertTokenizer", "PreTrainedTokenizerFast"):
            files: dict[str, Any] = {"config": {"tokenizer_class": class_name}, "stored": json.loads(tokenizer_json)}
            if where == "config":
                files["config"][key] = value
            elif where == "stored.model":
                files["stored"]["model"][key] = value
            else:
                files.setdefault(where, {})[key] = value
            folder = write_folder(tmp_path / f"{number}{class_name}", **files)
            with contextlib.suppress(CheckpointError):
                Tokenizer.from_files(folder, max_length=16)
