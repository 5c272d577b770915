"""Next sentence and multiple choice equal transformers' models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import raybert
from raybert.errors import RowError, SettingsError
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint


@pytest.fixture(name="sentences", scope="module")
def sentences_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("nsp"), heads=("next-sentence", "masked-lm"))


@pytest.fixture(name="choices", scope="module")
def choices_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("choices"), heads=("classifier",), config={"num_labels": 1})


def halves() -> list[tuple[str, str]]:
    return [("", "b"), ("a", ""), *((text[:80], text[80:600]) for text in stdlib_docstrings(60))]


def test_next_sentence(sentences: Path) -> None:
    ours = raybert.load(sentences, "next-sentence", dtype="float32", device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentences)
    model = transformers.BertForNextSentencePrediction.from_pretrained(sentences).eval()
    for (first, second), answer in zip(halves(), ours(halves()), strict=True):
        inputs = tokenizer([first], [second], return_tensors="pt", truncation=True)
        with torch.no_grad():
            expected = model(**inputs).logits[0].softmax(-1).tolist()
        assert answer.scores == pytest.approx(dict(zip(("IsNext", "NotNext"), expected, strict=True)), abs=1e-5)
        assert answer.label == max(answer.scores, key=answer.scores.__getitem__)
        assert answer.score == answer.scores[answer.label]
    assert len({answer.label for answer in ours(halves())}) == 2


def test_multiple_choice(choices: Path) -> None:
    ours = raybert.load(choices, "multiple-choice", dtype="float32", device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(choices)
    model = transformers.BertForMultipleChoice.from_pretrained(choices).eval()
    texts = stdlib_docstrings(120)
    items = [(texts[at][:90], texts[at + 1 : at + 2 + at % 4]) for at in range(0, 110, 3)]
    items.append(("long " * 90, ["short", "longer " * 200]))
    labels = set()
    for (prompt, options), answer in zip(items, ours(items), strict=True):
        inputs = tokenizer([prompt] * len(options), options, return_tensors="pt", truncation=True, padding=True)
        with torch.no_grad():
            logits = model(**{name: value[None] for name, value in inputs.items()}).logits[0]
        expected = dict(zip(options, logits.softmax(-1).tolist(), strict=True))
        assert answer.scores == pytest.approx(expected, abs=1e-5)
        assert answer.label == max(expected, key=expected.__getitem__)
        labels.add(options.index(answer.label))
    assert len(labels) > 1


def test_equal_choices_share_a_score_and_stay_apart(choices: Path) -> None:
    (answer,) = raybert.load(choices, "multiple-choice", dtype="float32", device="cpu")([("a", ["b", "b"])])
    assert answer.scores == {"b": pytest.approx(0.5)}
    assert np.isclose(answer.score, 0.5)


@pytest.mark.parametrize(
    "item", ["a", ("a",), ("a", "b"), ("a", []), ("a", ["b", 3]), ("a", ["\ud800"]), (None, ["b"])]
)
def test_what_is_no_prompt_with_choices(choices: Path, item: object) -> None:
    ours = raybert.load(choices, "multiple-choice")
    with pytest.raises(RowError, match=r"^row 1: "):
        ours([("fine", ["one", "two"]), item])


@pytest.mark.parametrize("task", ["next-sentence", "qa", "rerank", "multiple-choice"])
def test_lengths_that_hold_no_pair_are_refused_at_once(tmp_path: Path, task: str) -> None:
    heads = ("next-sentence", "qa", "classifier")
    folder = write_tiny_checkpoint(tmp_path, heads=heads, config={"num_labels": 1})
    with pytest.raises(SettingsError, match="max_length: 3 leaves no room beside 3 special tokens; give 4 or more"):
        raybert.load(folder, task, max_length=3)
    assert raybert.load(folder, task, max_length=5) is not None


@pytest.mark.parametrize("option", ["top_k", "max_answer_len", "max_question_len"])
def test_zero_is_no_default(tmp_path: Path, option: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, heads=("qa",))
    with pytest.raises(SettingsError, match=f"qa: {option} 0: takes a whole number from 1"):
        raybert.load(folder, "qa", **{option: 0})


@pytest.mark.parametrize("task", ["next-sentence", "qa"])
def test_a_text_where_a_pair_is_meant(tmp_path: Path, task: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, heads=("next-sentence", "qa"))
    with pytest.raises(RowError, match="row 0: expected a pair of texts, got str"):
        raybert.load(folder, task)(["a text"])
    with pytest.raises(RowError, match="row 0: expected a text, got tuple"):
        raybert.load(write_tiny_checkpoint(tmp_path / "n", heads=("classifier",)), "ner")([("a", "b")])
