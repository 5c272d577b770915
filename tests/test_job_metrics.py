"""What a job counts in Ray's metrics, scraped from a node as Prometheus does, and what it tells meanwhile."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import raybert.data
from raybert.data.history import load as load_history
from raybert.data.metrics import STAGES, endpoints
from raybert.data.runreport import RunReport
from raybert.data.store import Store
from raybert.observability import FIELDS, LOGGER
from tests.jobs import Cli, armed, small_ray, some_texts, wait_for, write_lines

pytestmark = pytest.mark.slow

BAD = [{"id": 100, "text": None}, {"id": 101}, b'{"id": 104, "text": "cut', {"id": 102, "text": 7}]


@dataclass(frozen=True)
class Done:
    """A run that counted, what its nodes served afterwards, and what it told."""

    report: RunReport
    samples: list[tuple[str, dict[str, str], float]]
    records: list[logging.LogRecord]

    def values(self, name: str, tag: str) -> dict[str, float]:
        """A metric by one of its tags, workers added up."""
        found: Counter[str] = Counter()
        for sample, tags, value in self.samples:
            if sample == name:
                found[tags.get(tag, "")] += value
        return dict(found)


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def scraped() -> list[tuple[str, dict[str, str], float]]:
    found = []
    for url in endpoints():
        with urllib.request.urlopen(url, timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                found += [
                    (sample.name, dict(sample.labels), sample.value)
                    for sample in family.samples
                    if sample.name.startswith("ray_raybert_")
                ]
    return found


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("metrics")
    rows = [{"id": number, "text": text} for number, text in enumerate(some_texts(40))]
    write_lines(folder / "in" / "a.jsonl", [*rows[:20], *BAD, *rows[20:]])
    write_lines(folder / "in" / "b.jsonl", rows[:11])
    logger, kept = logging.getLogger(LOGGER), Kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        busy: list[tuple[str, dict[str, str], float]] = []

        def look(report: RunReport) -> None:
            """A gauge goes when it isn't set any more: look while the run goes on."""
            busy.extend(each for each in scraped() if each[0] == "ray_raybert_model_busy_ratio")

        logger.addHandler(kept)
        before, logger.level = logger.level, logging.INFO
        try:
            with small_ray():
                report = raybert.data.run(
                    {"v": (str(tiny), "embed")},
                    input=str(folder / "in"),
                    output=str(folder / "out"),
                    split_rows=8,
                    metrics=True,
                    on_progress=look,
                )
                wanted = {("committed", float(report.parts))}

                def arrived() -> bool:
                    here = {(tags["outcome"], v) for n, tags, v in scraped() if n == "ray_raybert_splits_total"}
                    return here == wanted

                wait_for(arrived, "the last export of the metrics")
                wait_for(lambda: read_splits() == report.parts, "those of the tries")
                yield Done(report, [*scraped(), *busy], kept.records)
        finally:
            logger.removeHandler(kept)
            logger.level = before


def read_splits() -> float:
    return sum(value for name, _, value in scraped() if name == "ray_raybert_splits_read_total")


def test_sums_are_those_of_the_report(done: Done) -> None:
    report = done.report
    assert (report.rows, report.quarantined, report.parts) == (55, 4, 8)
    ok = report.rows - report.quarantined
    assert done.values("ray_raybert_rows_total", "kind") == {"ok": ok, "quarantined": report.quarantined}
    assert done.values("ray_raybert_quarantined_rows_total", "reason") == report.reasons
    assert done.values("ray_raybert_tokens_total", "head") == report.tokens
    assert done.values("ray_raybert_forwarded_tokens_total", "") == {"": report.forwarded}
    assert done.values("ray_raybert_splits_total", "outcome") == {"committed": report.parts}
    assert done.values("ray_raybert_splits_read_total", "") == {"": report.parts}
    assert done.values("ray_raybert_split_seconds_count", "stage") == dict.fromkeys(STAGES, report.parts)
    assert "ray_raybert_worker_deaths_total" not in {name for name, _, _ in done.samples}


def test_seconds_are_those_of_the_history(done: Done) -> None:
    (session,) = load_history(Store(done.report.output))
    counted = done.values("ray_raybert_stage_seconds_total", "stage")
    for stage, entry in STAGES.items():
        assert counted[stage] == pytest.approx(sum(session["splits"][entry]), abs=1e-3)
        assert counted[stage] > 0


