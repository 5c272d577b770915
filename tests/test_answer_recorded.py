"""Answers equal to those of transformers 4.57, the last with a question-answering pipeline; see record_answers.py."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

import raybert
from tests.fixtures import record_answers
from tests.vectors import one_thread_a_module  # noqa: F401  a fixture

LENGTHS = (48, 96, None)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return record_answers.recorded()


@pytest.fixture(scope="module")
def folder(recorded: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_answers.write_checkpoint(tmp_path_factory.mktemp("answers"), recorded["vocabulary"])


def cases_of(recorded: dict[str, Any], max_length: int | None, *, long: bool) -> list[dict[str, Any]]:
    """The cases with this length, and with long questions or without."""
    every = [case for case in recorded["cases"] if case["options"].get("max_length") == max_length]
    return [case for case in every if ("max_question_len" in case["options"]) == long]


def assert_equals_record(case: dict[str, Any], recorded: dict[str, Any], folder: Path) -> None:
    """One call with all pairs of the case gives the recorded answers, but for those of score 0."""
    options = {name: value for name, value in case["options"].items() if value is not None}
    pairs = [tuple(recorded["pairs"][number].values()) for number in case["pairs"]]
    model = raybert.load(folder, "qa", dtype="float32", device="cpu", **options)
    for number, (_, context), found, expected in zip(case["pairs"], pairs, model(pairs), case["answers"], strict=True):
        place = f"{options}, pair {number}"
        assert [answer.score for answer in found] == sorted((answer.score for answer in found), reverse=True), place
        likely = [answer for answer in found if answer.score > 0]
        assert [[answer.start, answer.end] for answer in likely] == [answer[:2] for answer in expected], place
        for answer, (start, end, score) in zip(likely, expected, strict=True):
            assert answer.text == context[start:end], place
            assert abs(answer.score - score) <= min(1e-5, 1e-3 * score), place


@pytest.mark.parametrize("max_length", LENGTHS)
def test_answers_equal_the_record(max_length: int | None, recorded: dict[str, Any], folder: Path) -> None:
    cases = cases_of(recorded, max_length, long=False)
    assert len(cases) == 36
    for case in cases:
        assert_equals_record(case, recorded, folder)


def test_answers_to_long_questions_equal_the_record(recorded: dict[str, Any], folder: Path) -> None:
    cases = cases_of(recorded, None, long=True)
    assert {case["options"]["max_question_len"] for case in cases} == {20, 64, 100}
    for case in cases:
        assert_equals_record(case, recorded, folder)


def test_the_record_holds_what_it_should(recorded: dict[str, Any]) -> None:
    assert recorded["transformers"].startswith("4.57.")
    assert recorded["left_out"] < 20
    options = [case["options"] for case in recorded["cases"]]
    for name in ("top_k", "max_answer_len", "stride", "max_length", "handle_impossible_answer", "align_to_words"):
        assert len({each[name] for each in options if name in each}) >= 2, name
    contexts = [pair["context"] for pair in recorded["pairs"]]
    assert any(not context.strip() for context in contexts)
    assert any("\n\n\n" in context for context in contexts)
    for name in ("CJK", "CYRILLIC", "COMBINING", "WITH ACUTE"):
        assert any(name in unicodedata.name(letter, "") for context in contexts for letter in context), name
    nulls = [answers for case in recorded["cases"] for answers in case["answers"] if [0, 0] in (a[:2] for a in answers)]
    assert any(answers[0][:2] != [0, 0] for answers in nulls)
    assert any(answers[0][:2] == [0, 0] and len(answers) > 1 for answers in nulls)
