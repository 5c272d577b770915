"""What a job tells while it runs: log records, and if asked counters in Ray's own metrics.

Every node of a Ray serves its metrics to Prometheus; what is counted here stands there as ``ray_raybert_...``. Rows and
tokens are counted by the driver, once for each committed split, so that their sums are those of the report.

Counting costs microseconds a split and never fails a job: what Ray raises is told once, and no more is counted then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from raybert.data.runreport import RunReport
from raybert.errors import RaybertError
from raybert.observability import LOGGER, RunLog

Tags = dict[str, str]

STAGES: Mapping[str, str] = {"read": "read_s", "encode": "encode_s", "model": "model_s", "write": "write_s"}
"""Stage -> the note's entry with its seconds."""
SPLIT_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)

COUNTERS: Mapping[str, tuple[str, str]] = {
    "rows": ("kind", "Rows committed, by kind: ok, quarantined, filtered."),
    "quarantined_rows": ("reason", "Rows put into the quarantine, by reason."),
    "tokens": ("head", "Tokens by head, before truncation."),
    "forwarded_tokens": ("", "Tokens that went through an encoder."),
    "splits_read": ("", "Splits handed on by readers."),
    "splits": ("outcome", "Splits that left the pipeline, by outcome: committed, set_aside, failed."),
    "worker_deaths": ("", "Workers that died while they had a split."),
    "stage_seconds": ("stage", "Seconds of work in each stage, all workers together."),
}
"""Counter -> its own tag beside run and output, and what it counts; Prometheus has it as ``ray_raybert_NAME_total``."""


class Instruments:
    """Ray's metrics of one process; after the first failure nothing more is counted.

    Args:
        tags: run and output.
    """

    def __init__(self, tags: Tags) -> None:
        self._tags = tags
        self._made: dict[str, Any] = {}
        self._broken = False

    def count(self, name: str, value: float, **own: str) -> None:
        """Raise a counter of `COUNTERS`; by zero is not at all."""

        def make() -> Any:
            from ray.util.metrics import Counter

            tag, description = COUNTERS[name]
            keys = ("run", "output", tag) if tag else ("run", "output")
            return Counter(f"raybert_{name}_total", description, tag_keys=keys)

        if value > 0:
            self._do(name, make, lambda counter: counter.inc(value, self._tags | own))

    def took(self, stage: str, seconds: float) -> None:
        """Put the seconds of a split into the stage's histogram."""

        def make() -> Any:
            from ray.util.metrics import Histogram

            keys = ("run", "output", "stage")
            return Histogram("raybert_split_seconds", "Seconds of a split.", list(SPLIT_SECONDS), keys)

        self._do("split_seconds", make, lambda histogram: histogram.observe(seconds, self._tags | {"stage": stage}))

    def show_busy(self, share: float) -> None:
        """Set this process's gauge of the time that it computed."""

        def make() -> Any:
            from ray.util.metrics import Gauge

            what = "Share of the time since the split before that a model actor computed."
            return Gauge("raybert_model_busy_ratio", what, ("run", "output"))

        self._do("busy", make, lambda gauge: gauge.set(share, self._tags))

    def _do(self, name: str, make: Callable[[], Any], use: Callable[[Any], None]) -> None:
        if self._broken:
            return
        try:
            if name not in self._made:
                self._made[name] = make()
            use(self._made[name])
        except Exception as error:  # noqa: BLE001  whatever Ray's metrics say, the job goes on
            self._broken = True
            what = f"{type(error).__name__}: {error}"
            logging.getLogger(LOGGER).warning("metrics: %s; the job goes on, nothing more is counted", what)


class Busy:
    """A model actor's gauge.

    Args:
        tags: run and output.
    """

    def __init__(self, tags: Tags) -> None:
        self._instruments = Instruments(tags)
        self._since = time.perf_counter()

    def worked(self, seconds: float) -> None:
        """A split was computed for so long, just now."""
        now = time.perf_counter()
        self._instruments.show_busy(min(1.0, seconds / max(now - self._since, 1e-9)))
        self._since = now


