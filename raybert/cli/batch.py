"""``raybert run``: the job with its progress and its last line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from raybert.cli.progress import duration, watcher
from raybert.cli.words import counted
from raybert.config import HeadSpec
from raybert.data.job import run
from raybert.data.runreport import RunReport


def run_and_show(
    specs: Sequence[HeadSpec], options: Mapping[str, Any], *, input_uri: str, output: str, **resources: Any
) -> RunReport:
    """Run a job, show its progress on stderr and its summary on stdout."""
    # What Ray tells about workers that died, it prints to stdout, where results go. Read when Ray is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    with _terminable(), watcher() as shown:
        try:
            report = run(specs, input=input_uri, output=output, on_progress=shown.update, **options, **resources)
        except KeyboardInterrupt:
            sys.stderr.write(f"\nstopped; {output} holds what was committed: run the same command again to continue\n")
            raise
    sys.stdout.write(summary(report) + "\n")
    return report


def summary(report: RunReport) -> str:
    """A run in one line."""
    for path in report.vanished:
        sys.stderr.write(f"raybert: input file {path} is gone; its parts stay in the output, --sync drops them\n")
    for path in report.dropped:
        sys.stderr.write(f"raybert: input file {path} is gone; its parts were dropped\n")
    if not report.splits_left:
        return f"{report.output}: complete already, {report.rows_before:,} rows; nothing to do"
    pace, tokens = report.tokens_per_second, sum(report.tokens.values())
    parts = [
        counted(report.rows, "row"),
        f"{report.quarantined:,} quarantined",
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
