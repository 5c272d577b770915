"""All figures of a report, as they stand in report.json: a pure function of the run's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from raybert.data import history as histories
from raybert.data.manifest import Head, Manifest
from raybert.data.part import quarantine_name
from raybert.data.reporting import times
from raybert.data.reporting.answers import EXAMPLES
from raybert.data.reporting.examples import Row, Shown, answer_columns, cut, fetch, fetch_quarantined
from raybert.data.reporting.parts import BATCH_ROWS, HeadTally, Part, Piece, batches, count, in_order, run_parts
from raybert.data.reporting.tallies import Drawn, Lengths, Place
from raybert.data.rows import REASONS
from raybert.data.store import Store
from raybert.data.verify import VerifyReport, verify

FORMAT = 1
_UNREADABLE = ("columns",)  # holds a schema in base64; the columns' names stand in the parts
_PROBLEMS = 20
_FILES = 20
_QUARANTINE_TEXT = 200
_READERS = 8


def make_facts(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Read the run and count.

    Args:
        store: its folder.
        manifest: of that folder.

    Raises:
        OutputError: the history or a part can't be read.
    """
    verified = verify(store)
    history = histories.load(store)
    parts = run_parts(store, manifest)
    piece = count(store, manifest, parts)
    quarantine = _Quarantine(store, parts)
    stages = times.stages(history)
    return {
        "format": FORMAT,
        "title": f"{', '.join(head['name'] for head in manifest.heads)} over {manifest.settings['input']}",
        "settings": {name: value for name, value in manifest.settings.items() if name not in _UNREADABLE},
        "engine": dict(manifest.engine),
        "summary": _summary(verified, parts, piece, quarantine),
        "problems": list(verified.problems[:_PROBLEMS]),
        "times": {
            "known": bool(history),
            "sessions": times.sessions(history),
            "stages": stages,
            "bottleneck": times.bottleneck(stages, sum(len(each["splits"]["committed"]) for each in history)),
            "plans": times.plans(history, piece.bytes),
        },
        "packing": _packing(piece, times.forwarded(history, parts), verified.rows_in, manifest),
        "heads": _heads(store, manifest, parts, piece),
        "quarantine": quarantine.facts(manifest),
        "files": _files(manifest, parts),
    }


def _summary(verified: VerifyReport, parts: Sequence[Part], piece: Piece, quarantine: _Quarantine) -> dict[str, Any]:
    rows = {
        "ok": sum(part.receipt.ok for part in parts),
        "quarantined": sum(part.receipt.quarantined for part in parts),
        "filtered": sum(part.receipt.filtered for part in parts),
    }
    total = sum(part.receipt.rows_in for part in parts)
    return {
        "verified": verified.ok,
        "problems": len(verified.problems),
        "files": verified.files,
        "parts": len(parts),
        "rows": total,
        **rows,
        **{f"{name}_share": number / max(1, total) for name, number in rows.items()},
        "tokens": sum(sum(part.receipt.tokens.values()) for part in parts),
        "bytes": piece.bytes,
        "quarantine_bytes": quarantine.bytes,
    }


def _heads(store: Store, manifest: Manifest, parts: Sequence[Part], piece: Piece) -> list[dict[str, Any]]:
    """Each head with its figures and examples; all rows that are shown are read in one pass."""
    shown = Shown(manifest)
    places = [place for tally in piece.heads.values() for place in tally.answers.places()]
    columns = [*shown.kept, *answer_columns(manifest)]
    rows = fetch(store, parts, places, columns)
    return [_head(head, piece.heads[head["name"]], shown, rows) for head in manifest.heads]


def _head(head: Head, tally: HeadTally, shown: Shown, rows: Mapping[Place, Row]) -> dict[str, Any]:
    lengths, name = tally.lengths, head["name"]
    facts = lengths.facts()
    many = max(1, facts["count"])

    def show(place: Place) -> dict[str, Any]:
        return shown.example(name, place, rows[place])

    return {
        "name": name,
        "task": head["task"],
        "model": head["model"],
        "fingerprint": head["fingerprint"],
        "fingerprint_prefix": head["fingerprint"][:12],
        "options": dict(head["options"]),
        "rows": facts["count"],
        "max_length": lengths.longest,
        "truncated": lengths.truncated,
        "truncated_share": lengths.truncated / many,
        "lengths": facts,
        "padding": _padding(head, lengths),
        "answers": tally.answers.facts(show),
    }


