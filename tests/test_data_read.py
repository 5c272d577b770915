"""Laws of reading: every row in one split, in order, whatever the layout; resumed = undisturbed."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.files import list_inputs
from raybert.data.lines import Lines, read_lines
from raybert.data.parquet import read_footers
from raybert.data.read import RawSplit, ReadSpec, read_splits
from raybert.data.rows import REASONS, bad_schema, good_schema
from raybert.data.splits import (
    ReadTask,
    part_name,
    read_listing,
    remaining,
    row_group_tasks,
    settle,
    stream_task,
)

KEEP = pa.schema([("id", pa.int64()), ("tags", pa.list_(pa.string()))])


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a file, and what must become of it: a good row, a reason, or nothing at all."""

    raw: bytes
    good: dict[str, Any] | None = None
    reason: str | None = None
    shown: str | None = None


def line_of(values: dict[str, Any], *, escape: bool) -> Line:
    good = {"id": values.get("id"), "tags": values.get("tags"), "__text": values["text"]}
    return Line(json.dumps(values, ensure_ascii=escape).encode(), good)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
good_lines = st.builds(
    line_of,
    st.fixed_dictionaries(
        {"text": texts},
        optional={"id": st.integers(-(2**63), 2**63 - 1), "tags": st.none() | st.lists(texts, max_size=2), "x": texts},
    ),
    escape=st.booleans(),
)
bad_lines = st.sampled_from(
    [
        Line(b'{"text": null, "id": 7}', reason="null"),
        Line(b'{"id": 7}', reason="null"),
        Line(b'{"text": 12}', reason="wrong_type", shown="12"),
        Line(b'{"text": "cut off', reason="invalid_json", shown='{"text": "cut off'),
        Line(b'{"text": "a"} x', reason="invalid_json", shown='{"text": "a"} x'),
        Line(b'{"text": "\xff"}', reason="invalid_utf8", shown='{"text": "\\xff"}'),
        Line(b'{"text": "a\\ud800"}', reason="lone_surrogate", shown="a\\ud800"),
        Line(b'["text"]', reason="not_an_object", shown='["text"]'),
        Line(b'{"text": "a", "id": "7"}', reason="kept_column", shown="a"),
        Line(b'{"text": "a", "tags": [1]}', reason="kept_column", shown="a"),
    ]
)
blank_lines = st.sampled_from([Line(b""), Line(b"  \t"), Line(b"\r")])
files_of_lines = st.lists(good_lines | bad_lines | blank_lines, max_size=25)


