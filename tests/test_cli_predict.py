"""``raybert predict embed``: texts from arguments or stdin, one JSON list a line, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import raybert
from raybert.cli import app as commands
from tests.commands import Cli, Outcome, assert_one_line, cli_fixture  # noqa: F401
from tests.tiny import write_tiny_checkpoint
from tests.vectors import assert_same, one_thread_a_module  # noqa: F401  a fixture

TEXTS = ["a text", "another one, longer than the first", "", "naïve 中文 😀", "two  blanks"]


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sentence = {"prompts": {"q": "query: "}, "normalize": True}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("sentence"), sentence=sentence)


def vectors(outcome: Outcome) -> np.ndarray:
    """The lines of stdout, each one JSON list."""
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert all(isinstance(row, list) for row in rows)
    return np.array(rows, np.float32)


def expected(model: Path, texts: list[str], **options: object) -> np.ndarray:
    with raybert.load(str(model), "embed", dtype="float32", **options) as embed:  # type: ignore[arg-type]
        found: np.ndarray = embed(texts)
        return found


def test_texts_from_arguments(cli: Cli, tiny: Path) -> None:
    found = vectors(cli("predict", "embed", "--model", str(tiny), "--dtype", "float32", "--device", "cpu", *TEXTS))
    assert_same(found, expected(tiny, TEXTS))


def test_numbers_are_printed_as_the_float32_that_they_are(cli: Cli, tiny: Path) -> None:
    outcome = cli("predict", "embed", "--model", str(tiny), *TEXTS)
    numbers = [word.strip("[] ") for line in outcome.out.splitlines() for word in line.split(",")]
    assert len(numbers) == 32 * len(TEXTS)
    assert all(float(np.float32(number)) == float(np.float32(float(number))) for number in numbers)
    assert all(float(str(np.float32(number))) == float(number) for number in numbers), "no digit too few or too many"


def test_texts_from_stdin(cli: Cli, tiny: Path) -> None:
    lines = "\n".join(TEXTS).encode() + b"\n"
    wanted = expected(tiny, TEXTS)
    for stdin in (lines, lines.removesuffix(b"\n"), lines.replace(b"\n", b"\r\n")):
        found = vectors(cli("predict", "embed", "--model", str(tiny), "--dtype", "float32", stdin=stdin))
        assert_same(found, wanted)


def test_nothing_in_nothing_out(cli: Cli, tiny: Path) -> None:
    assert cli("predict", "embed", "--model", str(tiny)) == Outcome(0, "", "")


def test_a_line_ends_at_a_line_feed_only(cli: Cli, tiny: Path) -> None:
    stdin = "one\u2028line\u0085of\vfour\fparts\0\n".encode()
    found = vectors(cli("predict", "embed", "--model", str(tiny), "--dtype", "float32", stdin=stdin))
    assert_same(found, expected(tiny, ["one\u2028line\u0085of\vfour\fparts\0"]))


def test_more_lines_than_go_at_once(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_LINES_AT_ONCE", 3)
    texts = [f"line {row}" for row in range(10)]
    found = vectors(cli("predict", "embed", "--model", str(tiny), stdin="\n".join(texts).encode()))
    assert len(found) == 10
    assert len(np.unique(found, axis=0)) == 10


@pytest.mark.parametrize("row", [0, 4, 7])
def test_a_line_that_is_not_utf8_is_named(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    monkeypatch.setattr(commands, "_LINES_AT_ONCE", 3)
    lines = [b"fine"] * 9
    lines[row] = b"fine\xff"
    outcome = cli("predict", "embed", "--model", str(tiny), stdin=b"\n".join(lines))
    assert outcome.code == 2
    assert outcome.err == f"error: row {row}: byte 4 of the line is not UTF-8\n"
    assert len(outcome.out.splitlines()) == row // 3 * 3, "what was answered before stays"


def test_an_argument_that_is_not_utf8_is_named(cli: Cli, tiny: Path) -> None:
    # Python reads a byte of an argument that is no UTF-8 as half of a surrogate pair.
    outcome = cli("predict", "embed", "--model", str(tiny), "fine", "bad\udcff")
    assert_one_line(outcome, 2)
    assert "row 1: character 3 is U+DCFF" in outcome.err


def test_rows_are_counted_over_all_chunks(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_LINES_AT_ONCE", 3)
    outcome = cli("predict", "embed", "--model", str(tiny), *["fine"] * 7, "bad\udcff")
    assert outcome.code == 2
    assert outcome.err.startswith("error: row 7: character 3 is U+DCFF")
    assert len(outcome.out.splitlines()) == 6


OPTIONS: list[tuple[list[str], dict[str, object]]] = [
    (["--prompt", "own: "], {"prompt": "own: "}),
    (["--prompt", "12"], {"prompt": "12"}),
    (["--option", "prompt=1.50"], {"prompt": "1.50"}),
    (["--dimensions", "5"], {"dimensions": 5}),
    (["--max-length", "4"], {"max_length": 4}),
    (["--pooling", "cls+max"], {"pooling": "cls+max"}),
    (["--option", "normalize=false"], {"normalize": False}),
    (["--option", "embed.dimensions=3", "--option", "prompt-name=q"], {"dimensions": 3, "prompt_name": "q"}),
    (["--dimensions", "9", "--option", "embed.dimensions=3"], {"dimensions": 3}),
]


@pytest.mark.parametrize(("words", "options"), OPTIONS, ids=str)
def test_options(cli: Cli, sentence: Path, words: list[str], options: dict[str, object]) -> None:
    texts = ["a text", "another text of some words"]
    found = vectors(cli("predict", "embed", "--model", str(sentence), "--dtype", "float32", *words, *texts))
    assert_same(found, expected(sentence, texts, **options))


def test_a_model_in_the_head_and_a_name(cli: Cli, tiny: Path) -> None:
    found = vectors(cli("predict", f"v:embed={tiny}", "--option", "v.dimensions=2", "a text"))
    assert found.shape == (1, 2)


def test_texts_that_look_like_options(cli: Cli, tiny: Path) -> None:
    found = vectors(cli("predict", "embed", "--model", str(tiny), "--dtype", "float32", "--", "--debug", "-x"))
    assert_same(found, expected(tiny, ["--debug", "-x"]))


BAD: list[tuple[list[str], str]] = [
    ([], "head 'embed': no model; write embed=MODEL or pass --model"),
    (["--model", "/no/such/folder"], "/no/such/folder: no such folder"),
    (["--model", "TINY", "--option", "dimension=3"], "unknown option 'dimension'; did you mean 'dimensions'"),
    (["--model", "TINY", "--option", "dimensions"], "write KEY=VALUE or NAME.KEY=VALUE"),
    (["--model", "TINY", "--option", "w.dimensions=3"], "no head is called 'w'"),
    (["--model", "TINY", "--option", "dimensions=three"], "dimensions 'three': takes a whole number from 1 to 32"),
    (["--model", "TINY", "--option", "normalize=yes"], "normalize 'yes': takes true or false"),
    (["--model", "TINY", "--dimensions", "33"], "dimensions 33: takes a whole number from 1 to 32"),
    (["--model", "TINY", "--dimensions", "x"], "Invalid value for '--dimensions'"),
    (["--model", "TINY", "--max-length", "1"], "max_length 1: takes a whole number from 3 to 128"),
    (["--model", "TINY", "--pooling", "average"], "pooling: 'average' is none of"),
    (["--model", "TINY", "--device", "tpu"], "device: 'tpu' is none of auto, cpu, cuda"),
    (["--model", "TINY", "--dtype", "int8"], "dtype: 'int8' is none of"),
    (["--model", "TINY", "--revision", "main"], "a folder has no revision 'main'"),
    (["--model", "TINY", "--nonsense"], "--nonsense"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=str)
def test_bad_words_are_one_line_and_exit_2(cli: Cli, tiny: Path, words: list[str], message: str) -> None:
    words = [str(tiny) if word == "TINY" else word for word in words]
    outcome = cli("predict", "embed", *words, "a text")
    assert_one_line(outcome, 2)
    assert message in outcome.err


def test_an_unknown_task(cli: Cli, tiny: Path) -> None:
    outcome = cli("predict", "embd", "--model", str(tiny), "a text")
    assert_one_line(outcome, 2)
    assert "task 'embd': unknown; there is classify, embed, fill-mask, " in outcome.err
    assert outcome.err.endswith("did you mean 'embed'?\n")


def test_a_dtype_that_this_device_lacks_exits_1(cli: Cli, tiny: Path) -> None:
    outcome = cli("predict", "embed", "--model", str(tiny), "--device", "cpu", "--dtype", "float16", "a text")
    assert_one_line(outcome, 1)
    assert "a CPU emulates it" in outcome.err
