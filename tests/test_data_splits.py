"""Splits: names, the greedy cut, what a listing of parts proves, what is left to do."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.cut import Cutter
from raybert.data.splits import (
    InputFile,
    PartName,
    Progress,
    ReadTask,
    Split,
    missing_ranges,
    parse_part_name,
    part_name,
    read_listing,
    remaining,
    row_group_tasks,
    settle,
    split_hash,
    stream_task,
)

FILE = InputFile(number=3, path="a/b.jsonl", size=1000, version="17")
SHAPING = "settings"


def test_a_parts_name_spells_file_and_first_row_and_reads_back() -> None:
    name = part_name(FILE, Split(file=3, begin=16384, end=20000, last=True), SHAPING)
    digest = split_hash(FILE, 16384, 20000, SHAPING)
    assert name == f"part-000003-000000016384-{digest}.parquet"
    assert parse_part_name(name) == PartName(file=3, begin=16384, hash=digest)


@pytest.mark.parametrize(
    "name",
    ["_raybert", "part-3-4-0123456789abcdef.parquet", "part-000003-000000000004-0123456789ABCDEF.parquet", ""],
)
def test_other_names_are_no_parts(name: str) -> None:
    assert parse_part_name(name) is None


def test_the_hash_covers_all_that_decides_the_rows_and_not_the_files_number() -> None:
    base = split_hash(FILE, 0, 10, SHAPING)
    others = [
        split_hash(dataclasses.replace(FILE, path="a/c.jsonl"), 0, 10, SHAPING),
        split_hash(dataclasses.replace(FILE, size=1001), 0, 10, SHAPING),
        split_hash(dataclasses.replace(FILE, version="18"), 0, 10, SHAPING),
        split_hash(FILE, 1, 10, SHAPING),
        split_hash(FILE, 0, 11, SHAPING),
        split_hash(FILE, 0, 10, "other"),
    ]
    assert len({base, *others}) == 7
    assert split_hash(dataclasses.replace(FILE, number=9), 0, 10, SHAPING) == base
    assert split_hash(dataclasses.replace(FILE, path="\udcff.jsonl"), 0, 10, SHAPING) != base


def test_the_hash_is_pinned() -> None:
    """Parts of older runs must be recognised by later versions."""
    assert split_hash(FILE, 0, 10, SHAPING) == "8815c8abb27f44ca"


def test_tasks_travel_as_pickles() -> None:
    task = stream_task(FILE)
    assert pickle.loads(pickle.dumps(task)) == task


@given(
    groups=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), max_size=30),
    split_rows=st.integers(1, 60),
    split_bytes=st.integers(1, 600),
)
def test_row_group_tasks_cover_the_file_once_and_fill_splits(
    groups: list[tuple[int, int]], split_rows: int, split_bytes: int
) -> None:
    tasks = row_group_tasks(FILE, groups, split_rows=split_rows, split_bytes=split_bytes)
    taken = [number for task in tasks for number in task.row_groups or ()]
    assert taken == [number for number, (rows, _) in enumerate(groups) if rows]
    edges = [task.begin for task in tasks] + [tasks[-1].end]
    assert edges[0] == 0
    assert edges[-1] == sum(rows for rows, _ in groups)
    assert all(a.end == b.begin for a, b in itertools.pairwise(tasks))
    assert [task.closes_file for task in tasks] == [False] * (len(tasks) - 1) + [True]

    def full(numbers: tuple[int, ...]) -> bool:
        rows, size = (sum(groups[number][at] for number in numbers) for at in (0, 1))
        return rows >= split_rows or size >= split_bytes

    for task, after in zip(tasks, [*tasks[1:], None], strict=True):
        numbers = task.row_groups or ()
        assert not full(numbers[:-1])
        assert len(numbers) == 1 or not any(full((number,)) for number in numbers)
        if after is not None and not full(numbers):
            assert full(after.row_groups[:1])


@given(
    sizes=st.lists(st.integers(0, 20), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    split_rows=st.integers(1, 12),
    split_bytes=st.integers(1, 60),
)
def test_the_cut_is_greedy_and_blind_to_batches(
    sizes: list[int], cuts: list[int], split_rows: int, split_bytes: int
) -> None:
    splits: list[list[int]] = []
    for row, size in enumerate(sizes):
        held = splits[-1] if splits else []
        if not held or len(held) == split_rows or sum(sizes[r] for r in held) + size > split_bytes:
            splits.append([])
        splits[-1].append(row)
    cutter = Cutter(stream_task(FILE), split_rows=split_rows, split_bytes=split_bytes)
    found: list[list[int]] = []
    edges = sorted({0, len(sizes), *(cut for cut in cuts if cut < len(sizes))})
    for begin, end in itertools.pairwise(edges):
        for step in cutter.steps(begin, np.array(sizes[begin:end], dtype=np.int64)):
            assert step.row == begin + step.start
            if step.opens:
                found.append([])
            found[-1].extend(range(step.row, step.row + step.stop - step.start))
    assert found == splits
    assert cutter.short is None


def test_a_file_that_is_shorter_than_its_parts_say_is_noticed() -> None:
    def after(rows: int, **fields: object) -> int | None:
        task = dataclasses.replace(stream_task(FILE), **fields)
        cutter = Cutter(task, split_rows=10, split_bytes=100)
        cutter.steps(0, np.ones(rows, dtype=np.int64))
        return cutter.short

    assert after(0) is None
    assert after(5) is None
    assert after(5, begin=5) == 5
    assert after(0, begin=5) == 5
    assert after(6, begin=5) is None
    assert after(6, begin=5, end=8, closes_file=False) == 6
    assert after(6, begin=5, end=8) is None
    assert after(7, begin=5, done=((6, 9),)) == 9


boundaries = st.lists(st.integers(1, 9), max_size=12).map(
    lambda widths: [sum(widths[:at]) for at in range(len(widths) + 1)]
)


def splits_of(edges: list[int]) -> list[Split]:
    if len(edges) == 1:
        return [Split(file=3, begin=0, end=0, last=True)]
    pairs = list(itertools.pairwise(edges))
    return [Split(file=3, begin=a, end=b, last=b == edges[-1]) for a, b in pairs]


@given(edges=boundaries, data=st.data())
def test_a_listing_proves_every_committed_range(edges: list[int], data: st.DataObject) -> None:
    splits = splits_of(edges)
    committed = [split for split in splits if data.draw(st.booleans())]
    names = {part_name(FILE, split, SHAPING): split for split in committed}
    old = dataclasses.replace(FILE, version="16")
    stale = [part_name(old, split, SHAPING) for split in splits if data.draw(st.booleans())]
    foreign = [f"part-000004-000000000000-{0:016x}.parquet", "_raybert", "notes.txt"]
    listing = read_listing(FILE, data.draw(st.permutations([*names, *stale, *foreign])), SHAPING)

    footers = {
        name: (names[name].end - names[name].begin, names[name].last) if name in names else (1, False)
        for name in listing.unsettled
    }
    progress = settle(listing, footers)
    assert progress.ranges == tuple((split.begin, split.end) for split in committed)
    assert progress.stale == tuple(sorted(stale))
    assert progress.complete == (committed == splits)
    if not stale:
        before_a_gap = [split for split in committed if split.last or not any(s.begin == split.end for s in committed)]
        assert sorted(listing.unsettled) == sorted(part_name(FILE, split, SHAPING) for split in before_a_gap)

    left = remaining([stream_task(FILE)], progress)
    assert len(left) <= 1
    if committed == splits:
        assert left == []
    elif left[0].end is None:
        assert left[0].closes_file
        assert rows_of(left, 200) == set(range(200)) - {r for s in committed for r in range(s.begin, s.end)}
    else:
        assert not left[0].closes_file
        assert rows_of(left, 200) == {r for s in splits if s not in committed for r in range(s.begin, s.end)}


@given(
    groups=st.lists(st.integers(0, 30), max_size=8),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    data=st.data(),
)
def test_parquet_needs_footers_only_inside_a_task(groups: list[int], widths: list[int], data: st.DataObject) -> None:
    tasks = row_group_tasks(FILE, [(rows, rows) for rows in groups], split_rows=12, split_bytes=10**6)
    splits = []
    for task in tasks:
        begin, width = task.begin, iter(widths * 40)
        while begin < task.end or not splits:
            end = min(begin + next(width), task.end)
            splits.append(Split(file=3, begin=begin, end=end, last=end == tasks[-1].end))
            begin = end
    committed = [split for split in splits if data.draw(st.booleans())]
    names = {part_name(FILE, split, SHAPING): split for split in committed}
    listing = read_listing(FILE, names, SHAPING, tasks)
    ends = {task.end for task in tasks}
    assert all(names[name].end not in ends for name in listing.unsettled)
    footers = {name: (names[name].end - names[name].begin, names[name].last) for name in listing.unsettled}
    progress = settle(listing, footers)
    assert progress.ranges == tuple((split.begin, split.end) for split in committed)
    assert progress.complete == (committed == splits)
    left = remaining(tasks, progress)
    assert rows_of(left, None) == {r for s in splits if s not in committed for r in range(s.begin, s.end)}
    assert sum(task.closes_file for task in left) == (splits[-1] not in committed)


def rows_of(tasks: list[ReadTask], end: int | None) -> set[int]:
    spans = [span for task in tasks for span in missing_ranges(task.begin, task.end, task.done)]
    return {row for begin, stop in spans for row in range(begin, end if stop is None else stop)}


def test_a_part_that_cannot_be_read_or_overlaps_is_stale() -> None:
    short = part_name(FILE, Split(file=3, begin=0, end=4, last=False), SHAPING)
    long = part_name(FILE, Split(file=3, begin=0, end=9, last=True), SHAPING)
    listing = read_listing(FILE, [short, long], SHAPING)
    assert sorted(listing.unsettled) == sorted([short, long])
    progress = settle(listing, {short: None, long: (9, True)})
    assert progress == Progress(rows=9, ranges=((0, 9),), stale=(short,))
    progress = settle(listing, {short: (4, False), long: (9, True)})
    assert progress.ranges == ((0, 4),)
    assert progress.stale == (long,)
