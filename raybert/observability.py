"""What raybert tells about its work: records of the logger ``raybert``, and their form as one JSON object a line.

A record says in words what happened and carries the facts as attributes (`FIELDS`), so that any handler of ``logging``
can use them. Nothing is set up here: who wants to hear gives the logger, or the root, a handler and a level. Where
nobody listens nothing is said; what Python does then by itself, write warnings to stderr, would disturb a progress bar.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

LOGGER = "raybert"
EVENTS: Mapping[str, int] = {
    "run_started": logging.INFO,
    "input_gone": logging.WARNING,
    "split_committed": logging.INFO,
    "rows_quarantined": logging.WARNING,
    "worker_died": logging.WARNING,
    "split_set_aside": logging.WARNING,
    "split_failed": logging.ERROR,
    "run_finished": logging.INFO,
    "run_stopped": logging.WARNING,
    "run_failed": logging.ERROR,
}
"""What can happen, and how loud it is."""
LAST_EVENTS = frozenset({"run_finished", "run_stopped", "run_failed"})

FIELDS = (
    *("event", "run", "output", "heads", "split", "reason", "rows", "rows_before", "quarantined", "filtered", "tokens"),
    *("forwarded", "parts", "seconds", "stages", "deaths", "error", "request_id", "method", "path", "status"),
)
"""Attributes that a record may have beside those of ``logging``, in the order in which JSON has them."""


class RunLog:
    """What one session of a run tells.

    Args:
        output: where it writes, as it may be shown.

    Attributes:
        run: short and random, one of its own for each session.
    """

    def __init__(self, output: str) -> None:
        self.run = secrets.token_hex(4)
        self._output = output

    def tell(self, event: str, words: str, *, bug: BaseException | None = None, **fields: Any) -> None:
        """Emit the record of an event; a field that is None is left out, the traceback of a bug is taken along."""
        logger, level = logging.getLogger(LOGGER), EVENTS[event]
        if logger.isEnabledFor(level) and logger.hasHandlers():
            given = {name: value for name, value in fields.items() if value is not None}
            assert set(given) <= set(FIELDS), given
            extra = {"event": event, "run": self.run, "output": self._output, **given}
            logger.log(level, "%s", words, extra=extra, exc_info=bug)


_JSON = json.JSONEncoder(ensure_ascii=False, default=str)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time (UTC, ISO 8601), level, event, run, message, and the fields it has.

    A record of another origin has the event ``log``; one with a traceback has it under ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, UTC)
        there = record.__dict__
        own = {name: there[name] for name in FIELDS if name in there}
        event = own.pop("event", "log")
        facts = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event,
            **({"run": own.pop("run")} if "run" in own else {}),
            "message": record.getMessage(),
            **own,
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return _JSON.encode(facts)


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes JSON lines.

    Attributes:
        end_told: whether a line said how the run ended.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())
        self.end_told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        super().emit(record)
        self.end_told = self.end_told or getattr(record, "event", "") in LAST_EVENTS


@contextmanager
def json_lines(stream: TextIO) -> Iterator[JsonHandler]:
    """Send what raybert tells to ``stream`` as JSON lines, for the length of the block."""
    logger, handler = logging.getLogger(LOGGER), JsonHandler(stream)
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _RotatingLines(RotatingFileHandler):
    """JSON lines in a file; the one that fills it is its last."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, maxBytes=_MOST_BYTES, backupCount=_OLD_FILES, encoding="utf-8")
        self.setFormatter(JsonFormatter())

    def shouldRollover(self, record: logging.LogRecord) -> int:  # noqa: N802  logging's name
        """Whether it is full; that of `logging` would make each line twice, to know its length."""
        return int(self.stream is not None and self.stream.tell() >= self.maxBytes)


_MOST_BYTES, _OLD_FILES = 100 << 20, 5


def log_requests(file: Path, stream: TextIO) -> None:
    """Let this process tell of every request that it answers, as JSON lines in a file of its own.

    What goes wrong is told on ``stream`` too. The file is begun anew when it is full, beside five older ones. Called
    again it does nothing.
    """
    logger = logging.getLogger(LOGGER)
    if any(isinstance(handler, _RotatingLines) for handler in logger.handlers):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    aloud = JsonHandler(stream)
    aloud.setLevel(logging.WARNING)
    for handler in (_RotatingLines(file), aloud):
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