def _padding(head: Head, lengths: Lengths) -> dict[str, Any] | None:
    """How much of a padded batch would be tokens; None where a row is not one sequence."""
    if head["task"] == "multiple-choice" or not lengths.padded:
        return None
    return {"tokens": lengths.capped, "padded": lengths.padded, "share": lengths.capped / lengths.padded}


def _packing(piece: Piece, forwarded: Mapping[str, int], rows: int, manifest: Manifest) -> dict[str, Any]:
    """What was computed beside what the same rows would cost, head by head, in padded batches."""
    found = [_padding(head, piece.heads[head["name"]].lengths) for head in manifest.heads]
    whole = all(found) and rows > 0 and forwarded["rows"] == rows
    padded = sum(each["padded"] for each in found if each)
    return {
        "batch": Lengths.BATCH,
        "tokens": sum(each["tokens"] for each in found if each),
        "padded": padded,
        "known_rows": forwarded["rows"],
        "forwarded": forwarded["tokens"] if whole else None,
        "saved_share": 1 - forwarded["tokens"] / padded if whole else None,
    }


class _Quarantine:
    """The quarantine's rows by reason.

    Args:
        store: the run's folder.
        parts: its parts; those without such rows have no file there.
    """

    def __init__(self, store: Store, parts: Sequence[Part]) -> None:
        self._store, self._parts = store, parts
        self.bytes = 0
        self._reasons: Counter[str] = Counter()
        self._drawn: dict[str, Drawn] = {}
        bad = [part for part in parts if part.receipt.quarantined]
        for size, reasons, drawn in in_order(partial(_look_at_quarantine, store), bad, _READERS):
            self.bytes += size
            self._reasons.update(reasons)
            for reason, rows in drawn.items():
                self._drawn.setdefault(reason, Drawn(EXAMPLES)).merge(rows)

    def facts(self, manifest: Manifest) -> dict[str, Any]:
        """As it stands in the report."""
        places = [place for drawn in self._drawn.values() for place in drawn.places]
        rows, shown = fetch_quarantined(self._store, self._parts, places), Shown(manifest)
        total = sum(self._reasons.values())
        reasons = []
        for reason, number in sorted(self._reasons.items(), key=lambda each: (-each[1], each[0])):
            examples = [
                {
                    **shown.place(place),
                    "detail": rows[place]["detail"],
                    "text": cut(rows[place]["text"], most=_QUARANTINE_TEXT),
                }
                for place in self._drawn[reason].places
            ]
            meaning = REASONS[reason].text if reason in REASONS else None
            each = {"reason": reason, "meaning": meaning, "count": number, "share": number / total}
            reasons.append(each | {"examples": examples})
        return {"rows": total, "reasons": reasons}


def _look_at_quarantine(store: Store, part: Part) -> tuple[int, Counter[str], dict[str, Drawn]]:
    name = quarantine_name(part.name)
    reasons: Counter[str] = Counter()
    drawn: dict[str, Drawn] = {}
    try:
        with store.blame(name, missing_passes=True), store.open(name) as file:
            size = file.size()
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            for batch in batches(parquet, part.receipt.file, ["reason"], BATCH_ROWS):
                found = batch.columns["reason"].to_numpy(zero_copy_only=False)
                for reason in sorted(set(found.tolist())):
                    at = found == reason
                    reasons[reason] += int(at.sum())
                    drawn.setdefault(reason, Drawn(EXAMPLES)).add(batch.keys[at], batch.file, batch.rows[at])
    except FileNotFoundError:  # `verify` names it
        return 0, Counter(), {}
    return size, reasons, drawn


def _files(manifest: Manifest, parts: Sequence[Part]) -> dict[str, Any]:
    """Input files with their rows: those with most rows in the quarantine first, then in the input's order."""
    names = ("rows_in", "ok", "quarantined", "filtered")
    rows = {file.number: dict.fromkeys(names, 0) for file in manifest.files}
    for part in parts:
        for name in names:
            rows[part.receipt.file][name] += getattr(part.receipt, name)
    ranked = sorted(manifest.files, key=lambda file: (-rows[file.number]["quarantined"], file.number))
    first = [{"number": file.number, "path": file.path, "bytes": file.size, **rows[file.number]} for file in ranked]
    return {"count": len(first), "bytes": sum(file.size for file in manifest.files), "first": first[:_FILES]}
