"""The command line as a whole: help, exit codes, errors in one line, closed pipes, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from raybert.cli.app import app
from raybert.data.store import Store
from raybert.version import VERSION
from tests.commands import Cli, assert_one_line, cli_fixture, python, raybert_command  # noqa: F401
from tests.test_data_verify import whole_run
from tests.vectors import one_thread_a_module  # noqa: F401  a fixture

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def options_of(command: str) -> Iterator[tuple[str, str | None]]:
    """Every option of a command with its help."""
    for parameter in COMMANDS[command].params:
        for name in [*parameter.opts, *parameter.secondary_opts]:
            if name.startswith("--"):
                yield name, parameter.help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option(cli: Cli, command: str) -> None:
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", outcome.out).split())
    assert COMMANDS[command].help.split("\n\n")[0].replace("\n", " ") in text
    for name, sentence in options_of(command):
        assert re.search(rf"(?<!\S){name}(?!\S)", text), f"{command} --help lacks {name}"
        assert sentence, f"{command} {name} has no help"
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "argument":
            assert parameter.metavar.rstrip(".").strip("[]{}") in text
            assert parameter.help


def test_help_lists_every_command(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert re.search(rf"│ {command}\s", outcome.out)
    assert "--debug" in outcome.out


def test_options_of_the_same_name_mean_the_same() -> None:
    helps: dict[str, set[str | None]] = {}
    for command in ("predict", "run", "info"):
        for name, sentence in options_of(command):
            helps.setdefault(name, set()).add(sentence)
    assert {name: said for name, said in helps.items() if len(said) > 1} == {}


def test_version(cli: Cli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{VERSION}\n", "")


def test_without_words_there_is_help(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert "Usage: raybert" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["info"], "Missing argument 'MODEL'"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["predict"], "Missing argument 'TASK'"),
        (["run", "embed", "--output", "out"], "Missing option '--input'"),
        (["run", "embed", "--input", "in"], "Missing option '--output'"),
        (["run", "embed", "--input", "in", "--output", "out", "--limit", "few"], "Invalid value for '--limit'"),
        (["verify", "/no/such/run"], "/no/such/run"),
    ],
    ids=str,
)
def test_words_that_are_wrong(cli: Cli, words: list[str], message: str) -> None:
    outcome = cli(*words)
    assert_one_line(outcome, 2)
    assert message in outcome.err


def test_run_checks_its_words_before_anything_is_made(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    corpus, output = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_text("a text\n")
    given = ["run", "embed", "--model", str(tiny), "--input", str(corpus), "--output", str(output)]
    bad = {
        "--split-bytes": ("0", "split-bytes '0': takes a size"),
        "--actors": ("3:1", "actors '3:1': at least 1, and MIN at most MAX"),
        "--split-rows": ("0", "split-rows 0: takes a whole number from 1"),
        "--limit": ("-1", "limit -1: takes a whole number from 1"),
        "--vector-type": ("float64", "vector-type: 'float64' is none of"),
        "--dtype": ("half", "dtype: 'half' is none of"),
        "--device": ("tpu", "device: 'tpu' is none of"),
        "--option": ("dimension=3", "unknown option 'dimension'"),
        "--input-format": ("xml", "xml"),
    }
    for option, (value, message) in bad.items():
        outcome = cli(*given, option, value)
        assert_one_line(outcome, 2)
        assert message in outcome.err
    assert not output.exists()


def test_debug_shows_the_traceback(cli: Cli) -> None:
    plain = cli("info", "/no/such/folder")
    assert_one_line(plain, 2)
    for words in (["--debug", "info", "/no/such/folder"], ["info", "/no/such/folder", "--debug"]):
        outcome = cli(*words)
        assert outcome.code == 2
        assert outcome.out == ""
        assert "Traceback (most recent call last)" in outcome.err
        assert "resolve" in outcome.err, "the place is named"
        assert outcome.err.endswith(plain.err), "the same last line"


def test_a_bug_is_called_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from raybert.cli import inspect

    def broken(*_: object) -> None:
        raise ZeroDivisionError("of\nours")

    monkeypatch.setattr(inspect, "describe", broken)
    outcome = cli("info", "demo")
    assert_one_line(outcome, 1)
    assert outcome.err == "error: ZeroDivisionError: of ours (a bug in raybert? --debug shows where)\n"


def test_a_broken_pipe_that_is_not_stdout_is_an_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from raybert.cli import inspect

    def broken(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(inspect, "describe", broken)
    outcome = cli("info", "demo")
    assert_one_line(outcome, 1)
    assert "BrokenPipeError" in outcome.err


def test_ctrl_c_in_a_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from raybert.cli import inspect

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "describe", interrupted)
    outcome = cli("info", "demo")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")


def test_verify_exits_with_what_it_found(cli: Cli, tmp_path: Path) -> None:
    run = whole_run(Store(tmp_path / "out"))
    good = cli("verify", str(tmp_path / "out"))
    assert (good.code, good.err) == (0, "")
    assert good.out.startswith("ok: 3 files, 6 parts, 35 rows in = 29 ok + 3 quarantined + 3 filtered")
    (tmp_path / "out" / run.names[0, 10]).unlink()
    (tmp_path / "out" / run.names[2, 0]).unlink()
    bad = cli("verify", str(tmp_path / "out"))
    assert bad.code == 1
    assert len(bad.err.splitlines()) >= 2
    assert bad.out.startswith(f"{len(bad.err.splitlines())} problems: ")
    assert bad.out.count("\n") == 1


# In processes of their own


def test_ctrl_c_while_waiting_for_stdin(tiny: Path) -> None:
    command = raybert_command("predict", "embed", "--model", str(tiny))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.05)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == b""
    assert err.endswith(b"interrupted\n")
    assert b"Traceback" not in err


@pytest.mark.parametrize("words", [["predict", "embed", "--model", "TINY"], ["info", "TINY"], ["--help"]], ids=str)
def test_a_reader_that_leaves_is_no_error(tiny: Path, words: list[str]) -> None:
    words = [str(tiny) if word == "TINY" else word for word in words]
    with subprocess.Popen(
        raybert_command(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        if words[0] == "--help":
            process.stdout.close()  # before a single line
        else:
            os.set_blocking(process.stdin.fileno(), False)
            os.write(process.stdin.fileno(), b"a text\n" * 5000)  # as much as a pipe holds
            process.stdout.readline()
            process.stdout.close()
        process.stdin.close()
        err = process.stderr.read()
        code = process.wait(60)
    assert err == b""
    assert code == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_before_the_last_line_is_no_error(unbuffered: str) -> None:
    # `raybert run` writes one line at its end, which a pipe holds back until then.
    code = """
