"""The run's parts, read column by column: each by itself, several at a time, and added up in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.data.manifest import Head, Manifest
from raybert.data.part import Receipt, read_footer
from raybert.data.reporting.answers import Batch, Labels, ManyLabels, Numbers, Tally
from raybert.data.reporting.spans import Entities, Spans, Words
from raybert.data.reporting.tallies import Lengths, Spread, Unit, draw_keys
from raybert.data.reporting.vectors import Vectors, Weights
from raybert.data.splits import parse_part_name, split_hash
from raybert.data.store import Store
from raybert.errors import OutputError

T = TypeVar("T")
R = TypeVar("R")

BATCH_ROWS = 25_600
_LEAST_ROWS = 256
_BATCH_BYTES = 8 << 20  # of a part's file, or of vectors
_SAMPLE_BYTES = 256 << 20  # of one head's vectors; those of more parts are not read
_FOOTERS, _READERS = 16, 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part that belongs to the run.

    Attributes:
        name: its name.
        receipt: from its footer.
    """

    name: str
    receipt: Receipt


@dataclass(frozen=True, kw_only=True)
class HeadTally:
    """What is counted of one head.

    Attributes:
        lengths: of its rows' tokens.
        answers: of its answers.
    """

    lengths: Lengths
    answers: Tally


@dataclass(kw_only=True)
class Piece:
    """What one part, or all of them, hold.

    Attributes:
        bytes: of the files.
        heads: by name.
    """

    bytes: int
    heads: Mapping[str, HeadTally]


