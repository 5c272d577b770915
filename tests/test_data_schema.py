"""The run's columns: what is decided, and every way in which it can't be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data import lineschema
from raybert.data.arrowtypes import plain_type, row_bytes
from raybert.data.files import list_inputs
from raybert.data.jsonvalues import SeenValues, fit_column, fits
from raybert.data.parquet import read_footers
from raybert.data.schema import InputSchema, decide_schema
from raybert.errors import InputError

Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def decided(path: Path, text_column: str = "text", keep: Any = ()) -> InputSchema:
    return decide_schema(list_inputs(str(path)), text_column, keep)


def refusal(path: Path, text_column: str = "text", keep: Any = ()) -> str:
    with pytest.raises(InputError) as caught:
        decided(path, text_column, keep)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "IN")


def kept(path: Path, keep: Any = "all") -> dict[str, pa.DataType]:
    return {field.name: field.type for field in decided(path, keep=keep).keep}


def test_parquet_types_are_those_of_the_footers(tmp_path: Path) -> None:
    columns = {
        "id": pa.array([1, 2], pa.int32()),
        "text": pa.array(["a", None], pa.large_string()),
        "kind": pa.array(["x", "x"]).dictionary_encode(),
        "tags": pa.array([["a"], None]).cast(pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "meta": pa.array([{"a": 1, "b": [True]}, None]),
        "void": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert kept(tmp_path) == {
        "id": pa.int32(),
        "text": pa.large_string(),
        "kind": pa.string(),
        "tags": plain_type(columns["tags"].type),
        "meta": columns["meta"].type,
        "void": pa.string(),
    }
    assert plain_type(columns["tags"].type).value_type == pa.string()
    assert list(kept(tmp_path, ("meta", "id"))) == ["meta", "id"]
    assert decided(tmp_path).text_type == pa.large_string()
    assert decided(tmp_path).keep == pa.schema([])
    assert decided(tmp_path / "a.parquet", "void").text_type == pa.null()


def test_parquet_files_may_differ_in_order_extra_columns_and_width(tmp_path: Path) -> None:
    struct = [pa.struct([("a", pa.int32())]), pa.struct([("b", pa.string()), ("a", pa.int64())])]
    one = pa.table({"id": pa.array([1], pa.int32()), "text": ["a"], "m": pa.array([{"a": 1}], struct[0])})
    two = pa.table(
        {
            "more": [1.5],
            "text": pa.array([b"a"]),
            "m": pa.array([{"a": 1, "b": "x"}], struct[1]),
            "id": pa.array([1], pa.int64()),
        }
    )
    pq.write_table(one, tmp_path / "a.parquet")
    pq.write_table(two, tmp_path / "b.parquet")
    pq.write_table(pa.table({"other": pa.nulls(0, pa.int8())}), tmp_path / "c.parquet")
    assert kept(tmp_path, ("id", "m")) == {
        "id": pa.int64(),
        "m": pa.struct([("a", pa.int64()), ("b", pa.string())]),
    }
    assert list(kept(tmp_path)) == ["id", "text", "m", "more"]
    assert decided(tmp_path).text_type == pa.binary()


def test_footers_are_read_once_and_count_the_columns_asked_for(tmp_path: Path) -> None:
    table = pa.table({"text": ["a" * 100] * 30, "a": range(30), "a.b": range(30)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20, use_dictionary=False)
    inputs = list_inputs(str(tmp_path))
    (footer,) = read_footers(inputs, ("text",))
    assert [rows for rows, _ in footer.groups] == [20, 10]
    assert 20 * 100 <= footer.groups[0][1] < 20 * 120
    assert read_footers(inputs, "all")[0].groups[0][1] > footer.groups[0][1] + 2 * 20 * 8
    assert decide_schema(inputs, "text", footers=[footer]) == decide_schema(inputs, "text")


def test_parquet_columns_that_cannot_be_used(tmp_path: Path) -> None:
    one, two = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["a"], "url": ["u"], "title": [b"t"]}), one)
    assert refusal(one, "txet") == ("column 'txet' is not in IN: it has id, text, url, title; did you mean 'text'?")
    assert refusal(one, "id") == (
        "column 'id' of IN holds int64, not text; name a column of strings with --text-column "
        "(columns of strings: text, url, title)"
    )
    assert refusal(one, keep=("id", "q")) == "column 'q' is not in IN: it has id, text, url, title"
    assert refusal(one, keep=("id", "id")) == "column 'id' is named twice among the columns to keep"
    pq.write_table(pa.table({"id": ["x"], "text": ["a"]}), two)
    assert refusal(tmp_path, keep=("url",)) == "column 'url' is not in IN/b.parquet: it has id, text"
    assert refusal(tmp_path, keep=("id",)) == (
        "column 'id' is int64 in IN/a.parquet and string in IN/b.parquet; no type holds both: "
        "make them one, or leave the column out"
    )
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), two)
    assert refusal(two) == "column 'text' is 2 times in IN; rename all but one"
    wide = pa.table({f"c{at}": [1] for at in range(30)})
    pq.write_table(wide, two)
    assert refusal(two).endswith("c18, c19 and 10 more")


@pytest.mark.parametrize("name", ["_row", "_file", "__text", "__pair"])
def test_reserved_names_are_refused_however_they_come(tmp_path: Path, name: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", name: 1}])
    for keep in ("all", (name,)):
        assert refusal(path, keep=keep).startswith(f"column {name!r} can't be kept: raybert has a column of that")
    assert kept(path, ("text",)) == {"text": pa.string()}


def test_an_input_without_a_row_is_refused_and_an_empty_file_is_not(tmp_path: Path) -> None:
    for name, content in {"a.jsonl": b"\n \n", "b.txt": b"", "c.txt": b"\xef\xbb\xbf"}.items():
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name).startswith("IN: no rows in any of 1 ")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b""))
    assert refusal(tmp_path / "d.jsonl.gz") == "IN: no rows in any of 1 jsonl files"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    assert refusal(tmp_path / "e.parquet") == "IN: no rows in any of 1 parquet files"
    (tmp_path / "f.txt").write_bytes(b"\n")
    assert decide_schema(list_inputs(str(tmp_path), "text"), "text").keep == pa.schema([])


def test_plain_text_has_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    assert kept(tmp_path) == {"text": pa.string()}
    assert kept(tmp_path, ("text",)) == {"text": pa.string()}
    assert refusal(tmp_path, "body") == "column 'body' is not in IN: it has text"
    assert refusal(tmp_path, keep=("id",)) == "column 'id' is not in IN: it has text"


def test_json_types_are_those_of_the_sample(tmp_path: Path) -> None:
    rows: Rows = [
        {"text": "a", "i": 1, "f": 1, "b": True, "n": None, "l": [], "o": {"x": None}},
        {"text": None, "f": 2.5, "l": [None, 1], "o": {"x": 1, "y": "s"}, "late": "z"},
        {"text": 3},
    ]
    assert kept(jsonl(tmp_path / "a.jsonl", rows)) == {
        "text": pa.string(),
        "i": pa.int64(),
        "f": pa.float64(),
        "b": pa.bool_(),
        "n": pa.string(),
        "l": pa.list_(pa.int64()),
        "o": pa.struct([("x", pa.int64()), ("y", pa.string())]),
        "late": pa.string(),
    }


def test_every_files_first_ten_thousand_rows_decide(tmp_path: Path) -> None:
    rows: Rows = [{"text": "a", "x": 1}] * 9_999
    jsonl(tmp_path / "a.jsonl", rows)
    jsonl(tmp_path / "b.jsonl", [*rows, {"text": "a", "x": 0.5}, {"text": "a", "x": "no longer in the sample"}])
    assert kept(tmp_path, ("x",)) == {"x": pa.float64()}


def test_many_files_give_fewer_rows_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineschema, "SAMPLE_BYTES", 10)
    monkeypatch.setattr(lineschema, "LATER_ROWS", 1)
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": "a", "x": 1}, {"text": "a", f"{name}2": 0.5}])
    assert list(kept(tmp_path)) == ["text", "x", "a2"]


def test_the_kind_of_most_values_decides(tmp_path: Path) -> None:
    rows: Rows = [{"text": "a", "x": 1, "y": "1"}, {"text": "a", "x": "1", "y": 1}, {"text": "a", "x": 0.5, "y": []}]
    jsonl(tmp_path / "a.jsonl", rows)
    assert kept(tmp_path, ("x", "y")) == {"x": pa.float64(), "y": pa.string()}


def test_json_columns_that_cannot_be_used(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a", "x": 1, "e": {}, "s": "q"}, {"text": "a", "x": "1", "s": []}])
    assert refusal(path, keep=("e",)) == (
        "column 'e' holds only empty objects (IN, row 0), which Parquet can't store; leave it out of --keep"
    )
    assert refusal(path, "txet") == (
        "column 'txet' is not in the first 2 rows of IN: it has text, x, e, s; did you mean 'text'?"
    )
    assert refusal(path, "e") == (
        "column 'e' of IN holds an object, not text; name a column of strings with --text-column "
        "(columns of strings: text)"
    )
    assert decided(path, "x").text_type == pa.string(), "the row with a number goes to the quarantine"
    path.write_text("[\n1,\n2]\n")
    assert refusal(path).startswith("IN: none of the first 3 rows is a JSON object with a key")


def test_a_damaged_file_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-12])
    assert refusal(path) == "IN: can't be read: Truncated compressed stream"
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    assert refusal(path).startswith("IN: can't be read: Parquet magic bytes not found in footer")


def test_keep_is_a_tuple_or_all(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(TypeError, match="keep is 'all' or a tuple of names, not the string 'text'"):
        decided(path, keep="text")


def test_a_schema_survives_the_manifest(tmp_path: Path) -> None:
    fields = [("a", pa.list_(pa.struct([("x", pa.decimal128(9, 2))]))), ("t", pa.timestamp("ns", "UTC"))]
    schema = InputSchema(format="parquet", text_column="t", text_type=pa.binary(), keep=pa.schema(fields))
    stored = json.loads(json.dumps(schema.to_json()))
    assert stored["keep"][1] == {"name": "t", "type": "timestamp[ns, tz=UTC]"}
    assert InputSchema.from_json(stored) == schema


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(json_values, max_size=6))
def test_a_type_that_was_inferred_holds_what_fits_and_nothing_is_changed(values: list[Any]) -> None:
    seen = SeenValues("x")
    for value in values:
        seen.add(value, "here")
    try:
        kind = seen.arrow_type()
    except InputError:
        return
    column, misfits = fit_column(values, kind)
    assert misfits == [at for at, value in enumerate(values) if not fits(value, kind)]
    for at, value in enumerate(values):
        assert matches(column[at].as_py(), None if at in misfits else value)


def matches(stored: Any, value: Any) -> bool:
    """Equal, where a key that is missing equals one that is null."""
    if isinstance(value, dict):
        return stored is not None and all(matches(item, value.get(key)) for key, item in stored.items())
    if isinstance(value, list):
        return len(stored) == len(value) and all(map(matches, stored, value))
    return bool(stored == value)


@pytest.mark.parametrize(
    ("value", "kind", "fit"),
    [
        (True, pa.int64(), False),
        (1, pa.bool_(), False),
        (True, pa.float64(), False),
        (1.0, pa.int64(), False),
        (1, pa.float64(), True),
        (2**53 + 1, pa.float64(), False),
        (2**63, pa.int64(), False),
        (-(2**63), pa.int64(), True),
        ("\ud800", pa.string(), False),
        ("\U0001f600", pa.string(), True),
        ({"a": 1, "new": 2}, pa.struct([("a", pa.int64())]), False),
        ({}, pa.struct([("a", pa.int64())]), True),
        ([1, "x"], pa.list_(pa.int64()), False),
        (None, pa.list_(pa.int64()), True),
        ([], pa.struct([("a", pa.int64())]), False),
    ],
)
def test_what_fits(value: object, kind: pa.DataType, fit: bool) -> None:
    assert fits(value, kind) == fit
    column, misfits = fit_column([None, value], kind)
    assert misfits == ([] if fit else [1])
    assert column.type == kind
    assert column[1].as_py() == (None if not fit else {"a": None} if value == {} else value)


@pytest.mark.parametrize(
    ("column", "sizes"),
    [
        (pa.array(["a", None, "bcd"]), [1, 0, 3]),
        (pa.array(["é", None, "bcd"], pa.string_view()), [2, 0, 3]),
        (pa.array([b"a", None], pa.large_binary()), [1, 0]),
        (pa.array([True, None]), [1, 1]),
        (pa.nulls(2), [0, 0]),
        (pa.array([None, 1], pa.decimal128(10, 2)), [16, 16]),
        (pa.array(["aa", None, "aa"]).dictionary_encode(), [2, 0, 2]),
        (pa.array([None], pa.string()).dictionary_encode(), [0]),
        (pa.array([["x"], ["a", "bb"], None, []]).slice(1), [3, 0, 0]),
        (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), [9, 0]),
        (pa.array([{"a": 1, "b": "xx"}, None]), [10, 8]),
        (pa.array([[9, 9], [1, 2], None], pa.list_(pa.int32(), 2)).slice(1), [8, 8]),
        (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"])), [2]),
    ],
)
def test_row_bytes(column: pa.Array, sizes: list[int]) -> None:
    assert row_bytes(column).tolist() == sizes
