"""Ctrl-C, SIGTERM, and a second driver: the folder stays one that a run goes on with."""

from __future__ import annotations

import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from raybert.data.part import content_digest, read_receipt
from raybert.data.store import Store
from tests.crash.conftest import Clean
from tests.jobs import Cli, armed, assert_same_tree, at_work, left_in, parts, run_cli, wait_for


def is_writing(output: Path, committed: int) -> bool:
    """At least so many parts are committed, and the next one is on its way."""
    folder = output / "_raybert" / "tmp"
    return len(parts(output)) >= committed and folder.is_dir() and any(folder.iterdir())


def assert_valid(output: Path) -> None:
    """Every part that is there is whole."""
    for name in parts(output):
        assert content_digest(Store(output), name) == read_receipt(Store(output), name).content_sha256


def press_ctrl_c(pid: int) -> None:
    """As a terminal does: the whole process group gets it."""
    os.killpg(pid, signal.SIGINT)


def terminate(pid: int) -> None:
    """As a scheduler does."""
    os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
def test_ctrl_c_and_sigterm_leave_a_folder_that_goes_on(clean: Clean, tmp_path: Path) -> None:
    """Each comes while a write worker has a temporary open; the last run equals an undisturbed one byte for byte."""
    output = clean.begun(tmp_path)
    for interrupt in (press_ctrl_c, terminate):
        before = len(parts(output))
        with Cli(*clean.words(output), env=armed(commit_s=0.5)) as cli:
            cli.until(partial(is_writing, output, before + 1), "a new part and a temporary")
            interrupt(cli.process.pid)
            done = cli.finish()
        assert done.code == 130, done
        assert done.out == ""
        assert done.errors == [
            "",
            f"stopped; {output} holds what was committed: run the same command again to continue",
            "interrupted",
        ]
        assert left_in(output) == ["manifest.json"]
        assert before < len(parts(output)) < len(clean.parts)
        assert_valid(output)
    done = run_cli(*clean.words(output))
    assert (done.code, done.errors) == (0, [])
    assert_same_tree(output, clean.output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interrupt", "moment"),
    [
        (press_ctrl_c, "gcs_server"),
        (press_ctrl_c, "ray::IDLE"),
        (press_ctrl_c, "ray::load_check"),
        (terminate, "ray::IDLE"),
    ],
)
def test_an_interrupt_while_ray_starts_leaves_nothing(clean: Clean, tmp_path: Path, interrupt, moment) -> None:
    """Ctrl-C waits until Ray is up; SIGTERM can't be made to and ends the process, which has written nothing yet."""
    output = tmp_path / "out"
    with Cli(*clean.words(output)) as cli:
        cli.until(lambda: any(moment in title for title in at_work(cli.folder).values()), moment)
        interrupt(cli.process.pid)
        done = cli.finish()
    if done.code != -signal.SIGTERM or interrupt is press_ctrl_c:
        assert done.code == 130, done
        assert done.errors[-1] == "interrupted"
    assert "Traceback" not in done.err
    assert not output.exists()


@pytest.mark.slow
def test_a_second_driver_is_refused_and_a_dead_ones_folder_taken_over(clean: Clean, tmp_path: Path) -> None:
    output = clean.begun(tmp_path)
    with Cli(*clean.words(output), env=armed(commit_s=0.5)) as first:
        first.until(lambda: parts(output), "a part")
        with Cli(*clean.words(output)) as second:
            done = second.finish()
        assert done.code == 2
        (line,) = done.errors
        assert line.startswith(f"error: {output}/_raybert/driver.json: another driver writes here: ")
        assert f"pid {first.process.pid} on {socket.gethostname()}" in line
        assert first.process.poll() is None
        committed = len(parts(output))
        first.process.kill()
        # Its workers live for a moment; the next run does not wait for them.
        done = run_cli(*clean.words(output))
        assert (done.code, done.errors) == (0, [])
        assert f"{committed * 5} rows were there before" in done.out or len(parts(output)) == len(clean.parts)
        wait_for(lambda: not at_work(first.folder), "the end of the dead driver's workers", within_s=30)
    assert_same_tree(output, clean.output)