import sys
import raybert.cli.batch
from raybert.cli import main
raybert.cli.batch.run_and_show = lambda *_, **__: sys.stdout.write("out: 3 rows\\n")
sys.stdin.read()
main(["run", "embed", "--model", "m", "--input", "in", "--output", "out"])
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        err = process.stderr.read()
        code_of_exit = process.wait(60)
    assert err == b""
    assert code_of_exit == 0


def test_a_closed_stdout_is_told() -> None:
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *raybert_command("info", "demo")],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "error: stdout is closed; write `> /dev/null` to see no results\n"


@pytest.mark.parametrize("words", [["--help"], ["info", "MODEL"], ["predict", "embed", "--model", "MODEL", "a text"]])
def test_a_full_disk_behind_stdout_is_told(tiny: Path, words: list[str]) -> None:
    command = raybert_command(*[str(tiny) if word == "MODEL" else word for word in words])
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: stdout: no space left on the device; free some, or write elsewhere\n"


def test_stdout_holds_results_only_and_stderr_nothing(tiny: Path) -> None:
    result = subprocess.run(
        raybert_command("predict", "embed", "--model", str(tiny), "a text"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1


def test_the_console_script_is_this_main() -> None:
    result = python("import raybert.cli, sys; sys.argv = ['raybert', '--version']; raybert.cli.main()")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{VERSION}\n", "")
