"""What raybert tells: records with fields, JSON lines, the ends of a run, and progress that counts bad rows."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import raybert.cli.batch
from raybert.cli import progress
from raybert.cli.progress import watcher
from raybert.data.metrics import Busy, Instruments, Watch, session, tell_complete
from raybert.data.runreport import RunReport
from raybert.errors import OutputError
from raybert.observability import EVENTS, FIELDS, LAST_EVENTS, LOGGER, RunLog, json_lines
from tests.commands import Cli, cli_fixture, python  # noqa: F401

NOTE = {
    "file": {"number": 0, "path": "a.jsonl"},
    "begin": 10,
    "end": 20,
    "ok": 7,
    "quarantined": 3,
    "filtered": 0,
    "reasons": {"null": 2, "wrong_type": 1},
    "tokens": {"v": 50},
    "forwarded": 55,
    "read_s": 0.25,
    "encode_s": 0.5,
    "model_s": 2.0,
    "write_s": 0.25,
    "committed": 100.0,
}


def report(**fields: Any) -> RunReport:
    return RunReport(**{"output": "out", "rows_total": 1000, "total_is_exact": True} | fields)


@pytest.fixture(name="stream")
def stream_fixture() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    with json_lines(stream):
        yield stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_time_level_event_run_and_fields(stream: io.StringIO) -> None:
    log = RunLog("s3://bucket/out")
    log.tell("worker_died", "two\nlines, ä \U0001f600", split={"file": "a", "begin": 1}, deaths=2, rows=None)
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "event": "worker_died",
        "run": log.run,
        "message": "two\nlines, ä \U0001f600",
        "output": "s3://bucket/out",
        "split": {"file": "a", "begin": 1},
        "deaths": 2,
    }
    assert re.fullmatch(r"[0-9a-f]{8}", log.run)
    assert RunLog("out").run != log.run


def test_records_of_another_origin_are_lines_too(stream: io.StringIO) -> None:
    logging.getLogger(f"{LOGGER}.data").warning("a thing: %s", 3)
    (line,) = lines(stream)
    assert (line["event"], line["message"], line["level"]) == ("log", "a thing: 3", "warning")


def test_a_field_that_is_not_known_is_a_bug(stream: io.StringIO) -> None:
    with pytest.raises(AssertionError):
        RunLog("out").tell("run_started", "words", colour="red")
    assert set(LAST_EVENTS) <= set(EVENTS)
    assert not set(FIELDS) & set(vars(logging.makeLogRecord({}))), "logging would refuse such a field"


def test_logging_is_left_as_it_was() -> None:
    logger = logging.getLogger(LOGGER)
    before = (logger.level, logger.propagate, list(logger.handlers))
    with pytest.raises(KeyError), json_lines(io.StringIO()):
        raise KeyError
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_where_nobody_listens_nothing_is_said() -> None:
    """Python's last resort would write warnings to stderr, into a bar."""
    code = "from raybert.observability import RunLog\nRunLog('out').tell('split_failed', 'words', error='e')"
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_handler_of_the_caller_gets_records_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    Watch(RunLog("out")).committed(NOTE)
    first, *others = caplog.records
    found: Any = first
    assert (found.event, found.levelname, found.rows, found.quarantined) == ("split_committed", "INFO", 10, 3)
    assert (found.tokens, found.forwarded, found.seconds) == ({"v": 50}, 55, 3.0)
    assert found.split == {"file": "a.jsonl", "begin": 10, "end": 20}
    assert found.stages == {"read": 0.25, "encode": 0.5, "model": 2.0, "write": 0.25}
    assert {(each.reason, each.rows, each.levelname) for each in others} == {  # type: ignore[attr-defined]
        ("null", 2, "WARNING"),
        ("wrong_type", 1, "WARNING"),
    }


