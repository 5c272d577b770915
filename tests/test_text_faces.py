"""`BertTokenizer` and `BertTokenizerFast`: equal to transformers over all options of texts, pairs and calls."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from raybert import BertTokenizer, BertTokenizerFast
from raybert.checkpoint.hub import resolve
from raybert.errors import CheckpointError, OutputError, SettingsError, UsageError
from raybert.text.batch_encoding import BatchEncoding
from raybert.text.vocabulary import clean_up
from tests.fixtures import record_slow_tokenizer as slow
from tests.tiny import stdlib_docstrings, write_json, write_tiny_checkpoint

VOCABULARY = resolve("demo") / "vocab.txt"
OPTIONS = [
    {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    for lower, accents, chinese in itertools.product((True, False), (None, True, False), (True, False))
]
CASES = 48
TEXTS_A_CASE = 425  # 48 cases of 425 rows are 20,400
PARTS = ("input_ids", "token_type_ids", "attention_mask")


@cache
def texts() -> list[str]:
    return slow.generated_texts() + stdlib_docstrings(2000) + ["", " ", "[MASK] is [SEP] here", "[CLS]"]


def tokenizers_of(options: dict[str, Any], **settings: Any) -> tuple[BertTokenizer, Any]:
    ours = BertTokenizer(VOCABULARY, **options, **settings)
    settings.setdefault("clean_up_tokenization_spaces", True)  # transformers 5 lost this default of the reference
    theirs = transformers.BertTokenizer(vocab=str(VOCABULARY), **options, **settings)
    return ours, theirs


def random_call(rng: random.Random, *, pairs: bool) -> dict[str, Any]:
    strategies = [
        None,
        True,
        False,
        "longest_first",
        "do_not_truncate",
        *(["only_first", "only_second"] if pairs else []),
    ]
    truncation = rng.choice(strategies)
    call: dict[str, Any] = {"truncation": truncation, "padding": rng.choice([True, False, "longest", "max_length"])}
    cut_whole = truncation not in {"only_first", "only_second"}
    # The library refuses to cut one text of a pair away where the other is too long already.
    call["max_length"] = rng.choice([7, 16, 48]) if cut_whole else 4000
    if truncation not in {None, False, "do_not_truncate"} and cut_whole:
        call["stride"] = rng.choice([0, 1, 2])
        call["return_overflowing_tokens"] = rng.random() < 0.4
    if rng.random() < 0.3 and call["max_length"] % 8 == 0:
        call["pad_to_multiple_of"] = 8
    call["add_special_tokens"] = rng.random() < 0.8
    call["padding_side"] = rng.choice([None, "left", "right"])
    for name in ("special_tokens_mask", "offsets_mapping", "length"):
        call[f"return_{name}"] = rng.random() < 0.5
    for name in ("token_type_ids", "attention_mask"):
        call[f"return_{name}"] = rng.choice([None, True, False])
    return call


@pytest.mark.filterwarnings("ignore:`max_length` is ignored when `padding`:UserWarning:transformers")
@pytest.mark.parametrize("case", range(CASES))
def test_calls_equal_transformers(case: int) -> None:
    rng = random.Random(case)
    side = rng.choice(["right", "left"])
    ours, theirs = tokenizers_of(OPTIONS[case % len(OPTIONS)], truncation_side=side, model_max_length=64)
    chosen = rng.sample(texts(), TEXTS_A_CASE)
    pairs = case % 3 != 0
    arguments = (chosen, rng.sample(texts(), TEXTS_A_CASE)) if pairs else (chosen,)
    call = random_call(rng, pairs=pairs)
    found, expected = ours(*arguments, **call), theirs(*arguments, **call)
    assert list(found) == list(expected)
    for name in expected:
        assert found[name] == expected[name], (name, call)
    for row in range(0, len(expected["input_ids"]), 50):
        assert found.tokens(row) == expected.tokens(row)
        assert found.word_ids(row) == expected.word_ids(row)
        assert found.sequence_ids(row) == expected.sequence_ids(row)
    decoded = [row for row in found["input_ids"] if row][:40]
    for skip in (True, False):
        for clean in (None, True, False):
            wanted = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            assert ours.batch_decode(decoded, **wanted) == theirs.batch_decode(decoded, **wanted)


@pytest.mark.parametrize("pair", [None, "And a second one."])
def test_one_text_is_a_row_without_a_batch(pair: str | None) -> None:
    ours, theirs = tokenizers_of(OPTIONS[0])
    text = "Tokenization's first, simple example: unaffable."
    found, expected = ours(text, pair), theirs(text, pair)
    assert dict(found) == dict(expected)
    assert ours.encode(text, pair) == theirs.encode(text, pair)
    assert ours.tokenize(text, pair) == theirs.tokenize(text, pair)
    assert found.input_ids == found["input_ids"]
    assert ours([])["input_ids"] == []
    assert ours.encode(text, pair, verbose=False) == ours.encode(text, pair)
    for place in ((1,), (0, 4)):
        assert found.token_to_chars(*place) == tuple(expected.token_to_chars(*place))
        assert found.token_to_word(*place) == expected.token_to_word(*place)
        assert found.char_to_token(*place) == expected.char_to_token(*place)
        assert found.char_to_word(*place) == expected.char_to_word(*place)
        assert found.word_to_tokens(*place) == tuple(expected.word_to_tokens(*place))
        assert found.word_to_chars(*place) == tuple(expected.word_to_chars(*place))
    assert found.token_to_chars(1).start == 0
    assert found.token_to_chars(0) is None
    assert found[0].ids == found["input_ids"]
    with pytest.raises(AttributeError, match="has no 'labels'; it has input_ids"):
        _ = found.labels


def test_words_instead_of_texts() -> None:
    ours, theirs = tokenizers_of(OPTIONS[0])
    words = [["Hello", "unaffable", "world"], ["A", "b"]]
    call = {"is_split_into_words": True, "padding": True, "return_offsets_mapping": True}
    found, expected = ours(words, **call), theirs(words, **call)
    assert dict(found) == dict(expected)
    assert found.word_ids(0) == expected.word_ids(0)
    assert dict(ours(words[0], is_split_into_words=True)) == dict(theirs(words[0], is_split_into_words=True))


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors(kind: str) -> None:
    ours, theirs = tokenizers_of(OPTIONS[0])
    call = {"padding": True, "return_tensors": kind}
    found, expected = (
        ours(["a text", "another, longer text"], **call),
        theirs(["a text", "another, longer text"], **call),
    )
    assert list(found) == list(expected)
    for name in PARTS:
        assert type(found[name]) is type(expected[name])
        assert found[name].dtype == expected[name].dtype
        assert np.array_equal(np.asarray(found[name]), np.asarray(expected[name]))
    assert ours("one", return_tensors=kind)["input_ids"].shape == (1, 3)
    if kind == "pt":
        assert found.to("meta")["input_ids"].device == torch.device("meta")
    with_labels = BatchEncoding({"labels": [[0.0, 0.5]]}).convert_to_tensors(kind)
    assert np.array_equal(np.asarray(with_labels["labels"]), np.array([[0.0, 0.5]], np.float32))
    with pytest.raises(UsageError, match="rows of unequal lengths make no tensor; pass padding=True"):
        ours(["a", "a b c"], return_tensors=kind)


def test_names_conversions_and_the_framing_functions() -> None:
    ours, theirs = tokenizers_of(OPTIONS[0])
    for role in ("unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token")
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id")
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    assert ours.convert_tokens_to_ids(["hello", "[MASK]", "no such token"]) == theirs.convert_tokens_to_ids(
        ["hello", "[MASK]", "no such token"]
    )
    ids = ours("hello unaffable")["input_ids"]
    for skip in (True, False):
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)
    assert ours.convert_tokens_to_string(["una", "##ffa", "##ble"]) == "unaffable"
    for pair in (True, False):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    first, second = ours.encode("a b", add_special_tokens=False), ours.encode("c", add_special_tokens=False)
    for parts, texts_of in (((first,), ("a b",)), ((first, second), ("a b", "c"))):
        whole = ours(*texts_of, return_special_tokens_mask=True)
        assert ours.build_inputs_with_special_tokens(*parts) == whole["input_ids"]
        assert ours.create_token_type_ids_from_sequences(*parts) == whole["token_type_ids"]
        assert ours.get_special_tokens_mask(*parts) == whole["special_tokens_mask"]
        assert (
            ours.get_special_tokens_mask(whole["input_ids"], already_has_special_tokens=True)
            == (whole["special_tokens_mask"])
        )
    with pytest.raises(UsageError, match="ids: 99999 is no token's; ids are 0 to 30521"):
        ours.convert_ids_to_tokens([99999])
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ours.nothing


def test_decode_takes_lists_arrays_tensors_and_batches() -> None:
    ours, _ = tokenizers_of(OPTIONS[0])
    ids = ours("hello , world !")["input_ids"]
    expected = ours.decode(ids)
    assert expected == "[CLS] hello, world! [SEP]"
    assert ours.decode(np.array(ids)) == ours.decode(torch.tensor(ids)) == expected
    assert ours.decode([ids, ids[:2]]) == [expected, "[CLS] hello"]
    assert ours.decode(torch.tensor([ids])) == [expected]
    assert BertTokenizerFast(VOCABULARY).decode(ours("' a '")["input_ids"], True) == "' a '"
    assert ours.decode(ids[1]) == ours.decode(np.int64(ids[1])) == "hello"
    assert ours.decode(list(np.array(ids))) == ours.decode([torch.tensor(index) for index in ids]) == expected
    assert ours.convert_ids_to_tokens(np.int64(ids[1])) == "hello"
    assert clean_up("do n't , I 'm") == "don't, I'm"


def test_added_tokens_are_found_whole() -> None:
    ours, theirs = tokenizers_of(OPTIONS[0])
    for tokens in (["newtoken", "Ada-Lovelace", "hello"], "newtoken", ["another"]):
        assert ours.add_tokens(tokens) == theirs.add_tokens(tokens)
    more = {"additional_special_tokens": ["[E1]", "[E2]"]}
    assert ours.add_special_tokens(more) == theirs.add_special_tokens(more) == 2
    text = "a newtoken for Ada-Lovelace and [E1] hello [E2]"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert len(ours) == len(theirs)
    ids = ours(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    with pytest.raises(UsageError, match="special_tokens_dict: 'no_token'"):
        ours.add_special_tokens({"no_token": "x"})


def test_never_split_words_stay_whole_and_added_tokens_beside_them() -> None:
    ours = BertTokenizer(VOCABULARY, never_split=["c++", "unaffable", "ada#1"])
    plain = BertTokenizer(VOCABULARY)
    text = "I write C++ and unaffable Ada#1 things"
    assert ours.tokenize(text) == ["i", "write", "c++", "and", "unaffable", "ada#1", "things"]
    unk = ours.unk_token_id
    assert ours(text, add_special_tokens=False)["input_ids"] == [
        unk if token in {"c++", "unaffable", "ada#1"} else plain.convert_tokens_to_ids(token)
        for token in ours.tokenize(text)
    ]
    assert len(ours) == len(plain)
    assert ours.get_vocab() == plain.get_vocab()
    assert ours.vocab_size == plain.vocab_size
    assert ours.add_tokens(["freshtoken"]) == plain.add_tokens(["freshtoken"]) == 1
    assert ours.convert_tokens_to_ids("freshtoken") == plain.convert_tokens_to_ids("freshtoken") == len(plain) - 1
    assert ours.tokenize("C++ freshtoken") == ["c++", "freshtoken"]


def test_saved_it_is_the_same_tokenizer_here_and_in_transformers(tmp_path: Path) -> None:
    ours = BertTokenizer(
        VOCABULARY,
        do_lower_case=False,
        never_split=["C++"],
        model_max_length=128,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        cls_token="[MASK]",
        eos_token="[SEP]",
    )
    ours.add_tokens(["fresh"])
    ours.add_special_tokens({"additional_special_tokens": ["[E1]"]})
    paths = ours.save_pretrained(tmp_path / "t")
    assert sorted(Path(path).name for path in paths) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    again = BertTokenizer.from_pretrained(tmp_path / "t")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    call = {"padding": "max_length", "truncation": True}
    for text in ("Hello fresh [E1] C++ world", *stdlib_docstrings(50)):
        assert dict(again(text, **call)) == dict(ours(text, **call))
        if "C++" not in text:
            assert dict(theirs(text, **call)) == dict(ours(text, **call))
    assert (theirs.model_max_length, theirs.padding_side) == (128, "left")
    assert again.tokenize("C++") == ["C++"]
    assert (again.cls_token, again.eos_token_id) == (theirs.cls_token, theirs.eos_token_id) == ("[MASK]", 102)
    assert again.get_added_vocab() == ours.get_added_vocab()
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(Path(path).name for path in paths)
    (path,) = ours.save_vocabulary(tmp_path, "my")
    assert Path(path) == tmp_path / "my-vocab.txt"
    assert Path(path).read_bytes() == VOCABULARY.read_bytes()
    with pytest.raises(OutputError, match=r"nowhere.*can't be written"):
        ours.save_vocabulary(tmp_path / "nowhere")


def test_a_vocabulary_with_lines_twice_keeps_its_ids(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "a", "b"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    ours = BertTokenizer(tmp_path / "vocab.txt")
    (path,) = ours.save_vocabulary(tmp_path, "again")
    assert ours("a b", add_special_tokens=False)["input_ids"] == [7, 8]
    assert BertTokenizer(path).get_vocab() == ours.get_vocab()


def test_special_tokens_are_named_anew() -> None:
    ours, theirs = tokenizers_of(OPTIONS[0])
    for tokenizer in (ours, theirs):
        tokenizer.pad_token = "[MASK]"
        tokenizer.bos_token = tokenizer.cls_token
        assert tokenizer.add_special_tokens({"eos_token": "[END]"}) == 1
    call = {"padding": True}
    assert dict(ours(["a", "a b [END]"], **call)) == dict(theirs(["a", "a b [END]"], **call))
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    ours.cls_token = "[END]"
    assert ours("a")["input_ids"][0] == ours.eos_token_id == len(ours) - 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_is_the_same_tokenizer(copied: Any) -> None:
    ours = BertTokenizer(VOCABULARY, never_split=["c++"], model_max_length=7)
    ours.add_tokens(["freshtoken"])
    again = copied(ours)
    for text in ("a c++ freshtoken", *stdlib_docstrings(5)):
        assert dict(again(text, truncation=True)) == dict(ours(text, truncation=True))
    again.pad_token = "[MASK]"
    assert ours.pad_token == "[PAD]"


def test_from_pretrained_reads_the_settings(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m", tokenizer={"do_lower_case": False, "padding_side": "left"})
    ours, theirs = BertTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert (ours.model_max_length, ours.padding_side) == (theirs.model_max_length, theirs.padding_side) == (128, "left")
    assert ours("Ada WAS here")["input_ids"] == theirs("Ada WAS here")["input_ids"]
    lower = BertTokenizer.from_pretrained(folder, do_lower_case=True, model_max_length=9)
    assert lower("Ada WAS here")["input_ids"] == ours("ada was here")["input_ids"]
    assert lower.model_max_length == 9
    assert len(BertTokenizer.from_pretrained("demo")) == 30522


def test_fast_takes_a_vocabulary_or_a_tokenizer_file(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m", tokenizer_json=True)
    files = {"vocab_file": folder / "vocab.txt", "tokenizer_file": folder / "tokenizer.json"}
    expected = BertTokenizer(folder / "vocab.txt")("The iterator, unaffable.")["input_ids"]
    for name, path in files.items():
        assert BertTokenizerFast(**{name: path})("The iterator, unaffable.")["input_ids"] == expected
    other = BertTokenizer(folder / "vocab.txt")
    other.add_tokens(["unaffable"])
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").rename(folder / "mine.json")
    mine = BertTokenizerFast(tokenizer_file=folder / "mine.json")
    assert "unaffable" in mine.tokenize("The iterator, unaffable.")
    with pytest.raises(CheckpointError, match=r"nothing\.json: no such file"):
        BertTokenizerFast(tokenizer_file=tmp_path / "nothing.json")


def test_calls_at_once_keep_their_own_limits() -> None:
    ours, _ = tokenizers_of(OPTIONS[0])
    text = "one two three four five six seven eight nine ten"
    expected = {length: ours(text, truncation=True, max_length=length)["input_ids"] for length in range(3, 12)}

    def encode(length: int) -> bool:
        return bool(ours(text, truncation=True, max_length=length)["input_ids"] == expected[length])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(encode, list(expected) * 100))


def test_a_pickled_batch_keeps_its_values() -> None:
    ours, _ = tokenizers_of(OPTIONS[0])
    batch = ours(["a", "b c"])
    assert dict(pickle.loads(pickle.dumps(batch))) == dict(batch)


@pytest.mark.parametrize(
    ("arguments", "call", "message"),
    [
        ((3,), {}, "text: int; takes a text or a list of texts"),
        ((["a"], "b"), {}, "text_pair: one text beside 1 texts"),
        ((["a"], ["b", "c"]), {}, "text_pair: 2 texts beside 1 texts"),
        (("a",), {"truncation": "first"}, "truncation: 'first'; takes one of longest_first"),
        (("a",), {"padding": "longer"}, "padding: 'longer'; takes one of longest"),
        (("a",), {"padding": True, "padding_side": "up"}, "padding_side: 'up'; takes one of right, left"),
        (("a",), {"return_tensors": "tf"}, "return_tensors: 'tf'; takes one of pt, np"),
        (("a",), {"truncation": True, "max_length": -1}, "max_length: -1; takes a whole number from 0"),
        (
            ("a",),
            {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8},
            "pad_to_multiple_of: 8 does not divide the truncation's length 9",
        ),
        (("a b c d",), {"truncation": True, "max_length": 4, "stride": 9}, "text: the tokenizers library refuses it"),
        (([3],), {}, "text: the tokenizers library refuses it"),
    ],
)
def test_what_can_not_be_meant(arguments: tuple[Any, ...], call: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BertTokenizer(VOCABULARY)(*arguments, **call)


def test_options_that_can_not_be_meant(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="vocab_file: missing"):
        BertTokenizer()
    with pytest.raises(SettingsError, match="do_lowercase: no option of this tokenizer"):
        BertTokenizer(VOCABULARY, do_lowercase=True)
    for wrong, message in (
        ({"never_split": "abc"}, "never_split: 'abc'; takes a list of words"),
        ({"padding_side": "up"}, "padding_side: 'up' is none of right, left"),
        ({"clean_text": False}, "clean_text, wordpieces_prefix: BERT's own"),
    ):
        with pytest.raises(SettingsError, match=message):
            BertTokenizer(VOCABULARY, **wrong)
    with pytest.raises(CheckpointError, match=r"lacks '\[NOPE\]', its sep_token"):
        BertTokenizer(VOCABULARY, sep_token="[NOPE]")
    folder = write_tiny_checkpoint(tmp_path / "m", tokenizer_json=True)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(SettingsError, match=r"do_lower_case: this tokenizer\.json stands as it is"):
        BertTokenizer.from_pretrained(folder, do_lower_case=False)
