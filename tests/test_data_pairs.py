"""Laws of the second column: it comes beside its text or its row goes into the quarantine, whatever the format."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.arrowtypes import LISTS
from raybert.data.files import list_inputs
from raybert.data.lines import read_lines
from raybert.data.read import RawSplit
from raybert.data.rows import good_schema
from raybert.data.schema import decide_schema
from tests.test_data_read import by_number, check_resume, check_splits, folder_with, greedy, read_all, spec_of, tasks_of

ID = pa.schema([("id", pa.int64())])
TEXTS = pa.field("b", pa.large_string())
CHOICES = pa.field("b", LISTS)
MISSING = "a value that stands for no value"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
faulty_texts = {"null": (None, MISSING), "wrong_type": (7, ["a"], {}), "lone_surrogate": ("a\ud800",)}
faulty_lists = {
    "null": (None, MISSING),
    "wrong_type": ("a", 7, {}, [], [None], ["a", None], ["a", 7], [["a"]]),
    "lone_surrogate": (["a", "\udc00"],),
}


def faults_of(table: dict[str, tuple[Any, ...]]) -> st.SearchStrategy[tuple[Any, str | None]]:
    return st.sampled_from([(value, reason) for reason, values in table.items() for value in values])


def good(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, str | None]]:
    return st.tuples(values, st.none())


firsts = good(texts) | faults_of(faulty_texts)
ids = st.integers(-9, 9).map(lambda number: (number, None)) | st.just(("7", "kept_column"))
string_rows = st.tuples(firsts, good(texts) | faults_of(faulty_texts), ids)
list_rows = st.tuples(firsts, good(st.lists(texts, min_size=1, max_size=3)) | faults_of(faulty_lists), ids)


def line_of(text: Any, second: Any, id_: Any) -> bytes:
    values = {"text": text, "b": second, "id": id_}
    return json.dumps({key: value for key, value in values.items() if value is not MISSING}).encode()


@given(
    rows_and_pair=st.tuples(st.lists(string_rows, max_size=20), st.just(TEXTS))
    | st.tuples(st.lists(list_rows, max_size=20), st.just(CHOICES)),
    rows=st.integers(1, 9),
    size=st.integers(1, 200),
    block=st.integers(1, 64),
    data=st.data(),
)
def test_json_lines(rows_and_pair: Any, rows: int, size: int, block: int, data: st.DataObject) -> None:
    """Every row is good in whole, or bad for its text, else for its second value, else for a kept one."""
    values, pair = rows_and_pair
    lines = [line_of(text, second, id_) for (text, _), (second, _), (id_, _) in values]
    with (
        folder_with("a.jsonl", b"".join(line + b"\n" for line in lines)) as path,
        patch("raybert.data.read.read_lines", partial(read_lines, block=block)),
    ):
        spec, inputs = spec_of(path, ID, rows, size, pair)
        splits = read_all(spec, tasks_of(spec, inputs))
        check_resume(spec, inputs, splits, data)
    check_splits(splits, ID, pair.type)
    assert [split.split.end for split in splits] == greedy([len(line) for line in lines], rows, size)
    fine, bad = by_number(splits)
    for number, ((text, of_text), (second, of_second), (id_, of_id)) in enumerate(values):
        reason = of_text or of_second or of_id
        if reason is None:
            assert fine[number] == {"_row": number, "id": id_, "__text": text, "__pair": second}
            continue
        assert bad[number]["reason"] == reason
        name = "text" if of_text else "b" if of_second else "id"
        assert bad[number]["detail"].startswith(f"{name!r} ")
        if of_text is None:
            assert bad[number]["text"] == text


def texts_in_form(values: list[bytes | None], form: str) -> pa.Array:
    """The bytes as an array of strings in one of the types that Parquet files have, whether they are UTF-8 or not."""
    binary = pa.array(values, pa.binary())
    forms = {
        "string": lambda: binary.view(pa.string()),
        "large": lambda: binary.cast(pa.large_binary()).view(pa.large_string()),
        "dictionary": lambda: binary.view(pa.string()).dictionary_encode(),
        "binary": lambda: binary,
        "view": lambda: binary.cast(pa.binary_view()).view(pa.string_view()),
    }
    return forms[form]()


def lists_in_form(values: list[list[bytes | None] | None], kind: str, form: str) -> pa.Array:
    items = texts_in_form([item for value in values for item in value or ()], form)
    if kind == "fixed":
        pairs = [None if value is None else value[0] for value in values], [v and v[1] for v in values]
        both = texts_in_form([item for two in zip(*pairs, strict=True) for item in two], form)
        nulls = pa.array([value is None for value in values], pa.bool_())
        return pa.FixedSizeListArray.from_arrays(both, 2, mask=nulls)
    offsets, at = [], 0
    for value in values:
        offsets.append(None if value is None else at)
        at += len(value or ())
    make = pa.LargeListArray if kind == "large" else pa.ListArray
    return make.from_arrays(pa.array([*offsets, at], pa.int64() if kind == "large" else pa.int32()), items)


BYTES = st.none() | texts.map(str.encode) | texts.map(str.encode) | st.sampled_from([b"\xff", b"a\xed\xa0\x80"])
FORMS = st.sampled_from(["string", "large", "dictionary", "binary", "view"])


@st.composite
def parquet_pairs(draw: st.DrawFn) -> tuple[list[Any], pa.Array, pa.Field]:
    """Second values, the column that holds them, and how it is read."""
    form, kind = draw(FORMS), draw(st.sampled_from(["texts", "list", "large", "fixed"]))
    count = {"min_size": draw(st.sampled_from([0, 15])), "max_size": 30}
    if kind == "texts":
        values: list[Any] = draw(st.lists(BYTES, **count))
        return values, texts_in_form(values, form), TEXTS
    fixed = {"min_size": 2, "max_size": 2} if kind == "fixed" else {"max_size": 3}
    values = draw(st.lists(st.none() | st.lists(BYTES, **fixed) | st.lists(BYTES, **fixed), **count))
    return values, lists_in_form(values, kind, form), CHOICES


def reason_of(value: Any) -> str | None:
    if value is None:
        return "null"
    if isinstance(value, list):
        faults = [reason_of(item) for item in value]
        first = next((fault for fault in faults if fault), None)
        return "wrong_type" if not value or first == "null" else first
    try:
        value.decode()
    except UnicodeDecodeError:
        return "invalid_utf8"
    return None


def plain(value: Any) -> Any:
    return [item.decode() for item in value] if isinstance(value, list) else value.decode()


def bytes_of(value: Any) -> int:
    return sum(map(bytes_of, value)) if isinstance(value, list) else len(value or b"")


@given(
    pairs=parquet_pairs(),
    group=st.integers(1, 30),
    rows=st.integers(1, 12),
    size=st.integers(1, 80),
    kept=st.booleans(),
    data=st.data(),
)
def test_parquet(pairs: Any, group: int, rows: int, size: int, kept: bool, data: st.DataObject) -> None:
    """The same law for every way in which Parquet holds strings; bytes of the second column count like the text's."""
    values, column, pair = pairs
    count = len(values)
    firsts = data.draw(st.lists(BYTES, min_size=count, max_size=count), "texts")
    keep = ID if kept else pa.schema([])
    table = pa.table({"b": column, "id": pa.array(range(count)), "text": texts_in_form(firsts, "string")})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        pq.write_table(table, path, row_group_size=group)
        spec, inputs = spec_of(path, keep, rows, size, pair)
        if count:
            found = decide_schema(inputs, "text", tuple(keep.names), pair_column="b")
            assert (found.pair_type, found.keep) == (pair.type, keep)
        tasks = tasks_of(spec, inputs)
        splits = read_all(spec, tasks)
        check_resume(spec, inputs, splits, data)
    check_splits(splits, keep, pair.type)
    fine, bad = by_number(splits)
    for number, (first, second) in enumerate(zip(firsts, values, strict=True)):
        reason = reason_of(first) or reason_of(second)
        if reason is None:
            own = {"id": number} if kept else {}
            assert fine[number] == {"_row": number, **own, "__text": plain(first), "__pair": plain(second)}
            continue
        assert bad[number]["reason"] == reason
        assert bad[number]["detail"].startswith("'text' " if reason_of(first) else "'b' ")
        if reason_of(first) is None:
            assert bad[number]["text"] == plain(first)
    sizes = [bytes_of(one) + bytes_of(two) + 8 * kept for one, two in zip(firsts, values, strict=True)]
    ends = [greedy(sizes[task.begin : task.end], rows, size) for task in tasks]
    assert [split.split.end for split in splits] == [
        task.begin + end for task, of_task in zip(tasks, ends, strict=True) for end in of_task
    ]