def test_what_happens_to_splits_that_fail(stream: io.StringIO) -> None:
    watch = Watch(RunLog("out"))
    failed = {"file": {"number": 0, "path": "a"}, "begin": 3, "error": "why", "kind": "x"}
    watch.set_aside(failed | {"deaths": 2})
    watch.set_aside(failed)
    watch.failed(failed)
    watch.given_up("a", 3, 9, "no few rows are to blame")
    watch.committed(NOTE | {"deaths": 1, "reasons": {}, "quarantined": 0, "ok": 10})
    told = [(line["event"], line["level"], line.get("error"), line.get("deaths")) for line in lines(stream)]
    assert told == [
        ("worker_died", "warning", None, 2),
        ("split_set_aside", "warning", "why", None),
        ("split_set_aside", "warning", "why", None),
        ("split_failed", "error", "why", None),
        ("split_failed", "error", "no few rows are to blame", None),
        ("split_committed", "info", None, None),
        ("worker_died", "warning", None, 1),
    ]
    assert lines(stream)[0]["split"] == {"file": "a", "begin": 3}


@pytest.mark.parametrize(
    ("error", "event", "why"),
    [
        (None, "run_finished", None),
        (KeyboardInterrupt(), "run_stopped", None),
        (OutputError("out: no room"), "run_failed", "out: no room"),
        (ZeroDivisionError("of ours"), "run_failed", "ZeroDivisionError: of ours"),
    ],
    ids=str,
)
def test_a_run_begins_and_ends(stream: io.StringIO, error: BaseException | None, event: str, why: str | None) -> None:
    state = report(rows_before=5, vanished=("x.jsonl",), dropped=("y.jsonl",))
    with suppress(*([] if error is None else [type(error)])), session(state, "out", ["v"]) as watch:
        assert watch.tags is None
        state.add(NOTE)
        if error is not None:
            raise error
    *gone, begun, ended = lines(stream)
    assert [(line["event"], line["split"]["file"]) for line in gone] == [
        ("input_gone", "x.jsonl"),
        ("input_gone", "y.jsonl"),
    ]
    assert (begun["event"], begun["heads"], begun["rows"]) == ("run_started", ["v"], 1000)
    assert (ended["event"], ended["rows"], ended["rows_before"], ended["parts"]) == (event, 10, 5, 1)
    assert (ended["quarantined"], ended["tokens"], ended["forwarded"]) == (3, {"v": 50}, 55)
    assert ended["run"] == begun["run"]
    assert ended.get("error") == why
    assert ("traceback" in ended) == isinstance(error, ZeroDivisionError), "a bug shows where"


def test_a_run_with_nothing_to_do_is_told_of(stream: io.StringIO) -> None:
    tell_complete(report(rows_before=1000, splits_left=False), "out")
    (line,) = lines(stream)
    assert (line["event"], line["rows"], line["rows_before"]) == ("run_finished", 0, 1000)


def test_tags_hold_run_and_output_where_metrics_are_wanted() -> None:
    with session(report(), "out", ["v"], metrics=True) as watch:
        assert watch.tags is not None
        assert watch.tags["output"] == "out"
        assert set(watch.tags) == {"run", "output"}


def test_metrics_that_ray_refuses_are_told_once_and_fail_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray.util.metrics

    made = []

    class Refused:
        def __init__(self, name: str, *_: object, **__: object) -> None:
            made.append(name)
            raise ValueError("no room for metrics")

    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray.util.metrics, name, Refused)
    caplog.set_level(logging.WARNING, LOGGER)
    instruments = Instruments({"run": "r", "output": "o"})
    for _ in range(3):
        instruments.count("rows", 5, kind="ok")
        instruments.took("read", 1.0)
        instruments.show_busy(0.5)
    assert made == ["raybert_rows_total"]
    assert [record.getMessage() for record in caplog.records] == [
        "metrics: ValueError: no room for metrics; the job goes on, nothing more is counted"
    ]
    Watch(RunLog("out"), {"run": "r", "output": "o"}).committed(NOTE)
    Busy({"run": "r", "output": "o"}).worked(1.0)


