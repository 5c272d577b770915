"""CSV: the rows that Python's csv module reads, in splits of the file alone; a fault costs its own record."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.csvrecords import read_records
from raybert.data.files import list_inputs
from raybert.data.limit import limit_tasks
from raybert.data.read import RawSplit, ReadSpec
from raybert.data.rows import REASONS
from raybert.data.schema import InputSchema, decide_schema
from raybert.data.splits import stream_task
from raybert.errors import InputError
from tests.test_data_read import by_number, check_resume, check_splits, folder_with, greedy, read_all, spec_of, tasks_of

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
FIELD = st.text('ab",\n\r\té', max_size=6) | ANY


def written(rows: list[list[str]], delimiter: str, quoting: Any, newline: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=newline).writerows(rows)
    return out.getvalue()


@given(
    rows=st.lists(st.lists(FIELD, min_size=2, max_size=2), max_size=12),
    name=st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]),
    form=st.tuples(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"]), st.booleans()),
    cut=st.tuples(st.integers(1, 5), st.integers(1, 60), st.integers(1, 40)),
    data=st.data(),
)
def test_rows_are_those_of_the_csv_module(
    rows: list[list[str]], name: str, form: Any, cut: tuple[int, int, int], data: st.DataObject
) -> None:
    quoting, newline, bom = form
    most_rows, size, block = cut
    if any("\r" in field for row in rows for field in row):
        quoting = csv.QUOTE_ALL  # Python 3.11 writes a bare one where it means to read none
    delimiter = "\t" if name == "a.tsv" else ","
    content = written([["text", "other"], *rows], delimiter, quoting, newline)
    expected = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True))[1:]
    assert expected == rows
    keep = pa.schema([("other", pa.string())])
    with (
        folder_with(name, (b"\xef\xbb\xbf" if bom else b"") + content.encode()) as path,
        patch("raybert.data.read.read_records", partial(read_records, block=block)),
    ):
        spec, inputs = spec_of(path, keep, most_rows, size)
        splits = read_all(spec, tasks_of(spec, inputs))
        check_resume(spec, inputs, splits, data)
    check_splits(splits, keep)
    good, bad = by_number(splits)
    assert bad == {}
    assert [(row["__text"], row["other"]) for row in good.values()] == [tuple(row) for row in rows]
    sizes = [len(written([row], delimiter, quoting, newline).encode()) - 1 for row in rows]
    assert [split.split.end for split in splits] == greedy(sizes, most_rows, size)


def records_of(raw: bytes, delimiter: bytes) -> list[bytes]:
    """The rule as it is written down, a byte at a time."""
    records, record, quoted, begins, at = [], b"", False, True, 0
    while at < len(raw):
        byte = raw[at : at + 1]
        if quoted and byte == b'"' and raw[at + 1 : at + 2] == b'"':
            record, at = record + b'""', at + 2
            continue
        at += 1
        if byte == b"\n" and not quoted:
            records.append(record)
            record, begins = b"", True
            continue
        if byte == b'"':
            quoted = begins and not quoted
        begins = byte == delimiter and not quoted
        record += byte
    return [each for each in [*records, record] if each not in (b"", b"\r")]


@given(raw=st.text('ab",\n\r', max_size=60).map(str.encode), block=st.integers(1, 9), limit=st.sampled_from([4, 99]))
def test_records_end_at_newlines_outside_of_quotes(raw: bytes, block: int, limit: int) -> None:
    found = [
        (record if size <= limit else None, size)
        for lines in read_records(io.BytesIO(raw), ",", limit=limit, block=block)
        for record, size in zip(lines.bytes_of(0, len(lines.sizes)), lines.sizes.tolist(), strict=True)
    ]
    assert found == [(each if len(each) <= limit else None, len(each)) for each in records_of(raw, b",")]


def test_a_record_over_the_limit_is_never_held() -> None:
    class Endless(io.RawIOBase):
        """A quote that nothing closes, and 200 MB behind it."""

        def __init__(self) -> None:
            self.left, self.held = 200, 0

        def read(self, size: int = -1, /) -> bytes:
            self.left -= 1
            return b'a,"' + b"x\n" * 500_000 if self.left == 199 else b"x\n" * 500_000 if self.left > 0 else b""

    (lines,) = read_records(Endless(), ",", limit=3 << 20)
    assert (lines.buffer, lines.sizes.tolist()) == (b"", [199 * 1_000_000 + 3])


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, keep: pa.Schema | None = None, **settings: Any) -> RawSplit:
    inputs = list_inputs(str(path))
    given = {"text_column": "text", "split_rows": 99, "split_bytes": 1 << 20, **settings}
    spec = ReadSpec(root=inputs.root, format="csv", keep=keep or pa.schema([]), **given)
    (split,) = read_all(spec, [stream_task(inputs.files[0])])
    return split


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        (b"1", "wrong_fields", "1 fields, and the header has 2"),
        (b"1,a,b", "wrong_fields", "3 fields, and the header has 2"),
        (b'"a"b,c', "invalid_csv", "',' expected after '\"'"),
        (b"1,a\rb", "invalid_csv", "a carriage return that no newline follows, outside of quotes"),
        (b"1,a\0b", "invalid_csv", "a NUL byte at byte 3"),
        (b"1,\xff", "invalid_utf8", "byte 0xff at byte 2: invalid start byte"),
        (b'1,"' + b"x" * 40 + b'"', "too_long", "44 bytes, over the limit of 30"),
        (b"x,fine", "kept_column", "'id' holds 'x' that does not fit the run's int64"),
    ],
)
def test_a_fault_costs_its_own_record(tmp_path: Path, record: bytes, reason: str, detail: str) -> None:
    path = write(tmp_path / "a.csv", b'id,text\n1,"before\n"\n' + record + b"\n2,after\n")
    split = read(path, pa.schema([("id", pa.int64())]), max_row_bytes=30)
    assert split.rows.to_pylist() == [
        {"_row": 0, "id": 1, "__text": "before\n"},
        {"_row": 2, "id": 2, "__text": "after"},
    ]
    (bad,) = split.bad.to_pylist()
    assert (bad["_row"], bad["reason"], bad["detail"]) == (1, reason, detail)
    assert reason in REASONS
    shown = None if reason == "too_long" else "fine" if reason == "kept_column" else record
    assert bad["text"] == (shown.decode("utf-8", "backslashreplace") if isinstance(shown, bytes) else shown)


def test_a_quote_that_nothing_closes_takes_the_rest_of_the_file(tmp_path: Path) -> None:
    split = read(write(tmp_path / "a.csv", 'text\na\n"open\nb\nc\n'))
    assert split.rows["__text"].to_pylist() == ["a"]
    (bad,) = split.bad.to_pylist()
    assert (bad["reason"], bad["detail"], bad["text"]) == (
        "invalid_csv",
        "a quote that nothing closes",
        '"open\nb\nc\n',
    )


def test_a_stray_quote_is_a_character(tmp_path: Path) -> None:
    split = read(write(tmp_path / "a.tsv", 'text\tsize\n6" disk\t1\n say "x"\t2\n'))
    assert split.rows["__text"].to_pylist() == ['6" disk', ' say "x"']


def test_empty_fields_and_empty_lines(tmp_path: Path) -> None:
    keep = pa.schema([("n", pa.int64()), ("s", pa.string()), ("gone", pa.float64())])
    split = read(write(tmp_path / "a.csv", 'text,n,s\n\n,,\r\n"","",""\n\r\nx,1,y\n'), keep)
    assert split.bad.num_rows == 0
    assert [tuple(row.values()) for row in split.rows.to_pylist()] == [
        (0, None, "", None, ""),
        (1, None, "", None, ""),
        (2, 1, "y", None, "x"),
    ]


def test_a_field_of_any_length_up_to_the_limit(tmp_path: Path) -> None:
    """The csv module's own limit is 128 KiB."""
    split = read(write(tmp_path / "a.csv", f"text\n{'x' * 300_000}\n"))
    assert [len(text) for text in split.rows["__text"].to_pylist()] == [300_000]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("text,a,text", "column 'text' is there twice"),
        ("text,,b", "column 2 of 3 has no name"),
        ("\xff", None),
        ('"text', "invalid_csv: a quote that nothing closes"),
        ("a,b", "column 'text' is not in {path}: it has a, b"),
    ],
)
def test_a_header_that_names_no_columns(tmp_path: Path, header: str, said: str | None) -> None:
    path = write(tmp_path / "a.csv", header.encode("latin-1") + b"\n1,2,3\n")
    for act in (lambda: read(path), lambda: decide_schema(list_inputs(str(path)), "text")):
        with pytest.raises(InputError) as caught:
            act()
        assert (said or "invalid_utf8: byte 0xff").format(path=path) in str(caught.value)
        assert "\n" not in str(caught.value)


