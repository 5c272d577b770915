"""Jobs over what may be named as input: CSV, compressed files, patterns and lists, templates and filters."""

from __future__ import annotations

import bz2
import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import raybert
import raybert.data
from raybert.data.runreport import RunReport
from raybert.data.verify import VerifyReport, verify
from raybert.errors import SettingsError
from tests.jobs import assert_near, assert_same_tree, begin_as, shared_ray, some_texts, vectors, write_lines
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = some_texts(60)


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("model")))


def run(model: str, inputs: Any, output: Path, **options: Any) -> tuple[RunReport, VerifyReport, pa.Table]:
    given = {"dtype": "float32", "device": "cpu", "split_rows": 16, "actors": 1, "cpus_per_actor": 0.5, **options}
    report = raybert.data.run({"v": (model, "embed")}, input=inputs, output=str(output), **given)
    checked = verify(output, full=True)
    assert checked.problems == ()
    assert report.rows + report.rows_before == checked.rows_in
    assert checked.rows_in == checked.ok_rows + checked.quarantined + checked.filtered
    table = ds.dataset(output, exclude_invalid_files=True).to_table()
    return report, checked, table.sort_by([("_file", "ascending"), ("_row", "ascending")])


def embedded(model: str, texts: list[str]) -> Any:
    return raybert.load(model, task="embed", dtype="float32", device="cpu")(texts)


def test_csv_and_tsv_in_all_compressions(model: str, tmp_path: Path) -> None:
    """Every row once, typed, with its vector; broken records in the quarantine; all again after a resume."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, delimiter, rows in (("a.csv", ",", range(40)), ("b.tsv.bz2", "\t", range(40, 60))):
        with (folder / name.removesuffix(".bz2")).open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(["id", "text"])
            writer.writerows([at, TEXTS[at]] for at in rows)
            file.write("x\n" if delimiter == "," else '"1"0\ta\n')
    plain = folder / "b.tsv"
    (folder / "b.tsv.bz2").write_bytes(bz2.compress(plain.read_bytes()))
    plain.unlink()
    report, checked, table = run(model, str(folder), tmp_path / "out", keep=["id"])
    assert (checked.rows_in, checked.ok_rows, checked.quarantined, checked.filtered) == (62, 60, 2, 0)
    assert report.reasons == {"wrong_fields": 1, "invalid_csv": 1}
    assert table["id"].to_pylist() == list(range(60))
    assert table.schema.field("id").type == pa.int64()
    assert_near(vectors(table, "v"), embedded(model, TEXTS))
    again = begin_as(tmp_path / "out", tmp_path / "again")
    for part in sorted((tmp_path / "out").glob("part-*"))[1::2]:
        (again / part.name).write_bytes(part.read_bytes())
        if (tmp_path / "out" / "_quarantine" / part.name).exists():
            (again / "_quarantine").mkdir(exist_ok=True)
            (again / "_quarantine" / part.name).write_bytes((tmp_path / "out" / "_quarantine" / part.name).read_bytes())
    run(model, str(folder), again)
    assert_same_tree(again, tmp_path / "out")


def test_a_filter_and_a_template(model: str, tmp_path: Path) -> None:
    rows = [{"lang": "en" if at % 2 else "de", "n": at, "body": text} for at, text in enumerate(TEXTS)]
    table = pa.Table.from_pylist([*rows, {"lang": "en", "n": 60, "body": None}, {"lang": None, "n": 61, "body": "x"}])
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=20)
    options = {"text": "{lang} {n}: {body}", "where": "lang == 'en' and n >= 10", "keep": ["n"]}
    report, checked, found = run(model, str(tmp_path / "in"), tmp_path / "out", **options)
    expected = [row for row in rows if row["lang"] == "en" and row["n"] >= 10]
    assert (checked.rows_in, checked.ok_rows, checked.quarantined) == (62, len(expected), 1)
    assert (report.rows, report.quarantined, report.filtered) == (62, 1, checked.filtered)
    assert report.reasons == Counter(null=1)
    assert found["n"].to_pylist() == found["_row"].to_pylist() == [row["n"] for row in expected]
    assert_near(vectors(found, "v"), embedded(model, [f"{row['lang']} {row['n']}: {row['body']}" for row in expected]))
    assert found.schema.names == ["_file", "_row", "n", "v", "v_tokens", "v_truncated"]
    for other, said in (
        ({"where": "n >= 10"}, "where: this output was made with lang == 'en' and n >= 10, not n >= 10"),
        ({"text": "{body}"}, "text: this output was made with {lang} {n}: {body}, not {body}"),
        ({"text_column": "body"}, "text-column: this output was made with none, not body"),
        ({"max_row_bytes": 7}, "max-row-bytes: this output was made with 67108864, not 7"),
    ):
        with pytest.raises(SettingsError) as caught:
            run(model, str(tmp_path / "in"), tmp_path / "out", **other)
        assert said in str(caught.value)
    with pytest.raises(SettingsError, match=r"text '\{body\}': makes the texts; leave out text-column 'body'"):
        run(model, str(tmp_path / "in"), tmp_path / "other", text="{body}", text_column="body")


def test_nothing_is_left_by_a_filter_or_a_limit_of_bytes(model: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl.gz", [{"n": at, "text": "x" * (at + 1)} for at in range(40)])
    options = {"where": "n > 99", "max_row_bytes": 40}
    report, checked, table = run(model, str(file), tmp_path / "out", **options)
    assert (checked.rows_in, checked.ok_rows, checked.parts, len(table)) == (40, 0, 3, 0)
    assert (checked.filtered, report.reasons) == (19, {"too_long": 21})


def test_a_list_and_a_pattern_continue_one_run(model: str, tmp_path: Path) -> None:
    """More files of a list are appended; what was there is not computed again."""
    folder = tmp_path / "in"
    for name, rows in (("x/a.jsonl", range(5)), ("y/b.jsonl.gz", range(5, 20)), ("z/c.jsonl", range(20, 30))):
        write_lines(folder / name, [{"id": at, "text": TEXTS[at]} for at in rows])
    first = [folder / "x", folder / "y" / "b.jsonl.gz"]
    report, checked, _ = run(model, first, tmp_path / "in" / "_out", keep=["id"])
    assert (report.rows, checked.files) == (20, 2)
    report, checked, table = run(model, f"{folder}/*/*.jsonl*", tmp_path / "in" / "_out")
    assert (report.rows, report.rows_before, checked.files) == (10, 20, 3)
    assert table["id"].to_pylist() == list(range(30))
