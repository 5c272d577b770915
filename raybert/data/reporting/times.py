"""What a run's history says: how fast it was over time, which stage held it up, how good the forecast was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from raybert.data.reporting.parts import Part

STAGES = ("read", "encode", "model", "write")
WORKERS = {"read": "readers", "encode": "encoders", "model": "most", "write": "writers"}
"""Stage -> the name of its workers' number among a session's resources."""

BINS = 48
_BUSY = 0.7
_FEW = 2  # splits a worker: below, most of the time no second one is there to work on

_REMEDIES = {
    "read": "Files that can only be streamed (.gz, .csv, .jsonl) are read by one worker each: give the input more and "
    "smaller files, or Parquet with several row groups.",
    "encode": "Tokenizing takes CPUs: leave more of them beside the model actors (--cpus-per-actor), add machines, or "
    "keep fewer different tokenizers and lengths among the heads.",
    "model": "More GPUs or CPUs for model actors (--actors), a smaller max length, or bfloat16 where the hardware has "
    "it make the run faster; so do heads that share one encoder.",
    "write": "The output's disk or store takes its time: keep fewer columns (--keep), halve vectors (--vector-type "
    "float16), or write nearer to the workers.",
}


def sessions(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each start of the run: when, how long, how much, how fast.

    Seconds count from the session's start; ``seconds`` and the speeds go to the last commit, where there is one.
    """
    return [_session(number, session) for number, session in enumerate(history, 1)]


def _session(number: int, session: Mapping[str, Any]) -> dict[str, Any]:
    splits, started = session["splits"], session["started"]
    committed = np.array(splits["committed"], np.float64) - started
    seconds = float(committed.max()) if len(committed) else None
    total = {name: int(sum(splits[name])) for name in ("rows", "quarantined", "filtered", "tokens", "forwarded")}
    return {
        "number": number,
        "started": _moment(started),
        "ended": _moment(session["ended"]),
        "outcome": session["outcome"],
        "parts": len(committed),
        **total,
        "seconds": seconds,
        "whole_seconds": None if session["ended"] is None else session["ended"] - started,
        "first_commit": float(committed.min()) if len(committed) else None,
        "rows_per_second": _per(total["rows"], seconds),
        "tokens_per_second": _per(total["tokens"], seconds),
        "workers": {stage: session["resources"].get(name) for stage, name in WORKERS.items()},
        "resources": dict(session["resources"]),
        "pace": _pace(committed, splits),
    }


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _per(count: float, seconds: float | None) -> float | None:
    return count / seconds if seconds else None


