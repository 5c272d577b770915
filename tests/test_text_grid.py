"""Ids over the whole grid of options: ours = transformers 5 = the pure-Python tokenizer before it.

Where those two contradict each other, ours is transformers 5's, and the texts concerned are left out of the
comparison with the recorded ids (`comparable` beside the record says which, and why). The exception are the
options never_split and do_basic_tokenize, which transformers 5 accepts and ignores.
"""

from __future__ import annotations

import functools
import json
import lzma
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import BertTokenizerFast

from raybert.checkpoint.hub import resolve
from raybert.text.build import punctuation
from raybert.text.encoding import Windows
from raybert.text.tokenizer import Tokenizer
from tests.fixtures import record_slow_tokenizer as slow
from tests.fixtures.record_slow_tokenizer import GRID, Case
from tests.tiny import stdlib_docstrings, write_json

WHOLE = 10**6  # a max length that no text here reaches


@functools.cache
def record() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(lzma.decompress(slow.RECORD.read_bytes()))
    return held


@functools.cache
def different_points() -> set[str]:
    return {chr(point) for low, high in record()["different"] for point in range(low, high + 1)}


@functools.cache
def generated() -> list[str]:
    texts = slow.generated_texts()
    assert slow.digest_of_texts(texts) == record()["texts_sha256"]
    return texts


@functools.cache
def texts() -> list[str]:
    return generated() + stdlib_docstrings(2000)


@functools.cache
def vocabulary_text(name: str) -> str:
    if name == "cased":
        return "\n".join(slow.cased_vocabulary()) + "\n"
    return (resolve("demo") / "vocab.txt").read_text("utf-8")


@functools.cache
def touched_by_never_split() -> list[bool]:
    """Which texts hold, after cleaning, the letters of a word that is never split."""
    clean = normalizers.BertNormalizer(True, False, False, False)
    words = [unicodedata.normalize("NFC", word).casefold() for word in slow.NEVER_SPLIT if word]

    def holds_one(text: str) -> bool:
        form = unicodedata.normalize("NFC", clean.normalize_str(text)).casefold()
        return any(word in form for word in words)

    return [holds_one(text) for text in texts()]


def write_folder(folder: Path, case: Case) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text(vocabulary_text(case.vocabulary), "utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **case.options()})
    return folder


def rows(windows: Windows) -> list[list[int]]:
    ids = windows.ids.tolist()
    ends = np.cumsum(windows.lengths).tolist()
    return [ids[begin:end] for begin, end in zip(windows.starts.tolist(), ends, strict=True)]


@functools.lru_cache(maxsize=1)
def transformers_rows(case: Case) -> list[list[int]]:
    """The installed transformers' ids of all texts; cached, because the grid's cases come in pairs of never_split."""
    with tempfile.TemporaryDirectory() as folder:
        reference = BertTokenizerFast.from_pretrained(str(write_folder(Path(folder, "vocab"), case)))
    found: list[list[int]] = reference(texts())["input_ids"]
    return found


@pytest.mark.parametrize("number", range(len(GRID)), ids=lambda number: "-".join(map(str, GRID[number])))
def test_ids_equal_both_references(number: int, tmp_path: Path) -> None:
    case, recorded = GRID[number], record()["cases"][number]
    assert Case(**recorded["case"]) == case
    folder = write_folder(tmp_path / "vocab", case)
    ours = Tokenizer.from_files(folder, max_length=WHOLE)
    got = rows(ours.encode(texts()))

    kept = slow.comparable(generated(), case, different_points())
    compared = [row for row, keep in zip(got[: len(kept)], kept, strict=True) if keep]
    for index, expected in recorded["ids"].items():  # these first: they name the text
        assert got[int(index)] == expected, generated()[int(index)]
    assert len(compared) == recorded["compared"] >= 5000
    assert slow.digest_of_ids(compared) == recorded["sha256"]

    if case.do_basic_tokenize:
        expected_rows = transformers_rows(case._replace(never_split=True))
        skip = touched_by_never_split() if case.never_split else [False] * len(texts())
        for text, row, expected_row, skipped in zip(texts(), got, expected_rows, skip, strict=True):
            assert skipped or row == expected_row, text

    both = tmp_path / "json"
    both.mkdir()
    reference = BertTokenizerFast.from_pretrained(str(folder))
    reference.backend_tokenizer.save(str(both / "tokenizer.json"))
    (both / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    built = Tokenizer.from_files(both, max_length=WHOLE)
    assert built.backend.to_str() == ours.backend.to_str()


def test_unicode_tables_differ_exactly_where_recorded(tmp_path: Path) -> None:
    """Every code point left out is really treated differently, and no other one is."""
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n", "utf-8")
    ours = Tokenizer.from_files(tmp_path, max_length=WHOLE).backend
    removed = {chr(point) for low, high in record()["different_removed"] for point in range(low, high + 1)}
    others = {chr(int(point)): words for point, words in record()["different_others"].items()}
    equal = []
    for point in slow.points():
        words = [word for word, _ in ours.pre_tokenizer.pre_tokenize_str(ours.normalizer.normalize_str(f"a{point}a"))]
        if point in different_points():
            assert words != (["aa"] if point in removed else others[point]), hex(ord(point))
        else:
            equal.append(words)
    assert slow.digest_of_words(equal) == record()["equal_sha256"]
    # What they are, by Unicode 14's categories: the slow tokenizer drops every unassigned code point (Cn), the
    # fast one keeps it. The fast one's tables are older for marks (Mn, Mc: it keeps 385 in words that should
    # lose their accents), punctuation (Pd, Pe, Po, Ps: not split off) and format characters (Cf: kept), it sets
    # 256 ideographs of extension E (Lo) apart too late, and U+166D (So) was punctuation once.
    assert record()["different_by_category"] == {
        "Cn": 829834,
        "Mn": 384,
        "Mc": 2,
        "Cf": 13,
        "Po": 94,
        "Ps": 4,
        "Pe": 4,
        "Pd": 2,
        "Lo": 256,
        "So": 1,
    }


def test_punctuation_lies_on_the_planes_that_are_asked() -> None:
    everything = "a".join(point for point in slow.points() if not point.isspace())
    words = {word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(everything)}
    assert {word for word in words if len(word) == 1} - {"a"} == punctuation()