def decided(path: Path, keep: Any = "all", **options: Any) -> InputSchema:
    return decide_schema(list_inputs(str(path)), options.pop("text_column", "text"), keep, **options)


def test_types_are_those_that_hold_all_of_the_sample(tmp_path: Path) -> None:
    columns = {
        "text": ["1", "2", "3"],
        "i": ["1", "", "-3"],
        "f": ["1", "2.5", ""],
        "b": ["true", "False", ""],
        "d": ["2024-05-01", "", "2024-05-02"],
        "t": ["2024-05-01 10:00:00", "2024-05-01T10:00:00.5", ""],
        "z": ["2024-05-01T10:00:00Z", "2024-05-01T12:00:00+02:00", ""],
        "s": ["1", "x", ""],
        "none": ["", "", ""],
        "big": ["99999999999999999999", "1", "1"],
    }
    path = write(
        tmp_path / "a.csv", written([list(columns), *map(list, zip(*columns.values(), strict=True))], ",", 0, "\n")
    )
    kinds = {field.name: field.type for field in decided(path).keep}
    assert kinds == {
        "text": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "d": pa.date32(),
        "t": pa.timestamp("us"),
        "z": pa.timestamp("us", "UTC"),
        "s": pa.string(),
        "none": pa.string(),
        "big": pa.float64(),
    }
    row = read(path, decided(path).keep).rows.to_pylist()[0]
    assert (row["i"], row["d"], row["z"]) == (1, date(2024, 5, 1), datetime(2024, 5, 1, 10, tzinfo=UTC))
    assert (row["text"], row["none"]) == ("1", "")


