"""Filter, template and limit of bytes in every format: the same rows, counted once each; and unlike files."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.asked import Asked
from raybert.data.files import list_inputs
from raybert.data.parquet import read_footers
from raybert.data.read import RawSplit, ReadSpec, read_splits
from raybert.data.schema import InputSchema, check_later_files, decide_schema
from raybert.data.splits import Excluded, ReadTask, row_group_tasks, stream_task
from raybert.errors import InputError, SettingsError
from tests.test_data_read import folder_with

FORMATS = ("jsonl", "parquet", "csv")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows with the same keys, in the format that the name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


def decided(path: Path, **options: Any) -> InputSchema:
    given = {"text_column": None if "text" in options else "text", **options}
    return decide_schema(list_inputs(str(path)), given.pop("text_column"), given.pop("keep", ()), **given)


def tasks_of(path: Path, spec: ReadSpec) -> list[ReadTask]:
    (file,) = list_inputs(str(path)).files
    if spec.format != "parquet":
        return [stream_task(file)]
    (footer,) = read_footers(list_inputs(str(path)), spec.wanted().names)
    return row_group_tasks(file, footer.groups, split_rows=spec.split_rows, split_bytes=spec.split_bytes)


def spec_of(path: Path, columns: InputSchema, **settings: Any) -> ReadSpec:
    return ReadSpec(
        root=list_inputs(str(path)).root,
        format=columns.format,
        text_column=columns.text_column,
        keep=columns.keep,
        pair_column=columns.pair_column,
        pair_type=columns.pair_type,
        text_parts=columns.text_parts,
        where_columns=columns.where_columns,
        **{"split_rows": 4, "split_bytes": 1 << 20, **settings},
    )


def read(path: Path, *, schema_of: Path | None = None, max_row_bytes: int = 1 << 20, **options: Any) -> list[RawSplit]:
    """All splits of a file, by the columns of this or another path."""
    columns = decided(schema_of or path, **options)
    asked = {name: options[name] for name in ("text", "where") if name in options}
    spec = spec_of(path, columns, max_row_bytes=max_row_bytes, **asked)
    splits = [split for task in tasks_of(path, spec) for split in read_splits(task, spec)]
    for split in splits:
        assert split.rows_in == len(split.rows) + len(split.bad) + split.filtered
        split.rows.validate(full=True)
    return splits


def good(splits: Sequence[RawSplit], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for split in splits for row in split.rows.to_pylist()]


def bad(splits: Sequence[RawSplit]) -> list[tuple[int, str, str]]:
    return [(row["_row"], row["reason"], row["detail"]) for split in splits for row in split.bad.to_pylist()]


ROWS = [{"title": f"T{at}", "n": at, "score": at / 4, "ok": at % 3 == 0, "text": f"text {at}"} for at in range(20)]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_filter_takes_rows_out_and_counts_them(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", ROWS)
    splits = read(path, where="n > 3 and score < 4 and ok and title != 'T9'", keep=("score",))
    assert good(splits, "_row", "score", "__text") == [
        (at, at / 4, f"text {at}") for at in range(4, 16) if at % 3 == 0 and at != 9
    ]
    assert splits[0].rows.schema.names == ["_row", "score", "__text"]
    assert sum(split.filtered for split in splits) == 17
    assert bad(splits) == []
    unfiltered = read(path, keep=("score",))
    if kind != "parquet":  # of Parquet the filter's columns are read, and their bytes count
        assert [split.split for split in splits] == [split.split for split in unfiltered]
    nothing = read(path, where="n > 99")
    assert sum(split.filtered for split in nothing) == 20
    assert good(nothing, "_row") == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_template_makes_the_texts(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", ROWS)
    splits = read(path, text="{title}: {n} {{{score}}} {ok} {text}{title}")
    flag = {True: "True", False: "False"} if kind == "csv" else {True: "true", False: "false"}
    assert good(splits, "__text") == [
        (f"T{at}: {at} {{{at / 4}}} {flag[at % 3 == 0]} text {at}T{at}",) for at in range(20)
    ]
    assert splits[0].rows.schema.names == ["_row", "__text"]
    both = read(path, text="{title}", where="score >= 4.5", keep=("title", "n"))
    assert good(both, "_row", "title", "n", "__text") == [(18, "T18", 18, "T18"), (19, "T19", 19, "T19")]


def test_numbers_of_csv_go_into_a_text_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("zip,text\n007,x\n,y\n")
    splits = read(path, text="{zip} {text}", keep=("zip",), where="zip is None or zip == 7")
    assert good(splits, "zip", "__text") == [(7, "007 x"), (None, " y")]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_null_in_a_template_names_its_column(tmp_path: Path, kind: str) -> None:
    rows = [{"a": "x", "n": 1}, {"a": None, "n": 2}, {"a": "y", "n": None}, {"a": None, "n": None}]
    splits = read(write(tmp_path / f"a.{kind}", rows), text="{a}{n}")
    assert good(splits, "__text") == [("x1",)]
    assert bad(splits) == [(1, "null", "'a' is null"), (2, "null", "'n' is null"), (3, "null", "'a' is null")]


def test_faults_of_a_template_in_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"a": "x", "n": 1}', '{"a": 5, "n": 2}', '{"a": "y", "n": "2"}', '{"a": "z"}', "{", '{"a": "w", "n": 3}']
    path.write_text("\n".join(lines) + "\n")
    splits = read(path, text="{a}{n}")
    assert good(splits, "__text") == [("x1",), ("w3",)]
    assert [(row, reason) for row, reason, _ in bad(splits)] == [
        (1, "wrong_type"),
        (2, "wrong_type"),
        (3, "null"),
        (4, "invalid_json"),
    ]


def test_the_filter_comes_before_all_faults_but_those_that_hide_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[tuple[str, str | None]] = [
        ('{"n": 1, "text": "a", "k": 1}', "good"),
        ('{"n": 0, "text": null, "k": "x"}', None),
        ('{"n": 1, "text": null}', "null"),
        ('{"n": 1, "text": "a", "k": "x"}', "kept_column"),
        ('{"n": "1", "text": "a"}', "where_column"),
        ('{"n": null, "text": "a"}', None),
        ('{"text": "a"}', None),
        ('{"n": 0', "invalid_json"),
        ("[0]", "not_an_object"),
        ('{"n": 0, "text": "' + "x" * 99 + '"}', "too_long"),
        ('{"n": 1, "text": "b", "k": 2}', "good"),
    ]
    path.write_text("".join(f"{line}\n" for line, _ in rows))
    splits = read(path, where="n > 0", keep=("k",), max_row_bytes=60)
    assert good(splits, "_row") == [(at,) for at, (_, what) in enumerate(rows) if what == "good"]
    assert [(at, reason) for at, reason, _ in bad(splits)] == [
        (at, what) for at, (_, what) in enumerate(rows) if what not in ("good", None)
    ]
    assert sum(split.filtered for split in splits) == 3
    assert {row["_row"]: row["text"] for split in splits for row in split.bad.to_pylist()}[4] == "a"


def test_a_value_that_does_not_fit_the_filter_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "tag": pa.array([b"x", b"\xff", b"y"]).view(pa.string())})
    pq.write_table(table, tmp_path / "a.parquet")
    splits = read(tmp_path / "a.parquet", where="tag == 'x'")
    assert good(splits, "__text") == [("a",)]
    assert [(at, reason) for at, reason, _ in bad(splits)] == [(1, "where_column")]
    assert sum(split.filtered for split in splits) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_filter_or_a_template_names_has_to_be_there(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", ROWS)
    for options in ({"where": "titel == 'x'"}, {"text": "{titel}"}):
        with pytest.raises(InputError, match=r"column 'titel' is not in .*did you mean 'title'\?"):
            decided(path, **options)
    with pytest.raises(SettingsError, match=r"where .n > .a.., character 1: a number is compared with a text"):
        decided(path, where="n > 'a'")
    with pytest.raises(SettingsError, match="the filter is a text, not true or false"):
        decided(path, where="text")
    columns = decided(path, where="n > 1 and ok", text="{title} {n}", keep=("n", "title"))
    assert InputSchema.from_json(json.loads(json.dumps(columns.to_json()))) == columns


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_template_takes_no_lists(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", [{"a": ["x"], "text": "t"}])
    with pytest.raises(InputError, match=r"column 'a' of .* a template takes columns of strings, numbers and booleans"):
        decided(path, text="{a}")


def test_plain_text_has_one_column(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo words\nthree\n")
    assert good(read(path, text="<{text}>", where="len(text) > 3"), "_row", "__text") == [
        (1, "<two words>"),
        (2, "<three>"),
    ]
    with pytest.raises(InputError, match=r"column 'title' is not in .*: it has text"):
        decided(path, text="{title}")


@pytest.mark.parametrize("kind", [*FORMATS, "txt"])
def test_a_row_of_too_many_bytes_is_not_computed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    texts = ["a" * 30, "é" * 40, "b" * 30]
    if kind == "txt":
        path.write_text("\n".join(texts))
    else:
        write(path, [{"text": text} for text in texts])
    splits = read(path, max_row_bytes=60)
    assert good(splits, "_row") == [(0,), (2,)]
    size = {"jsonl": 12 + 40 * 6, "parquet": 80, "csv": 80, "txt": 80}[kind]
    assert bad(splits) == [(1, "too_long", f"{size} bytes, over the limit of 60")]
    assert [row["text"] for split in splits for row in split.bad.to_pylist()] == [None]


def test_text_and_pair_count_together_in_parquet(tmp_path: Path) -> None:
    rows = [{"text": "a" * 6, "b": ["x" * 2, "y"], "k": "z" * 99}, {"text": "a" * 6, "b": ["x" * 4, "y"], "k": ""}]
    splits = read(write(tmp_path / "a.parquet", rows), pair_column="b", keep=("k",), max_row_bytes=10)
    assert good(splits, "_row") == [(0,)]
    assert bad(splits) == [(1, "too_long", "11 bytes, over the limit of 10")]


@pytest.mark.parametrize("kind", FORMATS)
def test_excluded_rows_are_bad_whatever_the_filter_says(tmp_path: Path, kind: str) -> None:
    """And all others are as without them, in the same splits."""
    path = write(tmp_path / f"a.{kind}", ROWS)
    spec = spec_of(path, decided(path, where="n > 5"), where="n > 5")
    tasks = tasks_of(path, spec)
    gone = (Excluded(row=2, reason="killed_worker", detail="d"), Excluded(row=9, reason="out_of_memory", detail="d"))
    clean = [split for task in tasks for split in read_splits(task, spec)]
    found = [split for task in tasks for split in read_splits(dataclasses.replace(task, excluded=gone), spec)]
    assert [split.split for split in found] == [split.split for split in clean]
    assert good(found, "_row") == [row for row in good(clean, "_row") if row != (9,)]
    assert bad(found) == [(2, "killed_worker", "d"), (9, "out_of_memory", "d")]
    assert sum(split.filtered for split in found) == sum(split.filtered for split in clean) - 1


@given(
    rows=st.lists(
        st.fixed_dictionaries({"text": st.text("ab", max_size=3), "n": st.integers(-3, 3), "x": st.booleans()}),
        min_size=1,
        max_size=25,
    ),
    bound=st.integers(-3, 3),
    cut=st.integers(1, 5),
)
def test_every_format_gives_the_same_rows(rows: list[dict[str, Any]], bound: int, cut: int) -> None:
    expected = [
        (at, f"{row['text']}{row['n']}") for at, row in enumerate(rows) if row["n"] < bound or row["text"] > "b"
    ]
    for kind in FORMATS:
        with folder_with(f"a.{kind}", b"") as path:
            write(path, rows)
            where = f"n < {bound} or text > 'b'"
            columns = decided(path, where=where, text="{text}{n}")
            spec = spec_of(path, columns, where=where, text="{text}{n}", split_rows=cut)
            splits = [split for task in tasks_of(path, spec) for split in read_splits(task, spec)]
            assert good(splits, "_row", "__text") == expected
            assert sum(split.filtered for split in splits) == len(rows) - len(expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_files_may_differ_in_order_and_columns(tmp_path: Path, kind: str) -> None:
    one, other = tmp_path / "in" / f"a.{kind}", tmp_path / "in" / f"b.{kind}"
    write(one, [{"text": "a", "n": 1}])
    write(other, [{"m": "x", "n": 2, "text": "b"}])
    options: dict[str, Any] = {"schema_of": tmp_path / "in", "keep": "all", "where": "n > 0"}
    names = ["text", "n", "m"]
    assert decided(tmp_path / "in", keep="all").keep.names == names
    assert good(read(one, **options), *names, "__text") == [("a", 1, None, "a")]
    assert good(read(other, **options), *names, "__text") == [("b", 2, "x", "b")]


def test_later_parquet_files_need_the_filters_and_the_templates_columns(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", [{"text": "a", "n": 1}])
    asked = Asked(text_column=None, text="{text}", where="n > 0")
    columns = decided(tmp_path / "in", text="{text}", where="n > 0")
    write(tmp_path / "in" / "b.parquet", [{"text": "b"}])
    inputs = list_inputs(str(tmp_path / "in"))
    with pytest.raises(InputError, match="column 'n' is not in"):
        check_later_files(columns, inputs, read_footers(inputs, asked.columns), asked)


def test_nested_and_dictionary_columns_come_through(tmp_path: Path) -> None:
    kinds = {
        "struct": pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        "map": pa.map_(pa.string(), pa.int64()),
        "list": pa.list_(pa.struct([("x", pa.float64())])),
    }
    values: dict[str, list[Any]] = {
        "struct": [{"a": 1, "b": ["x", None]}, None, {"a": None, "b": []}],
        "map": [[("k", 1), ("l", None)], [], None],
        "list": [[{"x": 0.5}, None], None, []],
    }
    columns = {name: pa.array(values[name], kind) for name, kind in kinds.items()}
    columns |= {"text": pa.array(["a", "b", "c"]), "kind": pa.array(["u", None, "u"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    splits = read(tmp_path / "a.parquet", keep="all", where="kind == 'u' and struct is not None", text="{kind}{text}")
    assert good(splits, "struct", "map", "list", "kind", "__text") == [
        (values["struct"][at], values["map"][at], values["list"][at], "u", f"u{'abc'[at]}") for at in (0, 2)
    ]
    assert {name: splits[0].rows.schema.field(name).type for name in kinds} == kinds
