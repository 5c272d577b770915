"""Splits: which row range of which file one part holds, what the part is called, what is left to do.

Pure arithmetic over numbers and names; no file is opened here. The rules:

- A split is a row range of one file. It ends at ``split_rows`` rows or ``split_bytes`` bytes, whichever comes
  first, holds at least one row, and never spans two read tasks. The cut is greedy and starts anew at every
  split boundary, so that reading can begin at any boundary and cut the rest exactly as a clean pass does.
- A file without a row has one split, ``[0, 0)``, so that the ledger closes it as any other file.
- A part's name is a pure function of file, row range and settings. Its hash covers the end of the range,
  which the name does not spell; the part that follows usually tells it, else the part's own footer does.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

RowRange = tuple[int, int]
"""Rows ``[begin, end)`` of one file."""

SPLIT_ROWS = 16_384
"""Most rows of a split, unless told otherwise."""

SPLIT_BYTES = 32 << 20
"""Most bytes of one, unless told otherwise."""

MAX_FILES = 1_000_000
"""A file number has six digits in a part's name; more files would break the order of names."""

_PART = re.compile(r"part-(\d{6})-(\d{12})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One input file as a run knows it.

    Attributes:
        number: its number in the run; sorted numbers are the order of the input.
        path: posix path below the input root.
        size: bytes, as stored.
        version: what changes when the content does: modification time in ns, or the store's etag.
    """

    number: int
    path: str
    size: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows ``[begin, end)`` of the file with number ``file``; ``last`` on the file's last split."""

    file: int
    begin: int
    end: int
    last: bool


@dataclass(frozen=True, kw_only=True)
class PartName:
    """What a part's name spells: file number, first row, and the hash that covers the rest."""

    file: int
    begin: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A row that is not processed: it goes into the quarantine with this reason and detail."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class ReadTask:
    """One stream over (a piece of) one file, which hands on its splits in order.

    Attributes:
        file: the file.
        row_groups: adjacent row groups of a Parquet file; None streams the whole file.
        begin: first row to produce; a split boundary.
        end: end of the rows to produce; None where only the end of the stream tells.
        closes_file: the last split of this task is the file's last.
        done: committed row ranges inside ``[begin, end)``, ascending: passed over, nothing is handed on.
        excluded: rows that are not even parsed, ascending: earlier tries found that they fail (see `search`).
    """

    file: InputFile
    row_groups: tuple[int, ...] | None
    begin: int
    end: int | None
    closes_file: bool
    done: tuple[RowRange, ...] = ()
    excluded: tuple[Excluded, ...] = ()


def split_hash(file: InputFile, begin: int, end: int, shaping: str) -> str:
    """16 hex digits for rows ``[begin, end)`` of this version of the file.

    Args:
        file: path, size and version enter; the number does not, the name spells it.
        begin: first row.
        end: end of the rows, exclusive.
        shaping: digest of the settings that shape rows.
    """
    fields = [file.path, file.size, file.version, begin, end, shaping]
    return hashlib.sha256(json.dumps(fields).encode("ascii")).hexdigest()[:16]


def part_name(file: InputFile, split: Split, shaping: str) -> str:
    """The name of the split's part, and of its file in the quarantine."""
    digest = split_hash(file, split.begin, split.end, shaping)
    return f"part-{file.number:06d}-{split.begin:012d}-{digest}.parquet"


def parse_part_name(name: str) -> PartName | None:
    """What a file's name (without folder) spells; None where it is not a part's name."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    return PartName(file=int(match[1]), begin=int(match[2]), hash=match[3])


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the names of one file's parts tell without a look inside.

    Attributes:
        file: the file.
        shaping: digest of the settings that shape rows.
        rows: the file's rows where a footer of the input told them (Parquet), else None.
        known: row ranges that the hashes of names prove, with the name that proves each.
        unsettled: names whose footer must tell where their rows end.
    """

    file: InputFile
    shaping: str
    rows: int | None
    known: tuple[tuple[RowRange, str], ...]
    unsettled: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What of one file is committed.

    Attributes:
        rows: the file's rows, None while no part with ``last`` (and no input footer) has told them.
        ranges: committed row ranges, ascending, one per part, disjoint.
        stale: names of parts that belong to another version of the file or to other settings.
    """

    rows: int | None
    ranges: tuple[RowRange, ...]
    stale: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """The ranges follow one another without a gap from row 0 to the file's last row."""
        if self.rows is None or not self.ranges or self.ranges[0][0] != 0:
            return False
        joined = all(a[1] == b[0] for a, b in pairwise(self.ranges))
        return joined and self.ranges[-1][1] == self.rows


def read_listing(file: InputFile, names: Iterable[str], shaping: str, tasks: Sequence[ReadTask] = ()) -> Listing:
    """Settle from the names alone which rows of ``file`` are committed.

    A part that begins at ``a`` and is followed by one that begins at ``b`` holds ``[a, b)`` iff the hash of
    that range is in its name. Where a Parquet file's tasks are known, the end of the task is tried too, so
    that only a part before a gap inside a task needs its footer.

    Args:
        file: the file as the run knows it now.
        names: names of parts, in any order, without folder; those of other file numbers are passed by.
        shaping: digest of the settings that shape rows.
        tasks: all read tasks of a Parquet file; for streamed files nothing.
    """
    parts = sorted(
        (part.begin, name, part.hash) for name in names if (part := parse_part_name(name)) and part.file == file.number
    )
    begins = sorted({begin for begin, _, _ in parts})
    ends = sorted(task.end for task in tasks if task.end is not None)
    known: list[tuple[RowRange, str]] = []
    unsettled = []
    for begin, name, digest in parts:
        candidates = [group[at] for group in (begins, ends) if (at := bisect_right(group, begin)) < len(group)]
        if ends == [0]:
            candidates.append(0)
        for end in candidates:
            if split_hash(file, begin, end, shaping) == digest:
                known.append(((begin, end), name))
                break
        else:
            unsettled.append(name)
    rows = ends[-1] if ends else None
    return Listing(file=file, shaping=shaping, rows=rows, known=tuple(known), unsettled=tuple(unsettled))


def settle(listing: Listing, footers: Mapping[str, tuple[int, bool] | None]) -> Progress:
    """Close a listing with the footers of its ``unsettled`` parts.

    Args:
        listing: what the names told.
        footers: for each unsettled name ``(rows_in, last)``, or None for a part that can't be read.

    Returns:
        What is committed. A part whose hash does not fit its own row range is stale, and so is one that
        begins inside rows that an earlier part holds.
    """
    rows = listing.rows
    found = list(listing.known)
    stale = []
    for name in listing.unsettled:
        part, footer = parse_part_name(name), footers[name]
        assert part is not None, name
        end = part.begin + footer[0] if footer else part.begin
        if footer is None or split_hash(listing.file, part.begin, end, listing.shaping) != part.hash:
            stale.append(name)
            continue
        found.append(((part.begin, end), name))
        if footer[1] and rows is None:
            rows = end
    ranges: list[RowRange] = []
    for span, name in sorted(found):
        if ranges and span[0] < ranges[-1][1]:
            stale.append(name)
        else:
            ranges.append(span)
    return Progress(rows=rows, ranges=tuple(ranges), stale=tuple(sorted(stale)))


def missing_ranges(begin: int, end: int | None, committed: Sequence[RowRange]) -> list[tuple[int, int | None]]:
    """What is left of ``[begin, end)`` when the ascending ``committed`` ranges are taken away."""
    left: list[tuple[int, int | None]] = []
    for span in committed:
        if span[1] <= begin or (end is not None and span[0] >= end):
            continue
        if span[0] > begin:
            left.append((begin, span[0]))
        begin = max(begin, span[1])
    if end is None or begin < end:
        left.append((begin, end))
    return left


def remaining(tasks: Sequence[ReadTask], progress: Progress) -> list[ReadTask]:
    """The tasks of one file, cut down to what is not committed; a task with nothing left is dropped.

    Args:
        tasks: all read tasks of the file, as planned for a first run.
        progress: what is committed of the file.
    """
    if progress.complete:
        return []
    left = []
    for task in tasks:
        end = progress.rows if task.end is None else task.end
        missing = missing_ranges(task.begin, end, progress.ranges)
        if not missing:
            if task.begin == end:
                left.append(task)  # a file without a row: its one split is not committed yet
            continue
        begin, stop = missing[0][0], missing[-1][1]
        done = tuple((a[1], b[0]) for a, b in pairwise(missing) if a[1] is not None)
        closes = task.closes_file and stop == end
        left.append(replace(task, begin=begin, end=stop, closes_file=closes, done=done))
    return left


def stream_task(file: InputFile) -> ReadTask:
    """The one read task of a file that can only be streamed from its start: JSON lines, text, gz."""
    return ReadTask(file=file, row_groups=None, begin=0, end=None, closes_file=True)


def row_group_tasks(
    file: InputFile, groups: Sequence[tuple[int, int]], *, split_rows: int, split_bytes: int
) -> list[ReadTask]:
    """The read tasks of a Parquet file, a pure function of its footer and the settings.

    A row group that fills a split is a task alone; smaller neighbours are joined until they fill one. Groups
    without a row are left out.

    Args:
        file: the file.
        groups: rows and uncompressed bytes (of the columns read) of each row group, in order.
        split_rows: most rows of a split.
        split_bytes: most bytes of a split.
    """
    runs: list[list[int]] = []
    open_rows = open_bytes = 0  # of the run that still takes groups; a full run takes none
    for number, (rows, size) in enumerate(groups):
        if rows == 0:
            continue
        big = rows >= split_rows or size >= split_bytes
        if big or not runs or open_rows == 0:
            runs.append([])
            open_rows = open_bytes = 0
        runs[-1].append(number)
        open_rows, open_bytes = open_rows + rows, open_bytes + size
        if big or open_rows >= split_rows or open_bytes >= split_bytes:
            open_rows = open_bytes = 0
    if not runs:
        return [ReadTask(file=file, row_groups=(), begin=0, end=0, closes_file=True)]
    tasks, begin = [], 0
    for run in runs:
        end = begin + sum(groups[number][0] for number in run)
        closes = run is runs[-1]
        tasks.append(ReadTask(file=file, row_groups=tuple(run), begin=begin, end=end, closes_file=closes))
        begin = end
    return tasks