@pytest.mark.parametrize(
    ("seconds", "pair"), [(["é" * 15] * 7, TEXTS), ([["x" * 10, "é" * 10]] * 7, CHOICES)], ids=["texts", "lists"]
)
def test_bytes_of_the_second_column_fill_a_split(tmp_path: Path, seconds: list[Any], pair: pa.Field) -> None:
    """31 bytes a row: a split of 93 holds three rows, one of 92 two; kept as well, the column counts twice."""
    pq.write_table(pa.table({"text": ["t"] * 7, "b": seconds}), tmp_path / "a.parquet")
    kept = pa.schema([("b", pa.string() if pair == TEXTS else pa.list_(pa.string()))])
    for keep, size, ends in (
        (pa.schema([]), 93, [3, 6, 7]),
        (pa.schema([]), 92, [2, 4, 6, 7]),
        (kept, 122, [2, 4, 6, 7]),
    ):
        spec, inputs = spec_of(tmp_path / "a.parquet", keep, size=size, pair=pair)
        assert [split.split.end for split in read_all(spec, tasks_of(spec, inputs))] == ends


@given(
    st.lists(st.tuples(st.none() | texts, st.none() | texts), max_size=20)
    | st.lists(st.tuples(st.none() | texts, st.none() | st.lists(st.none() | texts, max_size=3)), max_size=20)
)
def test_parquet_and_json_lines_give_equal_tables(values: list[Any]) -> None:
    lists = any(isinstance(second, list) for _, second in values)
    pair = CHOICES if lists else TEXTS
    rows = [{"text": text, "b": second} for text, second in values]
    keep = pa.schema([("b", pa.list_(pa.string()) if lists else pa.string())])
    schema = pa.schema([("text", pa.string()), ("b", keep.field("b").type)])
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
        lines = Path(folder, "a.jsonl")
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for one in (path, lines):
            spec, inputs = spec_of(one, keep, pair=pair)
            splits = read_all(spec, tasks_of(spec, inputs))
            tables.append([pa.concat_tables(getattr(s, part) for s in splits) for part in ("rows", "bad")])
    (rows_parquet, bad_parquet), (rows_json, bad_json) = tables
    assert rows_parquet.equals(rows_json)
    assert bad_parquet.drop_columns(["b"]).equals(bad_json.drop_columns(["b"]))
    assert bad_parquet["b"].to_pylist() == bad_json["b"].to_pylist()