@contextmanager
def folder_with(name: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        yield path


def spec_of(
    path: Path, keep: pa.Schema = KEEP, rows: int = 16384, size: int = 1 << 25, pair: pa.Field | None = None
) -> tuple[ReadSpec, Any]:
    inputs = list_inputs(str(path))
    spec = ReadSpec(
        root=inputs.root,
        format=inputs.format,
        text_column="text",
        keep=keep,
        split_rows=rows,
        split_bytes=size,
        pair_column=None if pair is None else pair.name,
        pair_type=None if pair is None else pair.type,
    )
    return spec, inputs


def tasks_of(spec: ReadSpec, inputs: Any) -> list[ReadTask]:
    if inputs.format != "parquet":
        return [stream_task(inputs.files[0])]
    (footer,) = read_footers(inputs, spec.wanted().names)
    return row_group_tasks(inputs.files[0], footer.groups, split_rows=spec.split_rows, split_bytes=spec.split_bytes)


def read_all(spec: ReadSpec, tasks: list[ReadTask]) -> list[RawSplit]:
    return [split for task in tasks for split in read_splits(task, spec)]


def check_splits(splits: list[RawSplit], keep: pa.Schema, pair_type: pa.DataType | None = None) -> None:
    """What holds for the splits of any file: no gap, one last, each row once, in order, in the run's schema."""
    assert [split.split.last for split in splits] == [False] * (len(splits) - 1) + [True]
    assert splits[0].split.begin == 0
    assert all(a.split.end == b.split.begin for a, b in itertools.pairwise(splits))
    for split in splits:
        assert split.rows.schema.equals(good_schema(keep, pair_type))
        assert split.bad.schema.equals(bad_schema(keep))
        split.rows.validate(full=True)
        split.bad.validate(full=True)
        good, bad = split.rows["_row"].to_pylist(), split.bad["_row"].to_pylist()
        assert good == sorted(good)
        assert bad == sorted(bad)
        assert sorted(good + bad) == list(range(split.split.begin, split.split.end))
        assert split.rows_in == len(good) + len(bad)
        assert set(split.bad["reason"].to_pylist()) <= set(REASONS)


def greedy(sizes: list[int], rows: int, size: int) -> list[int]:
    """Where splits end, by the rule as it is written down."""
    ends, begin = [], 0
    for row in range(len(sizes)):
        if row > begin and (row - begin == rows or sum(sizes[begin : row + 1]) > size):
            ends.append(row)
            begin = row
    return [*ends, len(sizes)]


@given(
    lines=files_of_lines,
    rows=st.integers(1, 9),
    size=st.integers(1, 200),
    block=st.integers(1, 64),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    form=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    data=st.data(),
)
def test_json_lines(
    lines: list[Line], rows: int, size: int, block: int, newline: bytes, form: Any, data: st.DataObject
) -> None:
    bom, gz, ended = form
    content = (b"\xef\xbb\xbf" if bom else b"") + newline.join(line.raw for line in lines)
    content += newline if ended and lines else b""
    wanted = [line for line in lines if line.good or line.reason]
    with (
        folder_with("a.jsonl.gz" if gz else "a.jsonl", content) as path,
        patch("raybert.data.read.read_lines", partial(read_lines, block=block)),
    ):
        spec, inputs = spec_of(path, rows=rows, size=size)
        splits = read_all(spec, tasks_of(spec, inputs))
        check_resume(spec, inputs, splits, data)
    check_splits(splits, KEEP)
    tail = len(newline) - 1
    sizes = [len(line.raw) + tail for line in wanted]
    if wanted and wanted[-1] is lines[-1] and not ended:
        sizes[-1] -= tail
    assert [split.split.end for split in splits] == greedy(sizes, rows, size)
    good, bad = by_number(splits)
    for number, line in enumerate(wanted):
        if line.good:
            assert good[number] == {"_row": number, **line.good}
        else:
            assert (bad[number]["reason"], bad[number]["text"]) == (line.reason, line.shown)


def by_number(splits: list[RawSplit]) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    good = {row["_row"]: row for split in splits for row in split.rows.to_pylist()}
    return good, {row["_row"]: row for split in splits for row in split.bad.to_pylist()}


def decoded(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def check_resume(spec: ReadSpec, inputs: Any, clean: list[RawSplit], data: st.DataObject) -> None:
    """Whatever was committed, the rest comes out exactly as in the clean pass, and under the same names."""
    (file,) = inputs.files
    committed = {
        part_name(file, split.split, "s"): split.split for split in clean if data.draw(st.booleans(), "committed")
    }
    tasks = tasks_of(spec, inputs)
    listing = read_listing(file, committed, "s", tasks if inputs.format == "parquet" else ())
    footers = {name: (committed[name].end - committed[name].begin, committed[name].last) for name in listing.unsettled}
    progress = settle(listing, footers)
    assert progress.stale == ()
    resumed = read_all(spec, remaining(tasks, progress))
    missing = [split for split in clean if part_name(file, split.split, "s") not in committed]
    assert [split.split for split in resumed] == [split.split for split in missing]
    for one, other in zip(resumed, missing, strict=True):
        assert one.rows.equals(other.rows)
        assert one.bad.equals(other.bad)


@given(
    lines=st.lists(st.binary(max_size=9).filter(lambda raw: b"\n" not in raw), max_size=20),
    rows=st.integers(1, 9),
    size=st.integers(1, 60),
    block=st.integers(1, 64),
    data=st.data(),
)
def test_plain_text(lines: list[bytes], rows: int, size: int, block: int, data: st.DataObject) -> None:
    keep = pa.schema([("text", pa.string())])
    content = b"".join(line + b"\n" for line in lines)
    if content.startswith(b"\xef\xbb\xbf"):
        return
    with (
        folder_with("a.txt", content) as path,
        patch("raybert.data.read.read_lines", partial(read_lines, block=block)),
    ):
        spec, inputs = spec_of(path, keep, rows, size)
        splits = read_all(spec, tasks_of(spec, inputs))
        check_resume(spec, inputs, splits, data)
    check_splits(splits, keep)
    assert [split.split.end for split in splits] == greedy([len(line) for line in lines], rows, size)
    good, bad = by_number(splits)
    for number, line in enumerate(lines):
        raw = line.removesuffix(b"\r")
        text = decoded(raw)
        if text is not None:
            assert good[number] == {"_row": number, "text": text, "__text": text}
        else:
            assert bad[number]["reason"] == "invalid_utf8"
            assert bad[number]["text"] == raw.decode("utf-8", "backslashreplace")


text_bytes = texts.map(str.encode)
parquet_rows = st.lists(
    st.tuples(
        st.none() | text_bytes | text_bytes | text_bytes | st.sampled_from([b"\xff", b"a\xed\xa0\x80"]),
        st.none() | st.integers(-9, 9),
        st.none() | st.lists(st.none() | texts, max_size=3),
    ),
    max_size=40,
)


@given(
    values=parquet_rows,
    group=st.integers(1, 20),
    rows=st.integers(1, 12),
    size=st.integers(1, 300),
    form=st.sampled_from(["plain", "dictionary", "binary", "view"]),
    data=st.data(),
)
def test_parquet(values: Any, group: int, rows: int, size: int, form: str, data: st.DataObject) -> None:
    content = pa.array([raw for raw, _, _ in values], pa.large_binary())
    column = content.cast(pa.binary()).view(pa.string())
    if form == "dictionary":
        column = column.dictionary_encode()
    elif form == "binary":
        column = content.cast(pa.binary())
    elif form == "view":
        column = content.cast(pa.binary_view()).view(pa.string_view())
    table = pa.table(
        {
            "tags": pa.array([tags for _, _, tags in values], pa.list_(pa.string())),
            "other": pa.array(range(len(values))),
            "text": column,
            "id": pa.array([id_ for _, id_, _ in values], pa.int8()),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        pq.write_table(table, path, row_group_size=group)
        spec, inputs = spec_of(path, KEEP, rows, size)
        tasks = tasks_of(spec, inputs)
        splits = read_all(spec, tasks)
        check_resume(spec, inputs, splits, data)
    check_splits(splits, KEEP)
    good, bad = by_number(splits)
    sizes = []
    for number, (raw, id_, tags) in enumerate(values):
        sizes.append(len(raw or b"") + 1 + sum(len((tag or "").encode()) for tag in tags or ()))
        kept = {"id": id_, "tags": tags}
        text = decoded(raw)
        if text is not None:
            assert good[number] == {"_row": number, **kept, "__text": text}
        elif raw is None:
            assert bad[number] == {"_row": number, **kept, "reason": "null", "detail": "'text' is null", "text": None}
        else:
            assert bad[number]["reason"] == "invalid_utf8"
            assert bad[number]["text"] == raw.decode("utf-8", "backslashreplace")
    ends = [greedy(sizes[task.begin : task.end], rows, size) for task in tasks]
    assert [split.split.end for split in splits] == [
        task.begin + end for task, of_task in zip(tasks, ends, strict=True) for end in of_task
    ]


class Trickle:
    """A stream that remembers how much it was asked for at once."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def read(self, size: int, /) -> bytes:
        chunk, self.left = self.left[:size], self.left[size:]
        return chunk


@given(
    lines=st.lists(st.sampled_from([b"", b" ", b"a", b"bb", b" c\r", b"d" * 9, b"e" * 20]), max_size=12),
    ended=st.booleans(),
    blank_rows=st.booleans(),
    block=st.integers(1, 30),
    limit=st.integers(1, 12),
)
def test_lines_are_the_same_however_they_come(
    lines: list[bytes], ended: bool, blank_rows: bool, block: int, limit: int
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    expected = content.split(b"\n")
    if not expected[-1]:
        expected.pop()
    if not blank_rows:
        expected = [line for line in expected if line.strip()]
    found = []
    for block_of in read_lines(Trickle(content), blank_rows=blank_rows, limit=limit, block=block):
        assert isinstance(block_of, Lines)
        found += zip(block_of.bytes_of(0, len(block_of.sizes)), block_of.sizes.tolist(), strict=True)
    assert [size for _, size in found] == [len(line) for line in expected]
    assert all(raw == line for (raw, size), line in zip(found, expected, strict=True) if size <= limit)


def test_a_stream_ends_where_its_task_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(10)))
    spec, inputs = spec_of(tmp_path, pa.schema([]), rows=4)
    task = dataclasses.replace(stream_task(inputs.files[0]), end=6)
    splits = read_all(spec, [task])
    assert [(s.split.begin, s.split.end, s.split.last) for s in splits] == [(0, 4, False), (4, 6, True)]
    task = dataclasses.replace(task, end=60)
    assert read_all(spec, [task])[-1].split.end == 10


def test_a_finished_split_is_handed_on_before_the_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"0123456789\n" * 500_000)
    spec, inputs = spec_of(tmp_path, pa.schema([]), rows=1000)
    blocks = 0

    def counted(*args: Any, **options: Any) -> Iterator[Lines]:
        nonlocal blocks
        for lines in read_lines(*args, **options):
            blocks += 1
            yield lines

    with patch("raybert.data.read.read_lines", counted):
        splits = read_splits(stream_task(inputs.files[0]), spec)
        assert next(splits).rows_in == 1000
        splits.close()
    assert blocks == 1


def test_a_kept_column_that_a_file_lacks_is_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    spec, inputs = spec_of(tmp_path)
    (split,) = read_all(spec, tasks_of(spec, inputs))
    assert split.rows.to_pylist() == [
        {"_row": row, "id": None, "tags": None, "__text": text} for row, text in enumerate("ab")
    ]