class Watch:
    """One session of a run, as seen from outside.

    Args:
        log: its records.
        tags: run and output where metrics are wanted, else None.
    """

    def __init__(self, log: RunLog, tags: Tags | None = None) -> None:
        self._log = log
        self.tags = tags
        self._instruments = None if tags is None else Instruments(tags)

    def committed(self, note: Mapping[str, Any]) -> None:
        """A split was committed."""
        seconds = {stage: note.get(entry, 0.0) for stage, entry in STAGES.items()}
        reasons, tokens = note["reasons"], note["tokens"]
        rows = note["ok"] + note["quarantined"] + note["filtered"]
        split = _split(note)
        self._log.tell(
            "split_committed",
            f"{split['file']}, rows {split['begin']} to {split['end']}: committed",
            split=split,
            rows=rows,
            quarantined=note["quarantined"],
            filtered=note["filtered"],
            tokens=tokens,
            forwarded=note["forwarded"],
            seconds=round(sum(seconds.values()), 4),
            stages={stage: round(value, 4) for stage, value in seconds.items()},
        )
        self._tell_deaths(note)
        for reason, number in reasons.items():
            words = f"{split['file']}: into the quarantine, {reason}: {number}"
            self._log.tell("rows_quarantined", words, split=split, reason=reason, rows=number)
        if self._instruments is not None:
            count = self._instruments.count
            for kind in ("ok", "quarantined", "filtered"):
                count("rows", note[kind], kind=kind)
            for reason, number in reasons.items():
                count("quarantined_rows", number, reason=reason)
            for head, number in tokens.items():
                count("tokens", number, head=head)
            count("forwarded_tokens", note["forwarded"])
            count("splits", 1, outcome="committed")
            for stage, value in seconds.items():
                count("stage_seconds", value, stage=stage)
                self._instruments.took(stage, value)

    def set_aside(self, note: Mapping[str, Any]) -> None:
        """Workers died of a split, or a stage raised what raybert does not; it is looked through at the end."""
        self._tell_deaths(note)
        self._log.tell("split_set_aside", _words(note), split=_split(note), error=note["error"])
        self._left("set_aside")

    def failed(self, note: Mapping[str, Any]) -> None:
        """A split could not be committed."""
        self._log.tell("split_failed", _words(note), split=_split(note), error=note["error"])
        self._left("failed")

    def given_up(self, path: str, begin: int, end: int, error: str) -> None:
        """A split that was set aside won't be tried again in this session."""
        self._log.tell("split_failed", error, split={"file": path, "begin": begin, "end": end}, error=error)

    def _tell_deaths(self, note: Mapping[str, Any]) -> None:
        deaths = note.get("deaths", 0)
        if deaths:
            words = f"{note['file']['path']}, row {note['begin']} on: workers that died while they had it: {deaths}"
            self._log.tell("worker_died", words, split=_split(note), deaths=deaths)
            if self._instruments is not None:
                self._instruments.count("worker_deaths", deaths)

    def _left(self, outcome: str) -> None:
        if self._instruments is not None:
            self._instruments.count("splits", 1, outcome=outcome)


def _split(note: Mapping[str, Any]) -> dict[str, Any]:
    found = {"file": note["file"]["path"], "begin": note["begin"], "end": note.get("end")}
    return {name: value for name, value in found.items() if value is not None}


def _words(note: Mapping[str, Any]) -> str:
    return f"{note['file']['path']}, row {note['begin']} on: {note['error']}"


@contextmanager
def session(report: RunReport, output: str, heads: Sequence[str], *, metrics: bool = False) -> Iterator[Watch]:
    """Tell of a run's start and of its end, whichever it is.

    Args:
        report: of the run, kept up to date by others.
        output: where it writes, as it may be shown.
        heads: their names.
        metrics: whether to count in Ray's metrics.
    """
    log, begun = RunLog(output), time.monotonic()
    _tell_gone(log, report)
    total = report.rows_total
    words = f"{output}: begun, {'' if report.total_is_exact else 'about '}{total} rows"
    log.tell("run_started", words, heads=list(heads), rows=total)
    try:
        yield Watch(log, {"run": log.run, "output": output} if metrics else None)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        why = str(error) if isinstance(error, RaybertError) else f"{type(error).__name__}: {error}".rstrip(": ")
        bug = None if stopped or isinstance(error, RaybertError) else error
        _tell_end(log, "run_stopped" if stopped else "run_failed", report, begun, None if stopped else why, bug)
        raise
    _tell_end(log, "run_finished", report, begun)


def tell_complete(report: RunReport, output: str) -> None:
    """Tell of a run that has nothing to do."""
    log = RunLog(output)
    _tell_gone(log, report)
    _tell_end(log, "run_finished", report, time.monotonic())


def _tell_gone(log: RunLog, report: RunReport) -> None:
    for path in (*report.vanished, *report.dropped):
        kept = path in report.vanished
        log.tell("input_gone", f"{path} is gone; its parts {'stay' if kept else 'were dropped'}", split={"file": path})


def _tell_end(
    log: RunLog,
    event: str,
    report: RunReport,
    begun: float,
    error: str | None = None,
    bug: BaseException | None = None,
) -> None:
    outcome = {"run_stopped": "stopped; run it again to continue", "run_finished": "complete"}.get(event, error)
    log.tell(
        event,
        f"{report.rows} rows in {report.parts} parts: {outcome}",
        rows=report.rows,
        rows_before=report.rows_before,
        quarantined=report.quarantined,
        filtered=report.filtered,
        tokens=report.tokens,
        forwarded=report.forwarded,
        parts=report.parts,
        seconds=round(time.monotonic() - begun, 3),
        error=error,
        bug=bug,
    )


def endpoints() -> list[str]:
    """Where the nodes of the connected Ray serve their metrics to Prometheus."""
    import ray

    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node.get("MetricsExportPort")
    ]
