"""Classify: equal to transformers' pipeline for texts and pairs, and what its options do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import raybert
from raybert.errors import CheckpointError, RowError, SettingsError
from raybert.tasks.classify import Classification
from tests.commands import Cli, cli_fixture  # noqa: F401  a fixture
from tests.oracle import one_thread  # noqa: F401  a fixture
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

LABELS = ["bad", "so-so", "good", "très bien"]
PROBLEMS = {
    "single": {"id2label": dict(enumerate(LABELS)), "problem_type": "single_label_classification"},
    "unsaid": {"id2label": dict(enumerate(LABELS))},
    "multi": {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "lone": {"num_labels": 1},
}


@pytest.fixture(scope="module", name="folders")
def folders_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("classifiers")
    return {
        name: write_tiny_checkpoint(base / name, heads=("classifier",), config=config)
        for name, config in PROBLEMS.items()
    }


def pipeline(folder: Path, **options: Any) -> Any:
    model = transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, **options)


def texts() -> list[str]:
    return [*stdlib_docstrings(150), "", "é", "x " * 500]


def pairs() -> list[tuple[str, str]]:
    chosen = [text for text in texts() if text]  # transformers takes a pair with an empty second text for one text
    return list(zip(chosen, reversed(chosen), strict=True))


def assert_equal(found: list[Classification], expected: list[list[dict[str, Any]]]) -> None:
    for answer, wanted in zip(found, expected, strict=True):
        theirs = {entry["label"]: entry["score"] for entry in wanted}
        assert answer.scores.keys() == theirs.keys()
        for label, score in answer.scores.items():
            assert score == pytest.approx(theirs[label], abs=1e-5, rel=1e-5)
        assert list(answer.scores) == [entry["label"] for entry in wanted]
        assert (answer.label, answer.score) == next(iter(answer.scores.items()))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_answers_equal_the_pipelines(folders: dict[str, Path], problem: str) -> None:
    classify = raybert.load(folders[problem], "text-classification", device="cpu", dtype="float32")
    theirs = pipeline(folders[problem])
    assert_equal(classify(texts()), theirs(texts(), truncation=True))
    given = [{"text": first, "text_pair": second} for first, second in pairs()]
    assert_equal(classify(pairs()), [theirs(pair, truncation=True) for pair in given])
    assert len({answer.label for answer in classify(texts())}) > 1 or len(classify.task.labels) == 1


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_activations_that_are_asked_for(folders: dict[str, Path], activation: str) -> None:
    classify = raybert.load(folders["multi"], "classify", dtype="float32", activation=activation)
    assert_equal(
        classify(texts()[:20]), pipeline(folders["multi"])(texts()[:20], truncation=True, function_to_apply=activation)
    )


def test_top_k_and_threshold(folders: dict[str, Path]) -> None:
    whole = raybert.load(folders["multi"], "classify", dtype="float32")(texts())
    best = raybert.load(folders["multi"], "classify", dtype="float32", top_k=2, threshold=0.4)(texts())
    assert len({len(answer.labels) for answer in best}) > 1
    for answer, full in zip(best, whole, strict=True):
        assert list(answer.scores.items()) == list(full.scores.items())[:2]
        assert answer.labels == [label for label, score in full.scores.items() if score >= 0.4]
        assert full.labels == [label for label, score in full.scores.items() if score >= 0.5]
    assert raybert.load(folders["single"], "classify")(["a"])[0].labels is None


def test_batch_is_single_and_in_order(folders: dict[str, Path]) -> None:
    classify = raybert.load(folders["single"], "classify", dtype="float32")
    together = classify(texts())
    for text, answer in zip(texts()[::9], together[::9], strict=True):
        (alone,) = classify([text])
        assert alone.label == answer.label
        assert list(alone.scores.values()) == pytest.approx(list(answer.scores.values()), abs=1e-6)
    assert classify([]) == []
    assert classify.columns == [
        "classify_label",
        "classify_score",
        "classify_scores",
        "classify_tokens",
        "classify_truncated",
    ]


def test_the_command_line_prints_objects(folders: dict[str, Path], cli: Cli) -> None:
    words = ["predict", "classify", "--model", str(folders["single"]), "--option", "top_k=2", "--dtype", "float32"]
    outcome = cli(*words, "a text", "another")
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines()]
    local = raybert.load(folders["single"], "classify", dtype="float32", top_k=2)(["a text", "another"])
    assert [list(line) for line in lines] == [["label", "score", "scores"]] * 2
    for line, answer in zip(lines, local, strict=True):
        assert line["scores"] == pytest.approx(answer.scores, abs=1e-6)
        assert len(str(line["score"])) <= 12


def test_the_command_line_takes_pairs_and_short_options(folders: dict[str, Path], cli: Cli) -> None:
    words = [
        "predict",
        "classify",
        "--model",
        str(folders["multi"]),
        "--dtype",
        "float32",
        "--top-k",
        "2",
        "--threshold",
        "0",
    ]
    lines = ['["a text", "another"]', "a text", '["one"]', "[not JSON", '["a", 3]']
    outcome = cli(*words, stdin="".join(f"{line}\n" for line in lines).encode())
    assert outcome.code == 0, outcome.err
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    local = raybert.load(folders["multi"], "classify", dtype="float32", top_k=2, threshold=0)
    expected = [*local([("a text", "another")]), *local(lines[1:])]
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["scores"] == pytest.approx(wanted.scores, abs=1e-6)
        assert sorted(answer["labels"]) == sorted(LABELS)
    assert answers[0]["scores"] != answers[1]["scores"]


def test_labels_of_one_name_keep_the_higher_score(tmp_path: Path) -> None:
    config = {"id2label": {0: "same", 1: "other", 2: "same"}}
    folder = write_tiny_checkpoint(tmp_path, heads=("classifier",), config=config)
    for answer in raybert.load(folder, "classify", dtype="float32")(texts()[:20]):
        assert answer.score == max(answer.scores.values()) == answer.scores[answer.label]


def test_what_can_not_be_honoured(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = write_tiny_checkpoint(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="has no classifier among its weights; heads it has: pooler"):
        raybert.load(plain, "classify")
    without = write_tiny_checkpoint(tmp_path / "without", heads=("classifier",), pooler=False)
    with pytest.raises(CheckpointError, match="has no pooler among its weights; heads it has: classifier"):
        raybert.load(without, "classify")
    for options, message in (
        ({"top_k": 5}, "classify: top_k 5: takes a whole number from 1 to 4"),
        ({"threshold": 2}, "classify: threshold 2: takes a number from 0 to 1"),
        ({"activation": "relu"}, "classify: activation: 'relu' is none of auto, softmax, sigmoid, none"),
        ({"pooling": "cls"}, "classify: unknown option 'pooling'"),
    ):
        with pytest.raises(SettingsError, match=message):
            raybert.load(folders["single"], "classify", **options)
    with pytest.raises(RowError, match="expected a pair of texts, got str"):
        raybert.load(folders["single"], "classify")([("a", "b"), "c"])


def test_the_fingerprint_follows_the_head(folders: dict[str, Path], tmp_path: Path) -> None:
    def mark(folder: Path, **options: Any) -> str:
        return raybert.load(folder, "classify", dtype="float32", **options).fingerprint

    same = write_tiny_checkpoint(tmp_path / "same", heads=("classifier",), config=PROBLEMS["single"], shards=2)
    assert mark(same) == mark(folders["single"]) == mark(same, top_k=1)
    other = write_tiny_checkpoint(tmp_path / "other", heads=("classifier",), config=PROBLEMS["single"])
    model = raybert.BertForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(other)
    lower = write_tiny_checkpoint(
        tmp_path / "lower", heads=("classifier",), config=PROBLEMS["single"], sentence={"do_lower_case": True}
    )
    marks = {mark(folder) for folder in (same, other, lower, folders["multi"])}
    assert len(marks | {mark(same, max_length=9), mark(same, activation="none")}) == 6