def _pace(committed: Any, splits: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """Rows and tokens a second in equal bins of time, each commit counted where it fell; None below three commits."""
    if len(committed) < 3 or committed.max() <= 0:
        return None
    many = min(BINS, max(3, len(committed) // 2))
    width = float(committed.max()) / many
    bins = np.clip(np.ceil(committed / width).astype(int) - 1, 0, many - 1)
    rates = {
        f"{name}_per_second": (np.bincount(bins, weights=splits[name], minlength=many) / width).tolist()
        for name in ("rows", "tokens")
    }
    return {"bin_seconds": width, **rates}


def stages(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of each stage in all sessions, its share of all stages, and how busy its workers were.

    A stage is busy for its seconds divided by what its workers had: seconds to the last commit, times workers.
    ``busy_running`` leaves out start-up: it counts from the first commit on, and the splits that were committed later.
    """
    worked = [session for session in history if session["splits"]["committed"]]
    seconds = {stage: float(sum(sum(each["splits"][f"{stage}_s"]) for each in worked)) for stage in STAGES}
    total = sum(seconds.values())
    if not total:
        return []
    found = []
    for stage in STAGES:
        workers = [session["resources"].get(WORKERS[stage]) for session in worked]
        room = sum(
            (max(each["splits"]["committed"]) - each["started"]) * many
            for each, many in zip(worked, workers, strict=True)
            if many
        )
        known = all(workers) and room > 0
        later = _after_first_commit(worked, stage, workers) if known else None
        found.append(
            {
                "stage": stage,
                "seconds": seconds[stage],
                "share": seconds[stage] / total,
                "workers": sorted({many for many in workers if many}),
                "busy": seconds[stage] / room if known else None,
                "busy_running": later,
            }
        )
    return found


def _after_first_commit(worked: Sequence[Mapping[str, Any]], stage: str, workers: Sequence[int]) -> float | None:
    seconds = room = 0.0
    for session, many in zip(worked, workers, strict=True):
        splits = session["splits"]
        first = min(splits["committed"])
        later = zip(splits["committed"], splits[f"{stage}_s"], strict=True)
        seconds += sum(each for committed, each in later if committed > first)
        room += (max(splits["committed"]) - first) * many
    return seconds / room if room else None


def bottleneck(found: Sequence[Mapping[str, Any]], splits: int) -> dict[str, Any] | None:
    """Which stage held the run up, and what to do about it.

    Args:
        found: of `stages`.
        splits: that were committed.
    """
    known = [each for each in found if each["busy_running"] is not None]
    if not known:
        return None
    most = max(known, key=lambda each: each["busy_running"])
    stage, busy = most["stage"], most["busy_running"]
    if splits < _FEW * sum(max(each["workers"]) for each in known):
        verdict = "The run was too short for a bottleneck"
        advice = (
            "Stages work on different splits at the same time; with so few splits for so many workers, starting up and "
            "waiting for the first splits weigh most. A longer input, or smaller splits (--split-rows), fills them."
        )
        stage = None
    elif busy >= _BUSY:
        verdict, advice = f"{_NAMES[stage]} held the run up", _REMEDIES[stage]
    else:
        verdict = f"No stage was busy all the time; {_NAMES[stage].lower()} was nearest to it"
        advice = (
            "The stages waited for CPUs that they share, or for the disk or store. More CPUs in the cluster help; so "
            f"does what makes this stage lighter. {_REMEDIES[stage]}"
        )
    return {"stage": stage, "busy_running": most["busy_running"], "verdict": verdict, "advice": advice}


_NAMES = {
    "read": "Reading",
    "encode": "Tokenizing",
    "model": "The model",
    "write": "Writing",
}


def plans(history: Sequence[Mapping[str, Any]], written: int) -> list[dict[str, Any]]:
    """The forecasts of sessions that came to their end, beside what came.

    Args:
        history: the sessions.
        written: bytes of all parts; compared where one session wrote them all.
    """
    alone = sum(bool(session["splits"]["committed"]) for session in history) == 1
    found = []
    for number, session in enumerate(history, 1):
        plan, splits = session["plan"], session["splits"]
        if not plan or session["outcome"] != "complete" or not splits["committed"]:
            continue
        measured = {
            "seconds": max(splits["committed"]) - session["started"],
            "rows": sum(splits["rows"]),
            "tokens": sum(splits["tokens"]),
            **({"bytes": written} if alone else {}),
        }
        rows = [
            {"what": what, "planned": plan[what], "measured": value, "error": plan[what] / value - 1 if value else None}
            for what, value in measured.items()
        ]
        low, high = plan["low"], plan["high"]
        found.append(
            {"session": number, "low": low, "high": high, "inside": low <= measured["seconds"] <= high, "rows": rows}
        )
    return found


def forwarded(history: Sequence[Mapping[str, Any]], parts: Sequence[Part]) -> dict[str, int]:
    """Tokens that went through an encoder for the parts that are there, and of how many rows the history knows it."""
    latest: dict[tuple[int, int], tuple[int, int]] = {}
    for session in history:
        splits = session["splits"]
        places = zip(splits["file"], splits["begin"], strict=True)
        latest |= dict(zip(places, zip(splits["rows"], splits["forwarded"], strict=True), strict=True))
    rows = tokens = 0
    for part in parts:
        known = latest.get((part.receipt.file, part.receipt.first_row))
        if known is not None and known[0] == part.receipt.rows_in:
            rows, tokens = rows + known[0], tokens + known[1]
    return {"rows": rows, "tokens": tokens}