def test_the_first_ten_thousand_rows_of_each_file_decide(tmp_path: Path) -> None:
    rows = [f"t,{at}" for at in range(10_000)]
    write(tmp_path / "a.csv", "\n".join(["text,n", *rows, "t,x"]) + "\n")
    assert decided(tmp_path).keep.field("n").type == pa.int64()
    write(tmp_path / "b.csv", "\n".join(["text,n", *rows[:-1], "t,x"]) + "\n")
    assert decided(tmp_path).keep.field("n").type == pa.string()
    split = read(tmp_path / "a.csv", pa.schema([("n", pa.int64())]), split_rows=20_000)
    assert split.bad["_row"].to_pylist() == [10_000]


def test_files_of_other_orders_and_more_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "text,n\na,1\n")
    write(tmp_path / "b.csv", "m,n,text\nx,2,b\n")
    write(tmp_path / "c.csv", "")
    write(tmp_path / "d.csv", "n,text\n")
    schema = decided(tmp_path)
    assert schema.keep == pa.schema([("text", pa.string()), ("n", pa.int64()), ("m", pa.string())])
    assert [read(tmp_path / name, schema.keep).rows.to_pylist() for name in ("a.csv", "b.csv", "c.csv", "d.csv")] == [
        [{"_row": 0, "text": "a", "n": 1, "m": None, "__text": "a"}],
        [{"_row": 0, "text": "b", "n": 2, "m": "x", "__text": "b"}],
        [],
        [],
    ]
    with pytest.raises(InputError, match=r"column 'm' is not in .*a\.csv: it has text, n"):
        decided(tmp_path, ("m",))
    with pytest.raises(InputError, match="no rows in any of 1 csv files"):
        decided(tmp_path / "d.csv")


def test_a_limit_counts_records_not_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'text\n"a\nb"\nc\n')
    write(tmp_path / "b.csv", "text\nd\ne\n")
    inputs = list_inputs(str(tmp_path))
    tasks = {file.number: (stream_task(file),) for file in inputs.files}
    assert [task.end for (task,) in limit_tasks(tasks, 3, inputs).values()] == [2, 1]
    assert [task.end for (task,) in limit_tasks(tasks, 9, inputs).values()] == [2, 2]


def test_pairs_of_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "q,c\n1,2\n,\n")
    assert decided(path, (), text_column="q", pair_column="c").pair_type == pa.large_string()
    split = read(path, text_column="q", pair_column="c", pair_type=pa.large_string())
    assert split.rows.select(["__text", "__pair"]).to_pylist() == [
        {"__text": "1", "__pair": "2"},
        {"__text": "", "__pair": ""},
    ]
