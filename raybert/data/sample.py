"""A few rows of a run, drawn over all its parts: as the parts have them, and as the input gives them again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.data.files import check_unchanged
from raybert.data.manifest import Manifest
from raybert.data.parquet import open_parquet
from raybert.data.part import Receipt, read_footer
from raybert.data.read import ReadSpec, read_splits
from raybert.data.splits import InputFile, ReadTask, parse_part_name, split_hash
from raybert.data.store import Store
from raybert.errors import InputError

_THREADS = 16  # footers wait for the store, not for a core
_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a row comes from: the input file's path below the root, and the row's number in it."""

    path: str
    row: int

    def __str__(self) -> str:
        return f"{self.path} row {self.row}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """N rows, the same in both tables.

    Attributes:
        places: where they come from.
        stored: as the parts have them.
        again: as the input gives them: ``_row``, kept columns, ``__text``, maybe ``__pair``.
        refused: rows of parts that reading gives no more, with what it says of them.
        left_out: a line for each input file that is not as it was, and so is not compared.
    """

    places: tuple[Place, ...]
    stored: pa.Table
    again: pa.Table
    refused: tuple[tuple[Place, str], ...]
    left_out: tuple[str, ...]


def committed(store: Store, manifest: Manifest) -> dict[str, Receipt]:
    """Receipts of the parts that belong to the run, by name; stale ones are passed by.

    Raises:
        OutputError: a footer is damaged.
    """
    files = {file.number: file for file in manifest.files}
    shaping = manifest.shaping
    names = [name for name in store.list("part-") if parse_part_name(name)]
    with ThreadPoolExecutor(_THREADS) as threads:
        footers = list(threads.map(lambda name: read_footer(store, name), names))
    found = {}
    for name, footer in zip(names, footers, strict=True):
        part, receipt = parse_part_name(name), footer.receipt
        assert part is not None, name
        if receipt is None or part.file not in files:
            continue
        if split_hash(files[part.file], part.begin, part.begin + receipt.rows_in, shaping) == part.hash:
            found[name] = receipt
    return found


def draw(sizes: Mapping[str, int], rows: int, seed: int) -> dict[str, list[int]]:
    """Choose rows, as evenly over the parts as their sizes allow; equal arguments give equal rows.

    Args:
        sizes: rows in each part.
        rows: how many to choose; all where there are fewer.
        seed: another one gives other rows.

    Returns:
        Ascending positions in each chosen part, parts in the order of their names.
    """
    chance = random.Random(seed)  # noqa: S311  a sample, no secret
    names = sorted(name for name, size in sizes.items() if size)
    if len(names) > rows:
        names = chance.sample(names, rows)
    left, chosen = rows, {}
    # Small parts first: what they can't give falls to the larger ones.
    for number, name in enumerate(sorted(names, key=lambda name: (sizes[name], name))):
        count = min(sizes[name], -(-left // (len(names) - number)))
        chosen[name] = sorted(chance.sample(range(sizes[name]), count))
        left -= count
    return {name: chosen[name] for name in sorted(chosen)}


def take_sample(
    store: Store, manifest: Manifest, receipts: Mapping[str, Receipt], spec: ReadSpec, *, rows: int, seed: int
) -> Sample:
    """Draw rows of the parts and read them from the input again.

    Args:
        store: OUTPUT.
        manifest: of the run.
        receipts: of its parts, by name; at least one has a row.
        spec: how the run reads; its root may lie elsewhere now.
        rows: how many rows.
        seed: which ones.

    Raises:
        InputError: none of the drawn rows' files is as it was.
        OutputError: a part can't be read.
    """
    drawn = draw({name: receipt.ok for name, receipt in receipts.items()}, rows, seed)
    stored = [_stored(store, name, positions) for name, positions in drawn.items()]
    table = pa.concat_tables(stored)
    numbers, rows_of = table["_file"].to_numpy(), table["_row"].to_numpy()
    again: list[pa.Table] = []
    kept, places, refused, left_out = [], [], [], []
    for file in manifest.files:
        own = np.flatnonzero(numbers == file.number)
        if not len(own):
            continue
        try:
            good, bad = _read_again(spec, file, np.unique(rows_of[own]).tolist())
        except InputError as error:
            left_out.append(f"{len(own)} of the sample left out: {error}")
            continue
        at_of_row = {row: at for at, row in enumerate(good["_row"].to_pylist())}
        found = [at for at in own.tolist() if int(rows_of[at]) in at_of_row]
        kept += found
        places += [Place(path=file.path, row=int(rows_of[at])) for at in found]
        again.append(good.take(pa.array([at_of_row[int(rows_of[at])] for at in found], pa.int64())))
        for row in sorted(set(rows_of[own].tolist()) - set(at_of_row)):
            refused.append((Place(path=file.path, row=row), bad.get(row, "reading the input passes it by")))
    if left_out and not again:
        raise InputError(f"no row of the sample can be compared: {left_out[0]}")
    return Sample(
        places=tuple(places),
        stored=table.take(pa.array(kept, pa.int64())),
        again=pa.concat_tables(again),
        refused=tuple(refused),
        left_out=tuple(left_out),
    )


def _stored(store: Store, name: str, positions: Sequence[int]) -> pa.Table:
    """Rows of a part by their ascending positions, streamed: a part of vectors of tokens is large."""
    wanted, pieces, begin = np.array(positions, np.int64), [], 0
    with store.open(name) as file, store.blame(name):
        opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        for batch in opened.iter_batches(_BATCH_ROWS):
            inside = wanted[(wanted >= begin) & (wanted < begin + len(batch))] - begin
            begin += len(batch)
            if len(inside):
                pieces.append(pa.Table.from_batches([batch]).take(pa.array(inside)))
            if begin > positions[-1]:
                break
    return pa.concat_tables(pieces).replace_schema_metadata(None)


def _read_again(spec: ReadSpec, file: InputFile, rows: Sequence[int]) -> tuple[pa.Table, dict[int, str]]:
    """Good ones among these ascending rows of a file, and of the bad ones the reason.

    The rows between them are passed over as the rows of committed splits are: no line of theirs is parsed.

    Raises:
        InputError: the file is gone, or not the one that the run read.
    """
    check_unchanged(spec.root, file)
    groups = None
    if spec.format == "parquet":
        with open_parquet(spec.root, file) as opened:
            groups = tuple(range(opened.metadata.num_row_groups))
    task = ReadTask(
        file=file,
        row_groups=groups,
        begin=rows[0],
        end=rows[-1] + 1,
        closes_file=False,
        done=tuple(_between(rows)),
    )
    splits = list(read_splits(task, spec))
    bad = pa.concat_tables([split.bad for split in splits]).select(["_row", "reason", "detail"])
    reasons = {row["_row"]: f"{row['reason']}: {row['detail']}" for row in bad.to_pylist()}
    return pa.concat_tables([split.rows for split in splits]), reasons


def _between(rows: Sequence[int]) -> Iterable[tuple[int, int]]:
    return ((row + 1, after) for row, after in pairwise(rows) if after > row + 1)
