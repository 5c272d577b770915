"""Rows that a report shows: read once more, with their answers, and their texts where a kept column holds them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.data.manifest import Manifest
from raybert.data.part import quarantine_name
from raybert.data.reporting.answers import Example
from raybert.data.reporting.parts import Part, batches, head_fields, in_order, kept_fields
from raybert.data.reporting.tallies import Place
from raybert.data.store import Store

TEXT_CHARACTERS = 300
_KEPT_CHARACTERS = 80
_KEPT_COLUMNS = 4
_BEFORE = 80  # characters shown before the first entity where the text is long
_ENTITIES, _MASKS, _FILLS = 12, 4, 3
_LABELS = 5
_BATCH_ROWS = 4096
_READERS = 4

Row = Mapping[str, Any]


def fetch(store: Store, parts: Sequence[Part], places: Iterable[Place], columns: Sequence[str]) -> dict[Place, Row]:
    """Rows of the parts by place.

    Args:
        store: the run's folder.
        parts: its parts.
        places: the rows.
        columns: what is read of them.

    Raises:
        OutputError: a part can't be read.
    """
    return _fetch(store, parts, places, columns, lambda name: name)


def fetch_quarantined(store: Store, parts: Sequence[Part], places: Iterable[Place]) -> dict[Place, Row]:
    """Rows of the quarantine by place. Raises as `fetch` does."""
    return _fetch(store, parts, places, ("text", "reason", "detail"), quarantine_name)


def _fetch(
    store: Store, parts: Sequence[Part], places: Iterable[Place], columns: Sequence[str], named: Callable[[str], str]
) -> dict[Place, Row]:
    wanted: dict[str, tuple[Part, list[int]]] = {}
    by_file = defaultdict(list)
    for part in parts:
        by_file[part.receipt.file].append(part)
    for file, row in sorted(set(places)):
        begins = [part.receipt.first_row for part in by_file[file]]
        part = by_file[file][int(np.searchsorted(begins, row, side="right")) - 1]
        wanted.setdefault(part.name, (part, []))[1].append(row)

    def read(each: tuple[Part, list[int]]) -> dict[Place, Row]:
        part, rows = each
        found: dict[Place, Row] = {}
        name = named(part.name)
        with store.blame(name), store.open(name) as opened:
            parquet = pq.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20)
            for batch in batches(parquet, part.receipt.file, columns, _BATCH_ROWS):
                for at in np.flatnonzero(np.isin(batch.rows, rows)).tolist():
                    values = {column: array[at].as_py() for column, array in batch.columns.items()}
                    found[part.receipt.file, int(batch.rows[at])] = values
        return found

    found: dict[Place, Row] = {}
    for some in in_order(read, list(wanted.values()), _READERS):
        found |= some
    return found


class Shown:
    """Turns rows into examples of the report.

    Args:
        manifest: of the run.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._paths = {file.number: file.path for file in manifest.files}
        kept = kept_fields(manifest)
        names = {field.name for field in kept if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}
        self._text, self._pair = (
            name if name in names else None
            for name in (manifest.settings.get("text_column"), manifest.settings.get("pair_column"))
        )
        self._kept = [
            field.name for field in kept if field.name not in (self._text, self._pair) and _is_plain(field.type)
        ][:_KEPT_COLUMNS]
        self._heads = {head["name"]: head for head in manifest.heads}

    @property
    def kept(self) -> list[str]:
        """Kept columns that are shown."""
        return [*(name for name in (self._text, self._pair) if name), *self._kept]

    def place(self, place: Place) -> Example:
        """Where a row stands in the input."""
        file, row = place
        return {"file": self._paths[file], "row": row}

    def example(self, name: str, place: Place, row: Row) -> Example:
        """A row with a head's answer."""
        answer = _ANSWERS[self._heads[name]["task"]](name, row)
        text = row[self._text] if self._text else None
        begin = 0
        if text is not None and (entities := answer.get("entities")):
            fits = all(text[each["start"] : each["end"]] == each["text"] for each in entities)
            answer["entities"] = entities if fits else [each | {"start": None, "end": None} for each in entities]
            if fits and entities[0]["end"] > TEXT_CHARACTERS:
                begin = max(0, entities[0]["start"] - _BEFORE)
        return {
            **self.place(place),
            "text": cut(text, begin),
            "text_begin": begin,
            "pair": cut(row[self._pair]) if self._pair else None,
            "kept": [{"name": each, "value": cut(_spoken(row[each]), most=_KEPT_CHARACTERS)} for each in self._kept],
            **answer,
        }


def cut(text: str | None, begin: int = 0, most: int = TEXT_CHARACTERS) -> str | None:
    """A piece of a text; dots stand for what is left out behind it."""
    if text is None:
        return None
    return text[begin : begin + most] + ("…" if len(text) > begin + most else "")


def answer_columns(manifest: Manifest) -> list[str]:
    """The columns of all heads that examples show."""
    ends = ("", "_label", "_score", "_labels")
    fields = head_fields(manifest)
    return [
        field.name
        for head in manifest.heads
        if head["task"] != "embed"
        for field in fields[head["name"]]
        if field.name.removeprefix(head["name"]) in ends
    ]


def number(value: float | None) -> float | None:
    """A number as JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None


def _is_plain(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind)


def _spoken(value: Any) -> str | None:
    return None if value is None else str(value)


def _labels(name: str, row: Row) -> Example:
    if f"{name}_label" in row:
        return {"label": cut(row[f"{name}_label"], most=100), "score": number(row[f"{name}_score"])}
    if f"{name}_labels" in row:
        return {"labels": row[f"{name}_labels"][:_LABELS], "more": max(0, len(row[f"{name}_labels"]) - _LABELS)}
    return {"score": number(row[name])}


def _entities(name: str, row: Row) -> Example:
    found = [
        {
            "label": each["label"],
            "score": number(each["score"]),
            "start": each["start"],
            "end": each["end"],
            "text": cut(each["text"], most=100) if each["end"] - each["start"] > 100 else each["text"],
        }
        for each in row[name][:_ENTITIES]
    ]
    return {"entities": found, "more": max(0, len(row[name]) - _ENTITIES)}


def _spans(name: str, row: Row) -> Example:
    best = row[name][0]
    return {"answer": cut(best["text"]), "score": number(best["score"])}


def _words(name: str, row: Row) -> Example:
    masks = [
        [{"token": fill["token"], "score": number(fill["score"])} for fill in fills[:_FILLS]]
        for fills in row[name][:_MASKS]
    ]
    return {"filled": cut(row[name][0][0]["text"]), "masks": masks}


_ANSWERS = {
    "classify": _labels,
    "fill-mask": _words,
    "multiple-choice": _labels,
    "ner": _entities,
    "next-sentence": _labels,
    "qa": _spans,
    "rerank": _labels,
}
