"""What a run would do, known before anything is started: what is refused, what is read, how a limit cuts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.config import HeadSpec
from raybert.data import manifest as manifests
from raybert.data.driver import DriverLock
from raybert.data.plan import Options, Plan, make_plan
from raybert.data.store import Store
from raybert.errors import InputError, OutputError, SettingsError
from tests.jobs import write_lines
from tests.tiny import write_tiny_checkpoint

ENGINE = {"device": "cpu", "dtype": "float32", "budget": 64}


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    """Two Parquet files: 20 rows in three row groups, five rows in one; and a model's name."""
    (tmp_path / "in").mkdir()
    texts = pa.table({"text": [f"text {at}" for at in range(25)], "n": range(25)})
    pq.write_table(texts.slice(0, 20), tmp_path / "in" / "a.parquet", row_group_size=8)
    pq.write_table(texts.slice(20), tmp_path / "in" / "b.parquet")
    (tmp_path / "model").symlink_to(tiny)
    return tmp_path


def plan(folder: Path, **options: object) -> Plan:
    spec = HeadSpec(name="v", task="embed", model=str(folder / "model"))
    return make_plan([spec], Options(input=str(folder / "in"), output=str(folder / "out"), **options))


def begin(folder: Path, **options: object) -> None:
    """What a run does before its first split."""
    planned = plan(folder, **options)
    manifests.save(planned.store, planned.new_manifest(ENGINE))


def ranges(planned: Plan) -> dict[int, list[tuple[int, int | None, bool]]]:
    return {
        number: [(task.begin, task.end, task.closes_file) for task in tasks] for number, tasks in planned.tasks.items()
    }


def test_planning_writes_nothing(folder):
    planned = plan(folder, split_rows=8)
    assert not (folder / "out").exists()
    assert planned.manifest is None
    assert ranges(planned) == {0: [(0, 8, False), (8, 16, False), (16, 20, True)], 1: [(0, 5, True)]}
    assert planned.rows() == (25, True)
    assert planned.schema.names == ["_file", "_row", "v", "v_tokens", "v_truncated"]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, {0: [(0, 1, True)]}),
        (8, {0: [(0, 8, True)]}),
        (10, {0: [(0, 8, False), (8, 10, True)]}),
        (20, {0: [(0, 8, False), (8, 16, False), (16, 20, True)]}),
        (21, {0: [(0, 8, False), (8, 16, False), (16, 20, True)], 1: [(0, 1, True)]}),
        (99, {0: [(0, 8, False), (8, 16, False), (16, 20, True)], 1: [(0, 5, True)]}),
    ],
)
def test_a_limit_cuts_the_tasks_and_the_files(folder, limit, expected):
    planned = plan(folder, split_rows=8, limit=limit)
    assert ranges(planned) == expected
    assert planned.rows() == (min(limit, 25), True)
    assert [file.number for file in planned.new_manifest(ENGINE).files] == list(expected)


def test_a_limit_counts_lines_no_further_than_it_reaches(folder):
    shutil.rmtree(folder / "in")
    write_lines(folder / "in" / "a.jsonl", [{"text": "a"}, b"no json", b"", {"text": "b"}])
    write_lines(folder / "in" / "b.jsonl.gz", [{"text": "c"}] * 3)
    write_lines(folder / "in" / "c.jsonl.gz", [{"text": "d"}])
    assert len(ranges(plan(folder, limit=7))) == 3
    begin(folder, limit=5)
    (folder / "in" / "c.jsonl.gz").write_bytes(b"this is no gzip file")
    assert ranges(plan(folder)) == {0: [(0, 3, True)], 1: [(0, 2, True)]}
    with pytest.raises(InputError, match=r"c\.jsonl\.gz"):
        plan(folder, overwrite=True)


def test_options_of_the_manifest_hold_until_others_are_asked_for(folder):
    begin(folder, split_rows=8, keep=("n",))
    again = plan(folder)
    assert again.settings["split_rows"] == 8
    assert again.schema.names[:3] == ["_file", "_row", "n"]
    assert plan(folder, keep=("n",), split_rows=8, budget=64, dtype="float32", device="auto").manifest is not None
    for name, value in {"keep": "all", "split_rows": 9, "budget": 65, "dtype": "bfloat16", "device": "cuda"}.items():
        with pytest.raises(SettingsError, match=f"{name.replace('_', '-')}: this output was made with"):
            plan(folder, **{name: value})
    assert plan(folder, overwrite=True).settings["split_rows"] != 8


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"text": [1, 2]}, "column 'text'"),
        ({"body": ["a"]}, "column 'text' is not in .*c.parquet: it has body"),
    ],
)
def test_a_file_that_comes_later_needs_texts_too(folder, later, message):
    """Parquet's integers would be cast to texts, silently."""
    begin(folder)
    pq.write_table(pa.table(later), folder / "in" / "c.parquet")
    with pytest.raises(InputError, match=message):
        plan(folder)


def test_a_kept_column_may_be_missing_in_a_file_that_comes_later(folder):
    begin(folder, keep=("n",))
    pq.write_table(pa.table({"text": ["a"]}), folder / "in" / "c.parquet")
    assert ranges(plan(folder))[2] == [(0, 1, True)]


