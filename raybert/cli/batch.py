"""``raybert run``: the job with its progress and its last line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer.exceptions

from raybert.cli.progress import duration, watcher
from raybert.cli.words import counted
from raybert.config import HeadSpec
from raybert.data.foretell import Preview
from raybert.data.job import preview, run
from raybert.data.metrics import endpoints
from raybert.data.runreport import RunReport
from raybert.data.store import Store
from raybert.errors import RaybertError
from raybert.observability import RunLog, json_lines


class Told(typer.exceptions.TyperException):
    """Ends the command; without a message, since all was said already."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def run_and_show(
    specs: Sequence[HeadSpec],
    options: Mapping[str, Any],
    *,
    input_uri: str | Sequence[str],
    output: str,
    log_format: str = "text",
    **resources: Any,
) -> RunReport:
    """Run a job, show its progress on stderr and its summary on stdout.

    With ``log_format`` json stderr carries one JSON object a line instead, what a run failed of included.
    """
    # What Ray tells about workers that died, it prints to stdout, where results go. Read when Ray is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    asked = {"input": input_uri, "output": output, **options, **resources}
    if log_format == "json":
        with _terminable(), _as_json(output):
            report = run(specs, **asked)
        sys.stdout.write(last_line(report) + "\n")
        return report
    with _terminable(), watcher(endpoints if asked.get("metrics") else None) as shown:
        try:
            report = run(specs, on_progress=shown.update, **asked)
        except KeyboardInterrupt:
            sys.stderr.write(f"\nstopped; {output} holds what was committed: run the same command again to continue\n")
            raise
    sys.stdout.write(summary(report) + "\n")
    return report


@contextmanager
def _as_json(output: str) -> Iterator[None]:
    """Say on stderr in JSON lines what happens, and how it ends.

    Raises:
        Told: the run did not end well.
    """
    with json_lines(sys.stderr) as lines:
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            stopped, ours = isinstance(error, KeyboardInterrupt), isinstance(error, RaybertError)
            if not lines.end_told:
                why = str(error) if ours else f"{type(error).__name__}: {error}".rstrip(": ")
                bug = None if stopped or ours else error
                event = "run_stopped" if stopped else "run_failed"
                RunLog(Store(output).place("")).tell(event, why, error=why, bug=bug)
            raise Told(130 if stopped else getattr(error, "exit_code", 1)) from error


def show_plan(
    specs: Sequence[HeadSpec],
    options: Mapping[str, Any],
    *,
    input_uri: str | Sequence[str],
    output: str,
    **resources: Any,
) -> None:
    """Say on stdout what a run would do and take."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    with _terminable():
        found = preview(specs, input=input_uri, output=output, **options, **resources)
    lines = list(plan_lines(found))
    width = max(len(name) for name, _ in lines)
    sys.stdout.write("".join(f"{name:<{width}}  {value}\n" for name, value in lines))


def plan_lines(found: Preview) -> Iterator[tuple[str, str]]:
    """A plan, line by line: what, and how much."""
    about = "" if found.rows_exact else "about "
    yield "input", f"{found.input}: {counted(found.files, 'file')}, {about}{counted(found.rows, 'row')}"
    if found.rows_before:
        yield "done", f"{counted(found.rows_before, 'row')} are committed already"
    ahead = found.forecast
    if ahead is None:
        yield "left", "nothing" if not found.splits else "unknown: no row of the sample can be computed"
        return
    yield "output", f"{found.output}: about {counted(found.splits, 'part')}, {_bytes(ahead.bytes)}"
    yield "tokens", f"about {ahead.tokens:,}"
    shares = found.shares
    size = f"{shares.gpus:g} GPUs" if shares.gpus else counted(shares.streams, "thread")
    feeders = f"{shares.readers} reading, {shares.encoders} encoding, {shares.writers} writing"
    yield "actors", f"{shares.most} of {size}; beside them {feeders}"
    yield "feeding", f"reading, encoding and writing take {ahead.feeders:.2f} CPUs for each model actor"
    yield (
        "time",
        f"about {duration(ahead.seconds)} ({duration(ahead.low)} to {duration(ahead.high)}) on {found.cpus:g} CPUs "
        f"after start-up; bound by {_BOUNDS[ahead.bound]}",
    )


_BOUNDS = {
    "model": "the model",
    "read": "reading",
    "encode": "encoding",
    "write": "writing",
    "CPUs": "the CPUs that all stages share",
}


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _against_plan(report: RunReport) -> str:
    """How far off the forecast was."""
    assert report.plan is not None
    assert report.last_commit is not None
    expected, taken = report.plan["seconds"], report.last_commit - report.started
    direction = "more" if expected > taken else "less"
    return f"the plan said {duration(expected)}, {abs(expected / taken - 1):.0%} {direction} than it took"


def summary(report: RunReport) -> str:
    """A run in one line; what is missing of its input is said on stderr."""
    for path in report.vanished:
        sys.stderr.write(f"raybert: input file {path} is gone; its parts stay in the output, --sync drops them\n")
    for path in report.dropped:
        sys.stderr.write(f"raybert: input file {path} is gone; its parts were dropped\n")
    return last_line(report)


def last_line(report: RunReport) -> str:
    """A run in one line, and nothing else."""
    if not report.splits_left:
        return f"{report.output}: complete already, {report.rows_before:,} rows; nothing to do"
    pace, tokens = report.tokens_per_second, sum(report.tokens.values())
    parts = [
        counted(report.rows, "row"),
        f"{report.quarantined:,} quarantined",
        *([f"{report.filtered:,} filtered"] if report.filtered else []),
        counted(report.parts, "part"),
        counted(tokens, "token"),
    ]
    if report.rows_before:
        parts.append(f"{report.rows_before:,} rows were there before")
    if pace is not None and report.last_commit is not None:
        parts.append(f"{pace:,.0f} tokens/s after the first commit")
        parts.append(
            f"{duration(report.last_commit - report.started)} in all, first commit after "
            f"{duration((report.first_commit or report.started) - report.started)}"
        )
        if report.plan is not None:
            parts.append(_against_plan(report))
    return f"{report.output}: " + ", ".join(parts)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM (a scheduler, ``ray job stop``) end a run as Ctrl-C does: in order, and resumable."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
