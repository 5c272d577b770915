"""``raybert predict`` of every task: what a line means, one JSON value a line, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import raybert
from raybert.cli.answers import plain
from tests.commands import Cli, assert_one_line, cli_fixture  # noqa: F401
from tests.tiny import write_tiny_checkpoint

PLANTS = "Plants create [MASK] through a process known as photosynthesis."


@pytest.fixture(name="words", scope="module")
def words_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("words"), heads=("masked-lm", "next-sentence", "qa"))


@pytest.fixture(name="one", scope="module")
def one_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("one"), heads=("classifier",), config={"num_labels": 1})


@pytest.fixture(name="tags", scope="module")
def tags_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"num_labels": 2, "id2label": {0: "X", 1: "B-Y"}}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tags"), heads=("classifier",), config=config)


def answers(cli: Cli, task: str, model: Path, lines: list[str], *options: str) -> list[Any]:
    stdin = "".join(f"{line}\n" for line in lines).encode()
    arguments = ("predict", task, "--model", str(model), "--dtype", "float32", "--device", "cpu", *options)
    outcome = cli(*arguments, stdin=stdin)
    assert outcome.code == 0, outcome
    return [json.loads(line) for line in outcome.out.splitlines()]


def expected(task: str, model: Path, items: list[Any], **options: Any) -> list[Any]:
    predictor = raybert.load(str(model), task, dtype="float32", device="cpu", **options)
    found = [predictor(*item) for item in items] if task == "rerank" else predictor(items)
    return json.loads(json.dumps([plain(answer) for answer in found]))  # type: ignore[no-any-return]


def test_the_filter(cli: Cli, words: Path) -> None:
    (masks,) = answers(cli, "fill-mask", words, [PLANTS], "--top-k", "3")
    assert len(masks) == 1
    assert [sorted(fill) for fill in masks[0]] == [["score", "text", "token", "token_id"]] * 3
    assert masks[0][0]["text"].startswith("plants create ")
    assert "[MASK]" not in masks[0][0]["text"]
    assert [masks] == expected("fill-mask", words, [PLANTS], top_k=3)


def test_entities(cli: Cli, tags: Path) -> None:
    lines = [PLANTS, "", '["this", "is a text"]']
    found = answers(cli, "ner", tags, lines)
    assert found == expected("ner", tags, lines)
    assert set(found[0][0]) == {"label", "score", "start", "end", "text"}
    raw = answers(cli, "token-classification", tags, lines, "--aggregation", "none", "--option", "ignore_labels=")
    assert all(set(each) == {"label", "score", "start", "end", "text", "index", "token"} for each in raw[0] + raw[2])
    assert raw[0] + raw[2]
    assert {each["label"] for each in raw[0]} <= {"X", "B-Y"}


@pytest.mark.parametrize(
    ("task", "lines", "items"),
    [
        (
            "qa",
            ['{"question": "who?", "context": "It was Ada."}', '["what?", "A text. "]'],
            [("who?", "It was Ada."), ("what?", "A text. ")],
        ),
        ("next-sentence", ['["one.", "two."]'], [("one.", "two.")]),
    ],
)
def test_pairs(cli: Cli, words: Path, task: str, lines: list[str], items: list[Any]) -> None:
    assert answers(cli, task, words, lines) == expected(task, words, items)


@pytest.mark.parametrize(
    ("task", "keys"), [("rerank", ("query", "documents")), ("multiple-choice", ("prompt", "choices"))]
)
def test_lists(cli: Cli, one: Path, task: str, keys: tuple[str, str]) -> None:
    items = [("how", ["this way", "that way", ""]), ("why", ["because"])]
    as_objects = [json.dumps(dict(zip(keys, item, strict=True))) for item in items]
    as_arrays = [json.dumps(item) for item in items]
    wanted = expected(task, one, items)
    assert answers(cli, task, one, as_objects) == answers(cli, task, one, as_arrays) == wanted
    if task == "rerank":
        assert sorted(each["index"] for each in wanted[0]) == [0, 1, 2]


def test_other_outputs_of_embed(cli: Cli, words: Path) -> None:
    (states,) = answers(cli, "embed", words, ["a text"], "--option", "output=tokens")
    assert [len(state) for state in states] == [32] * 4
    (sparse,) = answers(cli, "embed", words, ["a text"], "--option", "output=sparse")
    assert len(sparse["ids"]) == len(sparse["weights"]) > 0
    assert all(isinstance(number, int) for number in sparse["ids"])
    (slid,) = answers(cli, "embed", words, ["word " * 300], "--windows", "slide", "--stride", "8")
    assert slid == expected("embed", words, ["word " * 300], windows="slide", stride=8)[0]


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("qa", "a question", 'row 1: qa: expected a line of JSON such as {"question": ..., "context": ...}'),
        ("qa", '{"question": "a", "contex": "b"}', "row 1: qa: expected a line of JSON such as"),
        ("qa", '{"question": "a", "context": null}', "row 1: qa: expected a line of JSON such as"),
        (
            "next-sentence",
            '["a", "b", "c"]',
            'row 1: next-sentence: expected a line of JSON such as ["first", "second"]',
        ),
    ],
)
def test_lines_of_another_form(cli: Cli, words: Path, task: str, line: str, message: str) -> None:
    outcome = cli("predict", task, "--model", str(words), stdin=f'["a", "b"]\n{line}\n'.encode())
    assert_one_line(outcome, 2)
    assert message in outcome.err


@pytest.mark.parametrize("line", ['{"query": "a", "documents": "b"}', '["a", ["b", 3]]', "[", '["a", "b"]'])
def test_rerank_wants_a_list(cli: Cli, one: Path, line: str) -> None:
    outcome = cli("predict", "rerank", "--model", str(one), stdin=f"{line}\n".encode())
    assert_one_line(outcome, 2)
    assert 'row 0: rerank: expected a line of JSON such as {"query": ..., "documents": ...}' in outcome.err
