"""What a run shows while it goes on: lines in a log, a bar on a terminal; and its last line."""

from __future__ import annotations

import os
import pty
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raybert.cli import progress
from raybert.cli.batch import summary
from raybert.cli.progress import duration, speed, watcher
from raybert.data.runreport import RunReport


def report(**fields: Any) -> RunReport:
    return RunReport(**{"output": "out", "rows_total": 1000, "total_is_exact": True} | fields)


def note(rows: int, tokens: int, committed: float, *, bad: int = 0) -> dict[str, Any]:
    return {
        "ok": rows - bad,
        "quarantined": bad,
        "tokens": {"v": tokens},
        "forwarded": tokens,
        "filtered": 0,
        "reasons": {},
        "committed": committed,
    }


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (48.4, "48 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (400_000, "111 h 06 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_speed_counts_between_the_first_and_the_last_commit() -> None:
    state = report()
    assert speed(state) == ""
    state.add(note(100, 5000, 50.0))
    assert speed(state) == "", "one commit tells no speed: what came before it is start-up"
    state.add(note(100, 4000, 52.0))
    state.add(note(200, 6000, 54.0, bad=3))
    assert (state.rows, state.quarantined, state.parts) == (400, 3, 3)
    assert state.tokens_per_second == pytest.approx(10_000 / 4)
    assert speed(state) == "2,500 tokens/s, 8 s left"  # 300 rows in 4 s, 600 rows left


def test_commits_may_come_in_any_order() -> None:
    late, early = report(), report()
    notes = [note(100, 5000, 50.0), note(100, 4000, 52.0), note(200, 6000, 54.0)]
    for one in notes:
        early.add(one)
    for one in reversed(notes):
        late.add(one)
    assert late == early


def test_rows_that_were_there_before_are_not_left() -> None:
    state = report(rows_before=500)
    state.add(note(100, 1000, 10.0))
    state.add(note(100, 1000, 20.0))
    assert speed(state) == "100 tokens/s, 30 s left"


def test_an_estimate_that_was_too_low_leaves_nothing() -> None:
    state = report(rows_total=150, total_is_exact=False)
    state.add(note(100, 1000, 10.0))
    state.add(note(100, 1000, 20.0))
    assert speed(state) == "100 tokens/s, 0 s left"


def test_lines_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    state = report(rows_before=10)
    with watcher() as shown:
        shown.update(state)
        for _ in range(5):
            now[0] += 1
            shown.update(state)
        state.add(note(100, 1000, 10.0))
        state.add(note(100, 1000, 20.0))
        now[0] += 5
        shown.update(state)
        now[0] += 10
        shown.update(replace(state, total_is_exact=False))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "raybert: 10 of 1,000 rows",
        "raybert: 210 of 1,000 rows, 100 tokens/s, 1 min 19 s left",
        "raybert: 210 of about 1,000 rows, 100 tokens/s, 1 min 19 s left",
    ]


def drained(terminal: int) -> bytes:
    """All that was written to a terminal; one read gives a part of it."""
    os.set_blocking(terminal, False)
    pieces = []
    with suppress(BlockingIOError):
        while piece := os.read(terminal, 1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    kept = os.dup(2)
    before = open_descriptors()
    os.dup2(theirs, 2)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", os.fdopen(os.dup(theirs), "w"))
            with watcher() as shown:
                state = report(total_is_exact=False, rows_total=150)
                shown.update(state)
                state.add(note(100, 1000, 10.0))
                state.add(note(100, 1000, 20.0))
                shown.update(state)
            sys.stderr.close()
    finally:
        os.dup2(kept, 2)
    seen = drained(ours).decode()
    assert "running" in seen
    assert "200/200" in seen, "a bar never stands beyond its end"
    assert "100 tokens/s" in seen
    assert open_descriptors() == before, "its descriptor is closed"
    for descriptor in (ours, theirs, kept):
        os.close(descriptor)


def test_the_last_line_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    state = report(started=5.0, rows_before=10, vanished=("gone.jsonl",))
    state.add(note(100, 1000, 10.0, bad=2))
    state.add(note(100, 3000, 20.0))
    assert summary(state) == (
        "out: 200 rows, 2 quarantined, 2 parts, 4,000 tokens, 10 rows were there before, "
        "300 tokens/s after the first commit, 15 s in all, first commit after 5 s"
    )
    assert (
        capsys.readouterr().err
        == "raybert: input file gone.jsonl is gone; its parts stay in the output, --sync drops them\n"
    )


def test_the_last_line_of_a_run_that_had_nothing_to_do() -> None:
    assert summary(report(splits_left=False, rows_before=1000)) == "out: complete already, 1,000 rows; nothing to do"


def test_the_last_line_of_a_run_of_one_part() -> None:
    state = report(started=5.0)
    state.add(note(3, 30, 10.0))
    assert summary(state) == "out: 3 rows, 0 quarantined, 1 part, 30 tokens"
