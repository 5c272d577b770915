"""What a run shows while it goes on: a bar on a terminal, plain lines in a log; both on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from raybert.data.runreport import RunReport

_LINE_EVERY_S = 10.0


class Watcher(Protocol):
    """Context manager that is told of every change."""

    def __enter__(self) -> Watcher: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, report: RunReport) -> None:
        """The report changed."""
        ...


def watcher(endpoints: Callable[[], Sequence[str]] | None = None) -> Watcher:
    """A bar where stderr is a terminal, else lines.

    Args:
        endpoints: where metrics are served, asked once when the run begins; said in a line.
    """
    return _Bar(endpoints) if sys.stderr.isatty() else _Lines(endpoints)


def _said_once(endpoints: Callable[[], Sequence[str]] | None) -> str:
    """Where metrics are served, as a line; nothing where there are none."""
    urls = [] if endpoints is None else endpoints()
    return f"raybert: metrics at {', '.join(urls)}\n" if urls else ""


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def speed(report: RunReport) -> str:
    """Tokens a second since the first commit, and what is left at that pace, as far as they are known."""
    pace = report.tokens_per_second
    if pace is None:
        return ""
    text = f"{pace:,.0f} tokens/s"
    left = _seconds_left(report)
    return text if left is None else f"{text}, {duration(left)} left"


def details(report: RunReport) -> str:
    """What stands behind the rows: quarantined ones if there are any, speed and time left as far as they are known."""
    bad = f"{report.quarantined:,} quarantined" if report.quarantined else ""
    return ", ".join(part for part in (bad, speed(report)) if part)


def _seconds_left(report: RunReport) -> float | None:
    if not report.last_commit or not report.first_commit:
        return None
    rows = report.rows - report.first_rows
    if rows <= 0:
        return None
    left = report.rows_total - report.rows_before - report.rows
    return max(0.0, left * (report.last_commit - report.first_commit) / rows)


class _Lines:
    """One line at the start, then one at most every ten seconds."""

    def __init__(self, endpoints: Callable[[], Sequence[str]] | None) -> None:
        self._endpoints = endpoints
        self._next = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, report: RunReport) -> None:
        """Write a line if the last one is old enough."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LINE_EVERY_S
        where, self._endpoints = _said_once(self._endpoints), None
        total = f" of {'' if report.total_is_exact else 'about '}{report.rows_total:,}"
        done = report.rows_before + report.rows
        more = details(report)
        sys.stderr.write(f"{where}raybert: {done:,}{total} rows{', ' + more if more else ''}\n")
        sys.stderr.flush()


class _Bar:
    """A rich bar: rows, share, speed, time left."""

    def __init__(self, endpoints: Callable[[], Sequence[str]] | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._endpoints = endpoints
        self._terminal = os.fdopen(os.dup(2), "w", encoding="utf-8")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
            # Of its own, so that what is drawn does not depend on who silences descriptor 2 for a while.
            console=Console(file=self._terminal),
        )
        self._task: Any = self._progress.add_task("starting", total=None, pace="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._terminal.close()

    def update(self, report: RunReport) -> None:
        """Move the bar."""
        where, self._endpoints = _said_once(self._endpoints), None
        if where:
            self._progress.console.print(where, end="", highlight=False, markup=False, soft_wrap=True)
        self._progress.update(
            self._task,
            description="running",
            completed=report.rows_before + report.rows,
            # An estimate can be too low: a bar never stands beyond its end.
            total=max(report.rows_total, report.rows_before + report.rows),
            pace=details(report),
        )