def read(path: Path, pair: pa.Field, keep: pa.Schema | None = None) -> RawSplit:
    spec, inputs = spec_of(path, keep or pa.schema([]), pair=pair)
    (split,) = read_all(spec, tasks_of(spec, inputs))
    return split


def found(split: RawSplit) -> list[tuple[str, str, str | None]]:
    return [(row["reason"], row["detail"], row["text"]) for row in split.bad.to_pylist()]


STRING_FAULTS = {
    "{}": ("null", "'b' is missing"),
    '{"b": null}': ("null", "'b' is null"),
    '{"b": 1}': ("wrong_type", "'b' is an integer, not a string"),
    '{"b": ["x"]}': ("wrong_type", "'b' is an array, not a string"),
    '{"b": "ab\\ud83d"}': ("lone_surrogate", "'b' holds U+D83D at character 2"),
}
LIST_FAULTS = {
    "{}": ("null", "'b' is missing"),
    '{"b": null}': ("null", "'b' is null"),
    '{"b": "x"}': ("wrong_type", "'b' is a string, not a list of strings"),
    '{"b": []}': ("wrong_type", "'b' is an empty list"),
    '{"b": ["x", null]}': ("wrong_type", "'b' item 1 is null"),
    '{"b": ["x", ["y"], null]}': ("wrong_type", "'b' item 1 is an array, not a string"),
    '{"b": ["x", "y", "\\udc00", 1]}': ("lone_surrogate", "'b' item 2 holds U+DC00 at character 0"),
}