def in_order(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """Results in the items' order, few at a time: no more wait than there are threads."""
    with ThreadPoolExecutor(threads) as pool:
        for begin in range(0, len(items), threads):
            yield from pool.map(work, items[begin : begin + threads])


def run_parts(store: Store, manifest: Manifest) -> list[Part]:
    """The parts that belong to the run, in the input's order; those that can't be read are `verify`'s to name."""
    files = {file.number: file for file in manifest.files}
    shaping = manifest.shaping

    def read(name: str) -> Part | None:
        spelled = parse_part_name(name)
        if spelled is None or spelled.file not in files:
            return None
        try:
            receipt = read_footer(store, name).receipt
        except (FileNotFoundError, OutputError):
            return None
        if receipt is None:
            return None
        end = spelled.begin + receipt.rows_in
        belongs = split_hash(files[spelled.file], spelled.begin, end, shaping) == spelled.hash
        return Part(name=name, receipt=receipt) if belongs else None

    names = [name for name in store.list("part-") if parse_part_name(name)]
    return [part for part in in_order(read, names, _FOOTERS) if part is not None]


def kept_fields(manifest: Manifest) -> list[pa.Field]:
    """The kept columns: what stands between the row's place and the first head."""
    return list(manifest.schema)[2 : 2 + len(manifest.settings["columns"]["keep"])]


def head_fields(manifest: Manifest) -> dict[str, list[pa.Field]]:
    """Each head's own columns: the heads follow one another, each with its ``_truncated`` at the end."""
    fields, begin, found = list(manifest.schema), 2 + len(kept_fields(manifest)), {}
    for head in manifest.heads:
        end = manifest.schema.get_field_index(f"{head['name']}_truncated") + 1
        found[head["name"]] = fields[begin:end]
        begin = end
    return found


def make_tally(head: Head, fields: Sequence[pa.Field]) -> HeadTally:
    """An empty tally for a head, by its task and columns."""
    columns = {field.name: field.type for field in fields}
    name, options = head["name"], head["options"]
    scores: Callable[[], Unit | Spread] = Spread if options.get("activation") == "none" else Unit
    kinds: dict[str, Callable[[], Tally]] = {
        "embed": lambda: Weights(name) if f"{name}_weights" in columns else Vectors(name, columns[name]),
        "fill-mask": lambda: Words(name),
        "multiple-choice": lambda: Labels(name, Unit(), None),
        "ner": lambda: Entities(name),
        "next-sentence": lambda: Labels(name, Unit(), options.get("labels")),
        "qa": lambda: Spans(name),
        "rerank": lambda: Numbers(name, scores()),
        "classify": lambda: _classified(name, columns, scores(), options.get("labels")),
    }
    return HeadTally(lengths=Lengths(options["max_length"]), answers=kinds[head["task"]]())


def _classified(
    name: str, columns: Mapping[str, pa.DataType], scores: Unit | Spread, labels: Sequence[str] | None
) -> Tally:
    if f"{name}_labels" in columns:
        return ManyLabels(name, labels)
    return Labels(name, scores, labels) if f"{name}_label" in columns else Numbers(name, scores)


def count(store: Store, manifest: Manifest, parts: Sequence[Part]) -> Piece:
    """Read all parts, the large columns of a sample of them, and add up.

    Raises:
        OutputError: a part can't be read.
    """
    empty = _empty(manifest)
    sampled = {
        name: _sampled(tally.answers, name, parts)
        for name, tally in empty.heads.items()
        if isinstance(tally.answers, Vectors)
    }
    for piece in in_order(lambda part: _look(store, manifest, part, sampled), parts, _READERS):
        empty.bytes += piece.bytes
        for name, tally in empty.heads.items():
            tally.lengths.merge(piece.heads[name].lengths)
            tally.answers.merge(piece.heads[name].answers)
    return empty


def _empty(manifest: Manifest) -> Piece:
    fields = head_fields(manifest)
    heads = {head["name"]: make_tally(head, fields[head["name"]]) for head in manifest.heads}
    return Piece(bytes=0, heads=heads)


def _row_bytes(vectors: Vectors, name: str, part: Part) -> int:
    rows = max(1, part.receipt.ok)
    return vectors.bytes * (max(1, part.receipt.tokens.get(name, 0) // rows) if vectors.of_tokens else 1)


def _sampled(vectors: Vectors, name: str, parts: Sequence[Part]) -> set[str]:
    """Names of the parts whose vectors are read, evenly spread."""
    total = sum(part.receipt.ok * _row_bytes(vectors, name, part) for part in parts)
    many = len(parts) if total <= _SAMPLE_BYTES else max(1, len(parts) * _SAMPLE_BYTES // total)
    return {parts[number * len(parts) // many].name for number in range(many)}


def _look(store: Store, manifest: Manifest, part: Part, sampled: Mapping[str, set[str]]) -> Piece:
    piece = _empty(manifest)
    small = [tally.answers for tally in piece.heads.values() if not isinstance(tally.answers, Vectors)]
    counts = [column for name in piece.heads for column in (f"{name}_tokens", f"{name}_truncated")]
    wanted = [*counts, *(column for tally in small for column in tally.columns)]
    seen: dict[str, list[Any]] = {column: [] for column in counts}
    with store.blame(part.name), store.open(part.name) as file:
        piece.bytes = file.size()
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        rows = max(_LEAST_ROWS, min(BATCH_ROWS, _BATCH_BYTES * part.receipt.ok // piece.bytes))
        for batch in batches(parquet, part.receipt.file, wanted, rows):
            for column, values in seen.items():
                values.append(batch.columns[column].to_numpy(zero_copy_only=False))
            for tally in small:
                tally.add(batch)
        for name, head in piece.heads.items():
            _count_lengths(head.lengths, seen[f"{name}_tokens"], seen[f"{name}_truncated"])
            if isinstance(head.answers, Vectors) and part.name in sampled[name]:
                head.answers.begin()
                rows = max(1, min(BATCH_ROWS, _BATCH_BYTES // _row_bytes(head.answers, name, part)))
                for batch in batches(parquet, part.receipt.file, head.answers.columns, rows):
                    head.answers.add(batch)
    return piece


def _count_lengths(lengths: Lengths, tokens: Sequence[Any], truncated: Sequence[Any]) -> None:
    if tokens:
        lengths.add(np.concatenate(tokens).astype(np.int64), int(np.concatenate(truncated).sum()))


def batches(parquet: pq.ParquetFile, file: int, columns: Sequence[str], rows: int) -> Iterator[Batch]:
    """Rows of a part, so many at a time, with these columns."""
    for found in parquet.iter_batches(rows, columns=["_row", *columns]):
        numbers = found.column("_row").to_numpy().astype(np.int64)
        yield Batch(
            file=file,
            rows=numbers,
            keys=draw_keys(file, numbers),
            columns={column: found.column(column) for column in columns},
        )