@pytest.fixture
def pairs(folder: Path) -> Path:
    """The same folder with a classifier; its input is one file of three row groups, whose column b is long."""
    write_tiny_checkpoint(folder / "classifier", heads=("classifier",))
    shutil.rmtree(folder / "in")
    (folder / "in").mkdir()
    rows = pa.table({"text": ["t"] * 6, "b": [f"{at}" * 1000 for at in range(6)], "c": ["c"] * 6})
    pq.write_table(rows, folder / "in" / "a.parquet", row_group_size=2)
    return folder


def plan_pairs(folder: Path, **options: object) -> Plan:
    spec = HeadSpec(name="c", task="classify", model=str(folder / "classifier"))
    return make_plan([spec], Options(input=str(folder / "in"), output=str(folder / "out"), **options))


def test_a_pair_column_is_a_setting_of_the_run(pairs):
    planned = plan_pairs(pairs, pair_column="b")
    assert planned.settings["pair_column"] == "b"
    assert planned.spec.pair == pa.field("b", pa.large_string())
    manifests.save(planned.store, planned.new_manifest(ENGINE))
    again = plan_pairs(pairs)
    assert again.manifest is not None
    assert again.spec == planned.spec
    assert plan_pairs(pairs, pair_column="b").spec == planned.spec
    with pytest.raises(SettingsError, match=r"pair-column: this output was made with b, not c; .* --overwrite"):
        plan_pairs(pairs, pair_column="c")
    assert plan_pairs(pairs, pair_column="c", overwrite=True).spec.pair == pa.field("c", pa.large_string())


def test_a_run_without_pairs_does_not_go_on_with_them(pairs):
    planned = plan_pairs(pairs)
    assert planned.settings["pair_column"] is None
    assert planned.spec.pair is None
    manifests.save(planned.store, planned.new_manifest(ENGINE))
    with pytest.raises(SettingsError, match=r"pair-column: this output was made with none, not b; .* --overwrite"):
        plan_pairs(pairs, pair_column="b")


def test_bytes_of_the_pair_column_count_when_row_groups_become_tasks(pairs):
    """Long seconds fill a split with each row group; the texts of all three groups together do not."""
    assert len(plan_pairs(pairs, split_bytes=1000).tasks[0]) == 1
    planned = plan_pairs(pairs, split_bytes=1000, pair_column="b")
    assert len(planned.tasks[0]) == 3
    manifests.save(planned.store, planned.new_manifest(ENGINE))
    assert plan_pairs(pairs).tasks == planned.tasks


def test_text_and_pair_are_two_columns(pairs):
    for options in ({"pair_column": "text"}, {"text_column": "b", "pair_column": "b"}):
        with pytest.raises(SettingsError, match=r"pair-column '(text|b)': is the text column too; name another one"):
            plan_pairs(pairs, **options)
    assert plan_pairs(pairs, text_column="b", pair_column="text").spec.text_column == "b"


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"text": ["a"]}, "column 'b' is not in .*b.parquet: it has text"),
        ({"text": ["a"], "b": [["x"]]}, "column 'b' is large_string in .*a.parquet and large_list.* in .*b.parquet"),
        ({"text": ["a"], "b": [1]}, "column 'b' is large_string in .*a.parquet and int64 in .*b.parquet"),
    ],
)
def test_a_file_that_comes_later_needs_pairs_too(pairs, later, message):
    planned = plan_pairs(pairs, pair_column="b")
    manifests.save(planned.store, planned.new_manifest(ENGINE))
    pq.write_table(pa.table(later), pairs / "in" / "b.parquet")
    with pytest.raises(InputError, match=message):
        plan_pairs(pairs)


def test_parts_without_a_manifest_are_not_touched_unless_told(folder):
    out = folder / "out"
    out.mkdir()
    (out / f"part-000000-000000000000-{'0' * 16}.parquet").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"holds parts but no _raybert/manifest\.json; .* --overwrite"):
        plan(folder)
    assert plan(folder, overwrite=True).manifest is None
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"1 files that are not raybert's \(mine.txt\)"):
        plan(folder, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit 0: takes a whole number from 1"),
        ({"split_rows": True}, "split-rows True: takes"),
        ({"split_bytes": 1.5}, "split-bytes 1.5: takes"),
        ({"budget": -1}, "budget -1: takes"),
        ({"vector_type": "int8"}, "vector-type: 'int8' is none of float32, float16"),
        ({"dtype": "fp32"}, "dtype: 'fp32' is none of"),
        ({"device": "tpu"}, "device: 'tpu' is none of"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(SettingsError, match=message):
        Options(input="in", output="out", **options)


def test_a_folder_that_cannot_be_written_to_is_told_early(tmp_path, monkeypatch):
    store = Store(tmp_path / "not" / "there")
    store.check_writable()
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="not/there: permission denied; choose another --output"):
        store.check_writable()


def test_another_driver_is_told_early(tmp_path):
    store = Store(tmp_path / "out")
    DriverLock(store).check_free()
    assert not (tmp_path / "out").exists()
    with DriverLock(store), pytest.raises(SettingsError, match=f"another driver writes here: pid {os.getpid()} on "):
        DriverLock(store).check_free()
    DriverLock(store).check_free()