def test_a_counter_is_made_once_and_never_raised_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.util.metrics

    calls: list[Any] = []

    class Counter:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            calls.append((name, tag_keys))

        def inc(self, value: float, tags: dict[str, str]) -> None:
            calls.append((value, tags))

    monkeypatch.setattr(ray.util.metrics, "Counter", Counter)
    instruments = Instruments({"run": "r", "output": "o"})
    instruments.count("rows", 0, kind="filtered")
    instruments.count("rows", 5, kind="ok")
    instruments.count("rows", 2, kind="quarantined")
    assert calls == [
        ("raybert_rows_total", ("run", "output", "kind")),
        (5, {"run": "r", "output": "o", "kind": "ok"}),
        (2, {"run": "r", "output": "o", "kind": "quarantined"}),
    ]


def asked(tmp_path: Path, *more: str) -> list[str]:
    there = ["--input", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    return ["run", "embed=demo", *there, "--log-format", "json", *more]


def test_a_refused_run_is_one_json_line(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*asked(tmp_path))
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = [json.loads(each) for each in outcome.err.splitlines()]
    assert (line["event"], line["level"]) == ("run_failed", "error")
    assert line["error"] == f"{tmp_path}/none: no such file or folder"
    assert "traceback" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "event"),
    [(KeyboardInterrupt(), 130, "run_stopped"), (ZeroDivisionError("of ours"), 1, "run_failed")],
    ids=str,
)
def test_other_ends_before_a_run_begins_are_one_json_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, event: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(raybert.cli.batch, "run", broken)
    outcome = cli(*asked(tmp_path))
    assert (outcome.code, outcome.out) == (code, "")
    (line,) = [json.loads(each) for each in outcome.err.splitlines()]
    assert line["event"] == event
    assert ("traceback" in line) == (code == 1)


def test_an_end_that_the_job_told_is_told_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        with session(report(), "out", ["v"]):
            raise OutputError("out: no room")

    monkeypatch.setattr(raybert.cli.batch, "run", broken)
    outcome = cli(*asked(tmp_path))
    assert (outcome.code, outcome.out) == (1, "")
    assert [json.loads(each)["event"] for each in outcome.err.splitlines()] == ["run_started", "run_failed"]


def test_a_log_format_that_there_is_not(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*asked(tmp_path, "--log-format", "jsn"))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: log-format: 'jsn' is none of text, json; did you mean 'json'?\n"


def test_progress_counts_quarantined_rows_when_there_are_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    state = report()
    with watcher() as shown:
        for committed in (10.0, 20.0):
            shown.update(state)
            state.add(NOTE | {"committed": committed})
            now[0] += 20
        shown.update(state)
    assert capsys.readouterr().err.splitlines() == [
        "raybert: 0 of 1,000 rows",
        "raybert: 10 of 1,000 rows, 3 quarantined",
        "raybert: 20 of 1,000 rows, 6 quarantined, 5 tokens/s, 16 min 20 s left",
    ]


def test_progress_says_once_where_metrics_are(capsys: pytest.CaptureFixture[str]) -> None:
    with watcher(lambda: ["http://10.0.0.1:8080/metrics", "http://10.0.0.2:8080/metrics"]) as shown:
        shown.update(report())
        shown.update(report())
    assert capsys.readouterr().err.splitlines() == [
        "raybert: metrics at http://10.0.0.1:8080/metrics, http://10.0.0.2:8080/metrics",
        "raybert: 0 of 1,000 rows",
    ]


def test_importing_and_telling_need_no_ray() -> None:
    code = (
        "import sys\nfrom raybert.data.metrics import Watch\nfrom raybert.observability import RunLog\n"
        f"Watch(RunLog('out')).committed({NOTE!r})\nsys.exit('ray' in sys.modules)"
    )
    assert python(code).returncode == 0
