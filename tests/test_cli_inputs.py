"""The flags of ``raybert run`` that say what is read: as words, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import raybert.cli.batch
from tests.commands import Cli, assert_one_line, cli_fixture  # noqa: F401
from tests.jobs import write_lines


def test_flags_of_inputs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(raybert.cli.batch, "run_and_show", lambda _, options, **more: asked.update(options, **more))
    words = ["--input", "a", "--input", "b/*.tsv", "--output", "out", "--text", "{t} {u}", "--where", "n > 1"]
    assert cli("run", "embed=demo", *words, "--max-row-bytes", "1MiB", "--input-format", "csv").code == 0
    assert asked["input_uri"] == ["a", "b/*.tsv"]
    assert (asked["text"], asked["where"]) == ("{t} {u}", "n > 1")
    assert (asked["max_row_bytes"], asked["input_format"]) == (1 << 20, "csv")
    assert "text_column" not in asked


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "{text}", "--text-column", "text"], "text '{text}': makes the texts; leave out text-column 'text'"),
        (
            ["--text", "{text.x}"],
            "text '{text.x}': {text.x} is more than a column's name; a template takes names alone",
        ),
        (
            ["--where", "txt == 'a'"],
            "column 'txt' is not in the first 1 rows of {path}: it has text; did you mean 'text'?",
        ),
        (["--where", "text > 1"], "where 'text > 1', character 1: a text is compared with a number"),
        (["--max-row-bytes", "0"], "max-row-bytes '0': takes a size such as 32MiB, 500kB or 1000000"),
        (["--input", "{path}.no*"], "{path}.no*: the pattern matches no file"),
    ],
)
def test_what_is_refused(cli: Cli, tmp_path: Path, words: list[str], said: str) -> None:
    path = str(write_lines(tmp_path / "in.jsonl", [{"text": "a"}]))
    given = [word.replace("{path}", path) for word in words]
    finished = cli("run", "embed=demo", "--input", path, "--output", str(tmp_path / "out"), *given)
    assert_one_line(finished, 2)
    assert finished.err == f"error: {said.replace('{path}', path)}\n"
    assert not (tmp_path / "out").exists()
