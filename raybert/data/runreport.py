"""What a run did, in numbers that grow while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raybert.data.stages import Note


@dataclass(kw_only=True)
class RunReport:
    """What a run did, kept up to date while it goes on.

    Attributes:
        output: OUTPUT.
        rows_total: rows of the input; for progress.
        total_is_exact: whether footers or a limit told them; else they are estimated.
        rows_before: rows that earlier runs had committed.
        rows: rows committed by this run, quarantined and filtered ones included.
        quarantined: of these.
        filtered: of these, left out by the filter.
        quarantined_before: rows that earlier runs had put into the quarantine; counted where a limit asks.
        reasons: rows that this run put into the quarantine, by reason.
        tokens: by head, before truncation.
        forwarded: tokens that this run put through an encoder: those of heads that share a window count once.
        parts: parts committed by this run.
        splits_left: whether anything was left to do at the start.
        vanished: input files of the manifest that are no longer there; their parts stay.
        dropped: those whose parts this run deleted.
        plan: what the calibration foretold, see `raybert.data.calibrate.Forecast`; None where there was none.
        started: when the first worker could begin, seconds since the epoch.
        first_commit: of this run; None before it.
        last_commit: likewise.
        first_rows: rows of the part that was committed first.
        first_tokens: its tokens, all heads.
    """

    output: str
    rows_total: int
    total_is_exact: bool
    rows_before: int = 0
    rows: int = 0
    quarantined: int = 0
    filtered: int = 0
    quarantined_before: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    forwarded: int = 0
    parts: int = 0
    splits_left: bool = True
    vanished: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    plan: Mapping[str, Any] | None = None
    started: float = 0.0
    first_commit: float | None = None
    last_commit: float | None = None
    first_rows: int = 0
    first_tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """From the first commit to the last: what lies between, start-up left out. None below two commits."""
        if self.first_commit is None or self.last_commit is None or self.last_commit <= self.first_commit:
            return None
        return (sum(self.tokens.values()) - self.first_tokens) / (self.last_commit - self.first_commit)

    def add(self, note: Note) -> None:
        """Count a committed split."""
        rows = note["ok"] + note["quarantined"] + note["filtered"]
        tokens = sum(note["tokens"].values())
        if self.first_commit is None or note["committed"] < self.first_commit:
            self.first_commit, self.first_rows, self.first_tokens = note["committed"], rows, tokens
        self.last_commit = max(self.last_commit or 0.0, note["committed"])
        self.rows += rows
        self.quarantined += note["quarantined"]
        self.filtered += note["filtered"]
        self.parts += 1
        self.forwarded += note["forwarded"]
        for reason, count in note["reasons"].items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        for name, count in note["tokens"].items():
            self.tokens[name] = self.tokens.get(name, 0) + count
