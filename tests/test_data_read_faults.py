"""What a row's fault becomes, and what a file's fault says."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.data.files import list_inputs
from raybert.data.read import RawSplit, ReadSpec, read_splits
from raybert.data.rows import BAD_COLUMNS, REASONS, bad_schema
from raybert.data.schema import decide_schema
from raybert.data.splits import ReadTask, row_group_tasks, stream_task
from raybert.errors import InputError


def read(path: Path, keep: pa.Schema | None = None, text_column: str = "text", **spec_fields: Any) -> RawSplit:
    (split,) = splits_of(path, keep or pa.schema([]), text_column, **spec_fields)
    return split


def splits_of(path: Path, keep: pa.Schema, text_column: str = "text", **spec_fields: Any) -> list[RawSplit]:
    inputs = list_inputs(str(path))
    settings = {"split_rows": 16384, "split_bytes": 1 << 25, **spec_fields}
    spec = ReadSpec(root=inputs.root, format=inputs.format, text_column=text_column, keep=keep, **settings)
    task = stream_task(inputs.files[0])
    if inputs.format == "parquet":
        groups = range(pq.read_metadata(path).num_row_groups)
        task = dataclasses.replace(task, row_groups=tuple(groups))
    return list(read_splits(task, pickle.loads(pickle.dumps(spec))))


def faults(split: RawSplit) -> list[tuple[str, str, str | None]]:
    return [(row["reason"], row["detail"], row["text"]) for row in split.bad.to_pylist()]


def failure(path: Path, keep: pa.Schema | None = None, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        splits_of(path, keep or pa.schema([]), **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "IN")


LINES: dict[bytes, tuple[str, str | None, str | None]] = {
    b'{"id": 1}': ("null", "'text' is missing", None),
    b'{"text": null}': ("null", "'text' is null", None),
    b'{"text": 1.5}': ("wrong_type", "'text' is a number, not a string", "1.5"),
    b'{"text": ["a", "\\udc00"]}': ("wrong_type", "'text' is an array, not a string", '["a", "\\udc00"]'),
    b"  nope": ("invalid_json", "Expecting value at character 0", "nope"),
    b'{"text": "a",}': (
        "invalid_json",
        None,  # Python's versions word it differently
        '{"text": "a",}',
    ),
    b'{"text": "a"}{}': ("invalid_json", "extra data at character 13", '{"text": "a"}{}'),
    b"\xef\xbb\xbf{}": ("invalid_json", "Expecting value at character 0", "\ufeff{}"),
    b'{"text": "tab\t"}': ("invalid_json", "Invalid control character at character 13", '{"text": "tab\t"}'),
    b'{"text": "\xc3("}': (
        "invalid_utf8",
        "byte 0xc3 at byte 10: invalid continuation byte",
        '{"text": "\\xc3("}',
    ),
    b'{"text": "\\ud83d-\\ude00"}': ("lone_surrogate", "'text' holds U+D83D at character 0", "\\ud83d-\\ude00"),
    b'"text"': ("not_an_object", "the line holds a string", '"text"'),
    b" null ": ("not_an_object", "the line holds null", "null"),
}


def test_every_fault_of_a_json_line(tmp_path: Path) -> None:
    good = b'{"text": "\\ud83d\\ude00 ok"}'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([good, *(line for raw in LINES for line in (raw, good))]))
    split = read(path)
    found = faults(split)
    for (reason, detail, text), expected in zip(found, LINES.values(), strict=True):
        assert (reason, text) == (expected[0], expected[2])
        assert expected[1] in (None, detail)
    assert split.bad["_row"].to_pylist() == list(range(1, 2 * len(LINES), 2))
    assert set(split.rows["__text"].to_pylist()) == {"\U0001f600 ok"}
    assert split.rows["_row"].to_pylist() == list(range(0, 2 * len(LINES) + 1, 2))


def test_lines_that_would_break_a_parser_are_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep, digits = b"[" * 100_000, b'{"text": "a", "n": ' + b"9" * 5_000 + b"}"
    path.write_bytes(b"\n".join([deep, digits, b'{"text": "b", "n": NaN, "text": "c"}']))
    split = read(path)
    assert [reason for reason, _, _ in faults(split)] == ["invalid_json", "invalid_json"]
    assert faults(split)[0][1] == "nested too deep"
    assert split.rows["__text"].to_pylist() == ["c"]


def test_a_kept_value_that_does_not_fit_is_null_in_the_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[Any] = [
        {"text": "a", "id": 1, "tags": ["x"]},
        {"text": "b", "id": "2", "tags": ["y"]},
        {"text": "c", "id": 3, "tags": "z"},
        {"text": 4, "id": 4, "tags": None},
        {"text": "e", "id": 2**63, "tags": ["\ud800"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    split = read(path, pa.schema([("id", pa.int64()), ("tags", pa.list_(pa.string()))]))
    assert split.rows.to_pylist() == [{"_row": 0, "id": 1, "tags": ["x"], "__text": "a"}]
    assert [(row["id"], row["tags"], row["reason"], row["detail"]) for row in split.bad.to_pylist()] == [
        (None, ["y"], "kept_column", "'id' holds a string that does not fit the run's int64"),
        (3, None, "kept_column", "'tags' holds a string that does not fit the run's list<item: string>"),
        (4, None, "wrong_type", "'text' is an integer, not a string"),
        (None, None, "kept_column", "'id' holds an integer that does not fit the run's int64"),
    ]


def test_the_quarantines_own_columns_come_before_kept_ones_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null, "reason": "r", "id": 1}\n{"text": "a", "reason": "r", "id": 1}\n')
    schema = decide_schema(list_inputs(str(path)), "text", "all")
    split = read(path, schema.keep)
    assert split.rows.column_names == ["_row", "text", "reason", "id", "__text"]
    assert split.bad.to_pylist() == [{"_row": 0, "id": 1, "text": None, "reason": "null", "detail": "'text' is null"}]
    assert bad_schema(schema.keep).names[-3:] == list(BAD_COLUMNS)


def test_a_line_over_the_limit_is_a_row_and_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = b'{"text": "' + b"x" * (65 << 20) + b'"}'
    path.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n')
    before = pa.default_memory_pool().bytes_allocated()
    found = splits_of(path, pa.schema([]), split_bytes=1 << 20)
    assert [(s.split.begin, s.split.end, s.split.last) for s in found] == [
        (0, 1, False),
        (1, 2, False),
        (2, 3, True),
    ]
    assert faults(found[1]) == [("too_long", f"{len(long)} bytes, over the limit of {64 << 20}", None)]
    assert pa.default_memory_pool().bytes_allocated() - before < 1 << 20
    text = tmp_path / "a.txt"
    text.write_bytes(b"0123456789\n012345678\r\n")
    split = read(text, max_row_bytes=9)
    assert [fault[0] for fault in faults(split)] == ["too_long", "too_long"]


def parquet(path: Path, text: pa.Array, **columns: pa.Array) -> Path:
    pq.write_table(pa.table({"text": text, **columns}), path)
    return path


def invalid(values: list[bytes | None]) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


def test_every_fault_of_a_parquet_row(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        invalid([b"ok", None, b"\xff", b"\xed\xa0\x80", b"a", b"b"]),
        name=invalid([b"n", b"n", b"n", b"n", b"\xfe", b"n"]),
        tags=pa.ListArray.from_arrays([0, 1, 1, 1, 1, 1, 2], invalid([b"t", b"\xfd"])),
    )
    split = read(path, pa.schema([("name", pa.string()), ("tags", pa.list_(pa.string()))]))
    assert split.rows.to_pylist() == [{"_row": 0, "name": "n", "tags": ["t"], "__text": "ok"}]
    found = split.bad.to_pylist()
    assert [(row["_row"], row["reason"], row["text"], row["name"]) for row in found] == [
        (1, "null", None, "n"),
        (2, "invalid_utf8", "\\xff", "n"),
        (3, "invalid_utf8", "\\xed\\xa0\\x80", "n"),
        (4, "kept_column", "a", None),
        (5, "kept_column", "b", "n"),
    ]
    assert [row["tags"] for row in found] == [[], [], [], [], None]
    assert found[0]["detail"] == "'text' is null"
    assert found[1]["detail"] == "'text' holds byte 0xff at byte 0: invalid start byte"
    assert found[3]["detail"].startswith("'name': ")
    assert {row["reason"] for row in found} < set(REASONS)


@pytest.mark.parametrize(
    "text",
    [
        invalid([b"ok", None, b"\xff"]).dictionary_encode(),
        pa.array([b"ok", None, b"\xff"], pa.binary()).dictionary_encode(),
        pa.array([b"ok", None, b"\xff"], pa.large_binary()),
        pa.array([b"ok", None, b"\xff"], pa.binary_view()),
        pa.array([b"ok", None, b"\xff"], pa.binary_view()).view(pa.string_view()),
    ],
    ids=lambda text: str(text.type),
)
def test_texts_may_come_in_any_string_type(tmp_path: Path, text: pa.Array) -> None:
    path = parquet(tmp_path / "a.parquet", text)
    split = read(path)
    assert split.rows["__text"].to_pylist() == ["ok"]
    assert [reason for reason, _, _ in faults(split)] == ["null", "invalid_utf8"]


def test_a_value_that_the_runs_wider_type_cannot_hold_is_a_rows_fault(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array(["a", "b"]), x=pa.array([1, 2**53 + 1]))
    split = read(path, pa.schema([("x", pa.float64())]))
    assert split.rows["x"].to_pylist() == [1.0]
    assert split.bad.to_pylist()[0]["reason"] == "kept_column"


def test_a_texts_column_of_nulls_alone(tmp_path: Path) -> None:
    split = read(parquet(tmp_path / "a.parquet", pa.nulls(3)))
    assert len(split.rows) == 0
    assert [reason for reason, _, _ in faults(split)] == ["null"] * 3


def test_extension_and_dictionary_columns_are_kept(tmp_path: Path) -> None:
    columns = {
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
        "kind": pa.array(["x"]).dictionary_encode(),
        "kinds": pa.ListArray.from_arrays([0, 1], pa.array(["y"]).dictionary_encode()),
    }
    path = parquet(tmp_path / "a.parquet", pa.array(["a"]), **columns)
    schema = decide_schema(list_inputs(str(path)), "text", tuple(columns))
    split = read(path, schema.keep)
    assert schema.keep.field("uuid").type == pa.uuid()
    row = split.rows.to_pylist()[0]
    assert (row["kind"], row["kinds"]) == ("x", ["y"])
    assert split.rows["uuid"].combine_chunks().storage.to_pylist() == [b"0" * 16]


def test_a_file_that_is_cut_off_names_the_row_reached(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = "".join(json.dumps({"text": os.urandom(99).hex()}) + "\n" for _ in range(40_000)).encode()
    path.write_bytes(gzip.compress(rows, 1)[:-100_000])
    found: list[RawSplit] = []
    inputs = list_inputs(str(path))
    spec = ReadSpec(
        root=inputs.root,
        format="jsonl",
        text_column="text",
        keep=pa.schema([]),
        split_rows=1000,
        split_bytes=1 << 25,
    )
    with pytest.raises(InputError) as caught:
        found.extend(read_splits(stream_task(inputs.files[0]), spec))
    reached = int(str(caught.value).split("after row ")[1].split(":")[0])
    assert str(caught.value) == f"{path}: damaged after row {reached}: Truncated compressed stream"
    assert found[-1].split.end <= reached < 40_000
    assert not found[-1].split.last
    (tmp_path / "b.jsonl.gz").write_bytes(b'{"text": "not compressed"}')
    assert failure(tmp_path / "b.jsonl.gz").startswith("IN: damaged after row 0: zlib inflate failed")


def test_a_corrupt_parquet_page_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [os.urandom(500).hex() for _ in range(2000)]})
    options = {"use_dictionary": False, "compression": "zstd", "data_page_size": 1 << 16}
    pq.write_table(table, path, write_page_checksum=True, row_group_size=1000, **options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 50_000] ^= 1
    path.write_bytes(content)
    message = failure(path, split_bytes=1 << 16)
    assert message.startswith("IN: damaged after row 1")
    assert "CRC" in message


def test_a_file_that_changes_while_it_is_read_never_gets_its_last_split(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\nc\n")
    inputs = list_inputs(str(path))
    spec = ReadSpec(
        root=inputs.root, format="text", text_column="text", keep=pa.schema([]), split_rows=1, split_bytes=9
    )
    splits = read_splits(stream_task(inputs.files[0]), spec)
    assert next(splits).split.end == 1
    with path.open("a") as appended:
        appended.write("d\n")
    with pytest.raises(InputError, match=r"a\.txt: changed since the run began \(6 bytes, .*; now 8 bytes, .*\)"):
        list(splits)
    task = dataclasses.replace(stream_task(list_inputs(str(path)).files[0]), begin=9)
    with pytest.raises(InputError) as caught:
        list(read_splits(task, spec))
    assert str(caught.value) == (
        f"{path}: ends at row 4, but row 9 was there when the output was written; the file was changed in place: "
        "run again with --overwrite"
    )


def test_a_parquet_task_reads_only_the_row_groups_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [os.urandom(50).hex() for _ in range(400)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False, compression="none")
    inputs = list_inputs(str(path))
    spec = ReadSpec(
        root=inputs.root, format="parquet", text_column="text", keep=pa.schema([]), split_rows=50, split_bytes=1 << 20
    )
    (task,) = row_group_tasks(inputs.files[0], [(100, 9)] * 4, split_rows=400, split_bytes=1 << 20)
    assert task.row_groups == (0, 1, 2, 3)
    task = dataclasses.replace(task, begin=50, done=((100, 300), (300, 350)))
    content = path.read_bytes()
    for text in texts[100:300]:
        content = content.replace(text.encode(), b"\xff" * 100)
    path.write_bytes(content)
    inputs = list_inputs(str(path))
    task = dataclasses.replace(task, file=inputs.files[0])
    found = list(read_splits(task, spec))
    assert [(s.split.begin, s.split.end, s.split.last) for s in found] == [(50, 100, False), (350, 400, True)]
    assert found[1].rows["__text"].to_pylist() == texts[350:]


def test_an_empty_file_closes_with_an_empty_split(tmp_path: Path) -> None:
    for name, content in {"a.txt": b"", "b.jsonl": b" \n\n", "c.jsonl.gz": b"", "d.txt": b"\xef\xbb\xbf"}.items():
        (tmp_path / name).write_bytes(content)
        split = read(tmp_path / name)
        assert (split.split.begin, split.split.end, split.split.last) == (0, 0, True)
        assert (len(split.rows), len(split.bad), split.rows_in) == (0, 0, 0)
    path = parquet(tmp_path / "e.parquet", pa.array([], pa.string()))
    inputs = list_inputs(str(path))
    spec = ReadSpec(
        root=inputs.root, format="parquet", text_column="text", keep=pa.schema([]), split_rows=1, split_bytes=9
    )
    tasks = row_group_tasks(inputs.files[0], [(0, 0)], split_rows=1, split_bytes=9)
    assert tasks == [ReadTask(file=inputs.files[0], row_groups=(), begin=0, end=0, closes_file=True)]
    (split,) = read_splits(tasks[0], spec)
    assert (split.split.begin, split.split.end, split.split.last) == (0, 0, True)
