"""What happened when: ``_raybert/history.json``, a session for each start of a run.

Parts hold nothing of the moment, so that a resumed run equals an uninterrupted one; times live here and nowhere else.
Nothing that raybert decides depends on this file: a folder without it is complete, and its report shows no times.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raybert.data.store import Store
from raybert.errors import OutputError

NAME = "_raybert/history.json"
FORMAT = 1
SAVE_EVERY_S = 60.0  # what a killed driver forgets at most

_OF_SPLIT = (
    *("begin", "rows", "quarantined", "filtered", "tokens", "forwarded"),
    *("committed", "read_s", "encode_s", "model_s", "write_s"),
)


@dataclass(kw_only=True)
class Session:
    """One start of a run.

    Attributes:
        started: seconds since the epoch.
        ended: likewise; None while it goes on.
        outcome: running, complete, failed or stopped; one that was killed is taken for stopped by the next start.
        resources: how the stages shared the cluster, see `raybert.cluster.Shares`.
        plan: what the calibration foretold; None where there was none.
        splits: parallel lists, an entry for each split that was committed: ``file``, ``begin``, ``rows``,
            ``quarantined``, ``filtered``, ``tokens`` (of all heads), ``forwarded``, ``committed`` (seconds since the
            epoch), and the seconds of each stage: ``read_s``, ``encode_s``, ``model_s``, ``write_s``.
        searches: splits that were looked through for rows that fail: ``path``, ``begin``, ``end``, ``why``, ``probes``,
            ``found`` (rows with their reasons).
    """

    started: float = field(default_factory=time.time)
    ended: float | None = None
    outcome: str = "running"
    resources: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    splits: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in ("file", *_OF_SPLIT)})
    searches: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, note: Mapping[str, Any]) -> None:
        """Take in the note of a committed split."""
        rows = note["ok"] + note["quarantined"] + note["filtered"]
        values = {**note, "file": note["file"]["number"], "rows": rows, "tokens": sum(note["tokens"].values())}
        for name, column in self.splits.items():
            value = values[name]
            column.append(round(value, 4) if isinstance(value, float) else value)


class History:
    """The sessions of a folder, the last of which is this process's own; saved now and then and at the end.

    Args:
        store: the run's folder.
        session: this start.
    """

    def __init__(self, store: Store, session: Session) -> None:
        self._store = store
        self._before: list[dict[str, Any]] = []
        with suppress(OutputError):  # a damaged history is no reason to refuse a run
            self._before = [_over(each) for each in load(store)]
        self._saved = time.monotonic()
        self.session = session

    def add(self, note: Mapping[str, Any]) -> None:
        """Take in a committed split."""
        self.session.add(note)
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def end(self, outcome: str) -> None:
        """Close the session."""
        self.session.ended, self.session.outcome = time.time(), outcome
        self.save()

    def save(self) -> None:
        """Write the file anew.

        Raises:
            OutputError: the disk or store refused.
        """
        facts = {"format": FORMAT, "sessions": [*self._before, vars(self.session)]}
        self._store.write(NAME, (json.dumps(facts, separators=(",", ":")) + "\n").encode())
        self._saved = time.monotonic()


def _over(session: dict[str, Any]) -> dict[str, Any]:
    return {**session, "outcome": "stopped"} if session["outcome"] == "running" else session


def load(store: Store) -> list[dict[str, Any]]:
    """The sessions of a run's folder, oldest first; none where the file is missing.

    Raises:
        OutputError: the file is damaged.
    """
    try:
        facts = json.loads(store.read(NAME))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, this raybert reads {FORMAT}")
        sessions: list[dict[str, Any]] = facts["sessions"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        what = " ".join(str(error).split())
        raise OutputError(f"{store.place(NAME)}: not a readable history ({what}); delete the file") from error
    return sessions
