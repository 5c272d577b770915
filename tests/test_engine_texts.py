"""Texts of any length and content are answered, and what is no text is refused with its row; nothing crashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raybert
from raybert import predict
from raybert.errors import CheckpointError, RowError, SettingsError, UsageError
from raybert.predict import Predictor
from tests.tiny import write_tiny_checkpoint
from tests.vectors import assert_same, cosines, one_thread_a_module  # noqa: F401  a fixture

WIDTH = 32


@pytest.fixture(scope="module")
def embed(tiny: Path) -> Iterator[Predictor]:
    with raybert.load(str(tiny), "embed", dtype="float32", threads=1) as predictor:
        yield predictor


@pytest.mark.parametrize("texts", [[], ()], ids=repr)
def test_no_texts_give_no_vectors(embed: Predictor, texts: Any) -> None:
    found = embed(texts)
    assert found.shape == (0, WIDTH)
    assert found.dtype == np.float32


ODD_TEXTS = {
    "empty": "",
    "blanks": " \t\r\n\v\f ",
    "wide blanks": "\u00a0\u2003\u3000\u2028\u2029\u0085",
    "one NUL": "\0",
    "NUL inside": "a\0b",
    "control characters": "".join(map(chr, [*range(32), *range(0x7F, 0xA0)])),
    "emoji": "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "combining": "e" + "\u0301" * 1000,
    "right to left": "שלום עליכם مرحبا",
    "CJK": "中文日本語東京한국어",
    "private use": "\ue000\U000f0000\U0010fffd",
    "not characters": "\ufffe\uffff\U0010ffff",
    "replacement": "\ufffd",
    "byte order mark": "\ufefftext",
    "zero width": "\u200b\u200c\u200d\u2060",
    "special tokens": "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "one long word": "a" * 10_000,
    "markup": "<script>alert(1)</script> %s %n {} \\x00",
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_texts_are_answered(embed: Predictor, name: str) -> None:
    found = embed(["before", ODD_TEXTS[name], "after"])
    assert found.shape == (3, WIDTH)
    assert np.isfinite(found).all()
    assert_same(found[[0, 2]], embed(["before", "after"]))


def test_texts_without_a_word_are_the_empty_text(embed: Predictor) -> None:
    assert_same(embed([" \t\n", "\0", "\u200b", "\ufffd"]), np.repeat(embed([""]), 4, axis=0))


def test_a_megabyte(embed: Predictor) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 23_000
    assert len(text) > 1_000_000
    windows = embed.task.encode([text])
    assert windows.lengths.tolist() == [128]
    assert windows.tokens[0] > 230_000
    assert windows.truncated.tolist() == [True]
    assert_same(embed([text]), embed([text[:3000]]))  # its first tokens decide


def test_ten_thousand_copies(embed: Predictor) -> None:
    found = embed(["the same text"] * 10_000)
    assert found.shape == (10_000, WIDTH)
    assert cosines(found, np.repeat(found[:1], 10_000, axis=0)).min() >= 0.999999


NO_TEXTS = {
    "None": (None, "null", "the text is missing"),
    "int": (7, "wrong_type", "expected a text, got int"),
    "bytes": (b"text", "wrong_type", "expected a text, got bytes"),
    "list": (["text"], "wrong_type", "expected a text, got list"),
    "NaN": (float("nan"), "wrong_type", "expected a text, got float"),
    "high surrogate": ("fine\ud83d", "lone_surrogate", "character 4 is U\\+D83D"),
    "low surrogate": ("\udcff", "lone_surrogate", "character 0 is U\\+DCFF"),
}


@pytest.mark.parametrize("row", [0, 2, 3, 8])
@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_refused_with_its_row(
    embed: Predictor, monkeypatch: pytest.MonkeyPatch, name: str, row: int
) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ITEMS", 3)
    value, reason, detail = NO_TEXTS[name]
    texts: list[Any] = [f"text {number}" for number in range(9)]
    texts[row] = value
    with pytest.raises(RowError, match=f"row {row}: {detail}") as caught:
        embed(texts)
    assert caught.value.row == row
    assert caught.value.reason == reason


def test_the_first_bad_row_is_named(embed: Predictor) -> None:
    with pytest.raises(RowError, match="row 1: "):
        embed(["fine", None, 3])  # type: ignore[list-item]


@pytest.mark.parametrize("texts", ["a text", b"a text"], ids=repr)
def test_one_bare_text_is_refused(embed: Predictor, texts: Any) -> None:
    with pytest.raises(UsageError, match=r"bare (str|bytes) where a list of texts is meant; pass \[text\]"):
        embed(texts)


@pytest.mark.parametrize("texts", [None, 5])
def test_what_is_no_list_is_a_type_error(embed: Predictor, texts: Any) -> None:
    with pytest.raises(TypeError):
        embed(texts)


def test_any_sequence_of_texts_will_do(embed: Predictor) -> None:
    expected = embed(["one", "two"])
    for texts in (("one", "two"), np.array(["one", "two"]), (word for word in ("one", "two"))):
        assert np.array_equal(embed(texts), expected)  # type: ignore[arg-type]


any_text = st.text(st.characters(), max_size=40)  # without surrogates, which no UTF-8 can carry
odd_text = st.text(st.sampled_from("aé中\u0301\u200d😀\0\ufffd[]#' \n\u2028"), max_size=40)


@settings(max_examples=60)
@given(st.lists(any_text | odd_text, max_size=8))
def test_generated_texts_are_answered(embed: Predictor, texts: list[str]) -> None:
    found = embed(texts)
    assert found.shape == (len(texts), WIDTH)
    assert np.isfinite(found).all()
    if texts:
        assert_same(found[:1], embed(texts[:1]))


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(categories=["Cs", "Lu", "So"]), max_size=5), min_size=1, max_size=5))
def test_generated_texts_with_surrogates_are_answered_or_refused(embed: Predictor, texts: list[str]) -> None:
    broken = [row for row, text in enumerate(texts) if any("\ud800" <= char <= "\udfff" for char in text)]
    if not broken:
        assert len(embed(texts)) == len(texts)
        return
    with pytest.raises(RowError) as caught:
        embed(texts)
    assert caught.value.row == broken[0]


def test_a_tokenizer_of_another_model_is_refused_when_loading(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, config={"vocab_size": 100})
    with pytest.raises(CheckpointError, match=r"config.json's vocab_size is 100; the two belong to different models"):
        raybert.load(str(folder), "embed")


def test_a_missing_tokenizer_is_told_when_loading(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path)
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer|vocab"):
        raybert.load(str(folder), "embed")


@pytest.mark.parametrize("prompt", ["\ud800", 5, True], ids=ascii)
def test_prompts_that_are_no_text_are_refused(tiny: Path, prompt: Any) -> None:
    with pytest.raises(SettingsError, match=r"embed: prompt .*; pass a text"):
        raybert.load(str(tiny), "embed", prompt=prompt)