@pytest.mark.parametrize(
    ("pair", "second", "faults"), [(TEXTS, '"y"', STRING_FAULTS), (CHOICES, '["y", "z"]', LIST_FAULTS)]
)
def test_every_fault_of_a_json_pair(tmp_path: Path, pair: pa.Field, second: str, faults: Any) -> None:
    fine = f'{{"text": "t", "b": {second}}}'
    lines = [fine]
    for line in faults:
        lines += [line.replace("{", '{"text": "shown", ' if len(line) > 2 else '{"text": "shown"', 1), fine]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    split = read(path, pair)
    assert found(split) == [(reason, detail, "shown") for reason, detail in faults.values()]
    assert split.bad["_row"].to_pylist() == list(range(1, len(lines), 2))
    assert split.rows["_row"].to_pylist() == list(range(0, len(lines), 2))
    assert split.rows["__pair"].to_pylist() == [json.loads(second)] * (len(faults) + 1)


def test_every_fault_of_a_parquet_pair(tmp_path: Path) -> None:
    seconds = lists_in_form([[b"x"], None, [], [b"x", None], [b"x", b"y\xff"], [None], [b"x"]], "list", "string")
    table = pa.table({"text": ["t", "a", "b", "c", "d", None, "e"], "b": seconds})
    pq.write_table(table, tmp_path / "a.parquet")
    split = read(tmp_path / "a.parquet", CHOICES)
    assert split.rows.to_pylist() == [
        {"_row": row, "__text": text, "__pair": ["x"]} for row, text in {0: "t", 6: "e"}.items()
    ]
    assert found(split) == [
        ("null", "'b' is null", "a"),
        ("wrong_type", "'b' is an empty list", "b"),
        ("wrong_type", "'b' item 1 is null", "c"),
        ("invalid_utf8", "'b' item 1 holds byte 0xff at byte 1: invalid start byte", "d"),
        ("null", "'text' is null", None),
    ]
    pq.write_table(pa.table({"text": ["t", "a"], "b": pa.nulls(2)}), tmp_path / "a.parquet")
    for pair in (TEXTS, CHOICES):
        assert found(read(tmp_path / "a.parquet", pair)) == [("null", "'b' is null", text) for text in "ta"]


def test_a_pair_column_may_be_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "b": ["x"]}\n{"text": "u", "b": [1]}\n{"text": "v", "b": [2]}\n')
    schema = decide_schema(list_inputs(str(path)), "text", ("b",), pair_column="b")
    assert schema.keep == pa.schema([("b", pa.list_(pa.string()))])
    split = read(path, CHOICES, schema.keep)
    assert split.rows.to_pylist() == [{"_row": 0, "b": ["x"], "__text": "t", "__pair": ["x"]}]
    assert found(split)[0] == ("wrong_type", "'b' item 0 is an integer, not a string", "u")
    assert split.bad["b"].to_pylist() == [None, None]


def test_the_pair_comes_last_and_only_where_there_is_one() -> None:
    assert good_schema(ID).names == ["_row", "id", "__text"]
    assert good_schema(ID, LISTS).names == ["_row", "id", "__text", "__pair"]
    assert good_schema(ID, LISTS).field("__pair").type == pa.large_list(pa.large_string())