def test_model_actors_tell_how_busy_they_are(done: Done) -> None:
    shares = [value for name, _, value in done.samples if name == "ray_raybert_model_busy_ratio"]
    assert shares
    assert all(0 < share <= 1 for share in shares)


def test_every_sample_names_its_run_and_output(done: Done) -> None:
    runs = {(tags["run"], tags["output"]) for _, tags, _ in done.samples}
    assert runs == {(done.records[0].run, done.report.output)}  # type: ignore[attr-defined]


def test_records_tell_the_same(done: Done) -> None:
    events = Counter(record.event for record in done.records)  # type: ignore[attr-defined]
    bad_splits = Counter(getattr(record, "reason", None) for record in done.records)
    bad_splits.pop(None)
    assert events["run_started"] == events["run_finished"] == 1
    assert events["split_committed"] == done.report.parts
    assert events["rows_quarantined"] == bad_splits.total()
    assert set(bad_splits) == set(done.report.reasons)
    assert set(events) == {"run_started", "split_committed", "rows_quarantined", "run_finished"}
    committed: list[Any] = [record for record in done.records if record.event == "split_committed"]  # type: ignore[attr-defined]
    assert sum(record.rows for record in committed) == done.report.rows
    assert sum(record.quarantined for record in committed) == done.report.quarantined
    assert sum(record.tokens["v"] for record in committed) == done.report.tokens["v"]
    assert {(record.split["file"], record.split["begin"]) for record in committed} == {
        *(("a.jsonl", begin) for begin in range(0, 44, 8)),
        *(("b.jsonl", begin) for begin in range(0, 11, 8)),
    }
    last: Any = done.records[-1]
    assert (last.event, last.rows, last.parts, last.tokens) == (
        "run_finished",
        done.report.rows,
        done.report.parts,
        done.report.tokens,
    )


def lines_of(text: str) -> list[dict[str, Any]]:
    """Every line is one JSON object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(set(each) <= {"time", "level", "message", "traceback", *FIELDS} for each in found)
    return found


def amid_a_commit(cli: Cli, output: Path) -> list[int]:
    """Write workers that hold a part's file open: a worker that dies before or after that has no split to lose."""
    temporaries = str(output / "_raybert" / "tmp")
    found = []
    for pid in cli.workers("_write"):
        with suppress(OSError):  # it ended, or closed one, while it was looked at
            if any(str(held.readlink()).startswith(temporaries) for held in Path(f"/proc/{pid}/fd").iterdir()):
                found.append(pid)
    return found


def test_json_lines_of_a_run_that_is_stopped_killed_and_finished(tiny: Path, tmp_path: Path) -> None:
    """One worker is killed once: its split is tried again, and the death is told."""
    write_lines(tmp_path / "in" / "a.jsonl", [{"text": text} for text in [*some_texts(60), ""]] + BAD)
    output = tmp_path / "out"
    words = ["run", "embed", "--model", tiny, "--input", tmp_path / "in", "--output", output, "--split-rows", 3]
    with Cli(*words, "--log-format", "json", env=armed(commit_s=1.0)) as cli:
        cli.until(lambda: len(list(output.glob("part-*"))) > 1, "two parts")
        os.kill(cli.until(lambda: amid_a_commit(cli, output), "a write worker")[0], signal.SIGKILL)
        cli.until(lambda: "worker_died" in cli.told(), "the death's record")
        cli.process.send_signal(signal.SIGTERM)
        stopped = cli.finish()
    assert (stopped.code, stopped.out) == (130, "")
    lines = lines_of(stopped.err)
    events = Counter(line["event"] for line in lines)
    assert [lines[0]["event"], lines[-1]["event"]] == ["run_started", "run_stopped"]
    assert events["worker_died"] == 1, stopped.err
    assert len({line["run"] for line in lines}) == 1
    with Cli(*words, "--log-format", "json") as cli:
        finished = cli.finish()
    assert finished.code == 0, finished.err
    assert "rows were there before" in finished.out
    lines = lines_of(finished.err)
    assert lines[-1]["event"] == "run_finished"
    assert lines[-1]["rows"] + lines[-1]["rows_before"] == 65
    with Cli(*words, "--log-format", "json") as cli:
        again = cli.finish()
    assert [line["event"] for line in lines_of(again.err)] == ["run_finished"]
    assert time.strptime(lines[-1]["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert lines[-1]["time"].endswith("Z")
