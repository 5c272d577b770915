"""What the second column holds, strings or lists of strings: decided once, and what can't be decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.data.arrowtypes import LISTS
from raybert.data.asked import Asked
from raybert.data.files import list_inputs
from raybert.data.parquet import read_footers
from raybert.data.schema import InputSchema, check_later_files, decide_schema
from raybert.errors import InputError

ASKED = Asked(text_column="text", pair_column="b")


def decided(path: Path, pair_column: str = "b", keep: Any = ()) -> InputSchema:
    return decide_schema(list_inputs(str(path)), "text", keep, pair_column=pair_column)


def refusal(path: Path, pair_column: str = "b", keep: Any = ()) -> str:
    with pytest.raises(InputError) as caught:
        decided(path, pair_column, keep)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "IN")


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [
        (["x"], pa.large_string()),
        ([["x"]], LISTS),
        ([None, "x"], pa.large_string()),
        ([None], pa.large_string()),
        ([[]], LISTS),
        ([[None], []], LISTS),
        (["x", ["y"]], pa.large_string()),
        ([["y"], "x"], LISTS),
        (["x", ["y"], ["z"]], LISTS),
        ([1, 2, {}, "x"], pa.large_string()),
        ([1, 2, {}, ["x", 1]], LISTS),
        ([[1], [2], "x"], pa.large_string()),
    ],
)
def test_json_strings_and_lists_of_strings_are_told_apart(tmp_path: Path, seconds: list[Any], kind: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "t", "b": second}) + "\n" for second in seconds))
    schema = decided(path)
    assert (schema.pair_column, schema.pair_type) == ("b", kind)
    assert InputSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert decide_schema(list_inputs(str(path)), "text").pair_type is None


def test_json_columns_that_hold_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "n": [1], "o": {}, "c": ["x"], "d": "x"}\n{"text": "t", "n": 1}\n')
    assert refusal(path, "n") == (
        "column 'n' of IN holds an array of an integer and an integer, not text or lists of texts; name a column of "
        "strings or lists of strings with --pair-column (columns of strings or lists of strings: text, c, d)"
    )
    assert refusal(path, "o").startswith("column 'o' of IN holds an object, not text or lists")
    assert refusal(path, "e").startswith("column 'e' is not in the first 2 rows of IN: it has text, n, o")
    path.write_text('{"text": "t", "b": "x", "__pair": 1}\n')
    assert refusal(path, keep="all").startswith("column '__pair' can't be kept: raybert has a column of that name")


def test_plain_text_has_no_second_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    assert refusal(tmp_path) == (
        "IN: plain text has the one column 'text' and no pair column 'b'; write Parquet or JSON lines"
    )


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"text": ["t"], **columns}), path)
    return path


def test_parquet_files_may_code_pairs_in_different_ways(tmp_path: Path) -> None:
    for name, column in {
        "a": pa.array([["x"]], pa.list_(pa.string())),
        "b": pa.array([["x", "y"]], pa.list_(pa.binary(), 2)),
        "c": pa.array([["x"]], pa.large_list(pa.string())),
        "d": pa.nulls(1),
        "e": pa.array([[None]], pa.list_(pa.null())),
    }.items():
        parquet(tmp_path / f"{name}.parquet", b=column)
    assert decided(tmp_path).pair_type == LISTS
    assert decided(tmp_path / "d.parquet").pair_type == pa.large_string()
    assert decided(tmp_path / "e.parquet").pair_type == LISTS


def test_parquet_columns_that_hold_no_pairs(tmp_path: Path) -> None:
    one = parquet(tmp_path / "a.parquet", b=["x"], n=[1], m=[[1]], c=[["x"]])
    assert refusal(one, "n") == (
        "column 'n' of IN holds int64, not text or lists of texts; name a column of strings or lists of strings with "
        "--pair-column (columns of strings or lists of strings: text, b, c)"
    )
    assert "holds list<element: int64>, not text or lists of texts" in refusal(one, "m")
    assert refusal(one, "d").startswith("column 'd' is not in IN: it has text, b, n, m, c")
    parquet(tmp_path / "b.parquet", b=[["x"]])
    assert refusal(tmp_path) == (
        "column 'b' is large_string in IN/a.parquet and large_list<item: large_string> in IN/b.parquet; no type "
        "holds both: make them one, or leave the column out"
    )


def test_a_later_parquet_file_must_hold_pairs_of_the_runs_kind(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", b=["x"])
    columns = decided(path)
    parquet(path, b=pa.array([b"x"]))
    inputs = list_inputs(str(path))
    check_later_files(columns, inputs, read_footers(inputs, ASKED.columns), ASKED)
    parquet(path, b=[["x"]])
    inputs = list_inputs(str(path))
    with pytest.raises(InputError) as caught:
        check_later_files(columns, inputs, read_footers(inputs, ASKED.columns), ASKED)
    assert str(caught.value) == (
        f"column 'b' of {path} is read as large_list<item: large_string>, but this output was made with large_string; "
        "put back the files as they were, or start anew with --overwrite"
    )
