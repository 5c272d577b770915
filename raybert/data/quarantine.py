"""What may be said of a run's quarantine: how large it may grow, and which splits are to be tried again."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq

from raybert.data.part import QUARANTINE
from raybert.data.rows import REASONS
from raybert.data.runreport import RunReport
from raybert.data.store import Store
from raybert.errors import RunFailed, SettingsError

_JUDGED_ROWS = 10_000
"""A share is judged from so many rows on: among the first hundred, one bad row would be a whole percent."""

_THREADS = 16  # small files wait for the store, not for a core


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``--max-quarantine``.

    Attributes:
        asked: as the caller wrote it.
        rows: so many may be bad; None where a share is meant.
        share: so much of all rows may be, from 0 to 1; None where a number is meant.
    """

    asked: str
    rows: int | None
    share: float | None

    @classmethod
    def parse(cls, asked: str | float) -> Limit:
        """``1%``, ``0.5%``, or a number of rows.

        Raises:
            SettingsError: it is another thing.
        """
        text = str(asked).strip()
        try:
            if text.endswith("%") and 0 <= float(text[:-1]) <= 100:
                return cls(asked=text, rows=None, share=float(text[:-1]) / 100)
            if text.isdigit():
                return cls(asked=text, rows=int(text), share=None)
        except ValueError:
            pass
        raise SettingsError(f"max-quarantine {text!r}: takes a share such as 1%, or a whole number of rows")

    def check(self, report: RunReport, *, ended: bool) -> None:
        """Stop a run with too many bad rows, as soon as it is clear.

        Raises:
            RunFailed: naming the numbers.
        """
        bad = report.quarantined_before + report.quarantined
        seen = report.rows_before + report.rows
        if self.rows is not None:
            over = bad > self.rows
        else:
            assert self.share is not None
            judged = ended or seen >= _JUDGED_ROWS
            over = (judged and bad > self.share * seen) or (
                report.total_is_exact and bad > self.share * report.rows_total
            )
        if over:
            most = sorted(report.reasons.items(), key=lambda each: (-each[1], each[0]))[:3]
            named = f" ({', '.join(f'{reason} {count:,}' for reason, count in most)})" if most else ""
            raise RunFailed(
                f"quarantine: {bad:,} of {seen:,} rows{named} exceed --max-quarantine {self.asked}; what was committed "
                "stays: look into OUTPUT/_quarantine, mend the input or raise the limit, and run again"
            )


def retried_reasons(beside: Collection[str] = ()) -> frozenset[str]:
    """The reasons that a retry could heal, and those named beside them.

    Raises:
        SettingsError: a reason that there is not.
    """
    for reason in beside:
        if reason not in REASONS:
            raise SettingsError(f"retry-reason {reason!r}: takes one of {', '.join(REASONS)}")
    return frozenset(name for name, reason in REASONS.items() if reason.retryable) | frozenset(beside)


def parts_with(store: Store, reasons: Collection[str]) -> list[str]:
    """Names of the parts whose quarantine holds a row with one of these reasons, sorted."""
    names = store.list(f"{QUARANTINE}/part-")
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: _reasons(store, name), names)
        return [
            name.removeprefix(f"{QUARANTINE}/")
            for name, there in zip(names, found, strict=True)
            if not there.isdisjoint(reasons)
        ]


def quarantined_rows(store: Store) -> int:
    """Rows in the whole quarantine, by its footers."""
    names = store.list(f"{QUARANTINE}/part-")
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(lambda name: _rows(store, name), names))


def _reasons(store: Store, name: str) -> set[str]:
    with store.open(name) as file, store.blame(name):
        return set(pq.read_table(file, columns=["reason"])["reason"].to_pylist())


def _rows(store: Store, name: str) -> int:
    with store.open(name) as file, store.blame(name):
        return int(pq.read_metadata(file).num_rows)
