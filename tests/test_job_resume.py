"""A run goes on where it stopped: what is committed stays as it is, and only what is missing is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import raybert.data
from raybert.data import job
from raybert.data.verify import verify
from raybert.errors import RunFailed, SettingsError
from tests.jobs import assert_same_tree, parts, shared_ray, some_texts, tree_bytes, write_lines

FILES = ("a.jsonl", "b.jsonl.gz", "c.jsonl")
ROWS = 12


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``in`` and a finished run over it in ``out``: three files, twelve rows each, five in a split."""
    folder = tmp_path_factory.mktemp("resume")
    texts = some_texts(3 * ROWS)
    for number, name in enumerate(FILES):
        rows = [{"id": at, "text": texts[at]} for at in range(number * ROWS, (number + 1) * ROWS)]
        rows[3]["text"] = None
        write_lines(folder / "in" / name, rows)
    go(folder, tiny, split_rows=5, keep=["id"], dtype="float32")
    assert len(parts(folder / "out")) == 9
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same for one test, with the input's times."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def go(folder: Path, model: Path, **options: object) -> raybert.data.RunReport:
    return raybert.data.run(
        {"embed": (str(model), "embed")}, input=str(folder / "in"), output=str(folder / "out"), **options
    )


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / "out" / name).stat().st_mtime_ns for name in parts(folder / "out")}


def ids(folder: Path) -> list[int]:
    return pq.read_table(folder / "out")["id"].to_pylist()


def no_ray(address: object) -> None:
    raise AssertionError("Ray was started")


def assert_whole(folder: Path) -> None:
    assert verify(str(folder / "out"), full=True).problems == ()


def test_a_finished_run_has_nothing_to_do(copy, tiny, monkeypatch):
    """Neither Ray is started nor a byte or time of OUTPUT changed."""
    monkeypatch.setattr(job, "connected", no_ray)
    before, stamps = tree_bytes(copy / "out"), times(copy)
    report = go(copy, tiny)
    assert (report.splits_left, report.rows, report.rows_before) == (False, 0, 3 * ROWS)
    assert (tree_bytes(copy / "out"), times(copy)) == (before, stamps)


@pytest.mark.parametrize(
    "missing", [[0, 4], [2, 3, 4, 5, 8], list(range(9))], ids=["first and middle", "lasts and a file", "all"]
)
def test_missing_parts_are_made_again_byte_for_byte(finished, copy, tiny, missing):
    names = parts(copy / "out")
    for at in missing:
        (copy / "out" / names[at]).unlink()
    kept = times(copy)
    report = go(copy, tiny)
    assert report.parts == len(missing)
    assert report.rows + report.rows_before == 3 * ROWS
    assert {name: stamp for name, stamp in times(copy).items() if name in kept} == kept
    manifest = json.loads((copy / "out/_raybert/manifest.json").read_text())
    assert manifest["settings"].pop("input") == str(copy / "in")
    expected = json.loads((finished / "out/_raybert/manifest.json").read_text())
    assert expected["settings"].pop("input") == str(finished / "in")
    assert manifest == expected
    shutil.copy(finished / "out/_raybert/manifest.json", copy / "out/_raybert/manifest.json")
    assert_same_tree(copy / "out", finished / "out")


def test_a_changed_file_is_computed_anew_and_no_other(copy, tiny):
    rows = [{"id": 900 + at, "text": f"new text {at}"} for at in range(7)]
    before = times(copy)
    write_lines(copy / "in" / FILES[1], rows)
    report = go(copy, tiny)
    after = times(copy)
    others = {name: stamp for name, stamp in before.items() if not name.startswith("part-000001-")}
    assert {name: stamp for name, stamp in after.items() if not name.startswith("part-000001-")} == others
    assert not {name for name in before if name.startswith("part-000001-")} & after.keys()
    assert (report.rows, report.rows_before, report.parts) == (7, 2 * ROWS, 2)
    assert [each for each in ids(copy) if each >= 900] == [row["id"] for row in rows]
    assert_whole(copy)
    assert not go(copy, tiny).splits_left


def test_a_file_that_comes_later_is_appended(copy, tiny):
    """It gets the next number, though its name sorts before the others: no part is renamed."""
    before = times(copy)
    write_lines(copy / "in" / "0.jsonl", [{"id": 800, "text": "later"}])
    report = go(copy, tiny)
    after = times(copy)
    assert {name: after[name] for name in before} == before
    (new,) = after.keys() - before.keys()
    assert new.startswith("part-000003-000000000000-")
    assert report.rows == 1
    assert ids(copy)[-1] == 800
    assert_whole(copy)


def test_parts_of_a_file_that_is_gone_stay(copy, tiny, monkeypatch):
    monkeypatch.setattr(job, "connected", no_ray)
    before = tree_bytes(copy / "out")
    (copy / "in" / FILES[0]).unlink()
    report = go(copy, tiny)
    assert report.vanished == (FILES[0],)
    assert tree_bytes(copy / "out") == before
    assert_whole(copy)


def test_sync_drops_them_without_a_ray(copy, tiny, monkeypatch):
    monkeypatch.setattr(job, "connected", no_ray)
    before = parts(copy / "out")
    (copy / "in" / FILES[0]).unlink()
    report = go(copy, tiny, sync=True)
    assert (report.vanished, report.dropped, report.splits_left) == ((), (FILES[0],), False)
    assert parts(copy / "out") == [name for name in before if not name.startswith("part-000000-")]
    assert ids(copy) == [at for at in range(ROWS, 3 * ROWS) if at % ROWS != 3]
    assert_whole(copy)
    assert go(copy, tiny, sync=True).dropped == ()


def test_a_sync_that_was_killed_half_way_is_ended_by_the_next_start(copy, tiny, monkeypatch):
    """The manifest forgets the file first: what is left of it is a stranger's."""
    monkeypatch.setattr(job, "connected", no_ray)
    out, half = copy / "out", copy / "half"
    shutil.copytree(out, half)
    (copy / "in" / FILES[0]).unlink()
    go(copy, tiny, sync=True)
    expected = tree_bytes(out)
    shutil.copy(out / "_raybert" / "manifest.json", half / "_raybert")
    shutil.rmtree(out)
    half.rename(out)
    go(copy, tiny)
    assert tree_bytes(out) == expected


def test_a_file_that_was_dropped_and_comes_back_gets_another_number(copy, tiny):
    kept = (copy / "in" / FILES[1]).read_bytes()
    (copy / "in" / FILES[1]).unlink()
    go(copy, tiny, sync=True)
    (copy / "in" / FILES[1]).write_bytes(kept)
    report = go(copy, tiny, sync=True)
    assert (report.rows, report.rows_before) == (ROWS, 2 * ROWS)
    assert ids(copy)[-1] == 2 * ROWS - 1
    assert_whole(copy)


def test_too_large_a_quarantine_fails_a_run_and_a_finished_one(copy, tiny, monkeypatch):
    """Three of 36 rows are bad."""
    last = parts(copy / "out")[-1]
    (copy / "out" / last).unlink()
    with pytest.raises(RunFailed, match=r"quarantine: 3 of 36 rows exceed --max-quarantine 5%; .*raise the limit"):
        go(copy, tiny, max_quarantine="5%")
    assert_whole(copy)
    monkeypatch.setattr(job, "connected", no_ray)
    go(copy, tiny, max_quarantine="10%")
    with pytest.raises(RunFailed, match=r"quarantine: 3 of 36 rows exceed --max-quarantine 2;"):
        go(copy, tiny, max_quarantine=2)


@pytest.mark.slow
def test_a_hopeless_run_is_stopped_early(finished, tiny, tmp_path):
    rows = [json.dumps({"text": "good"}) if at % 2 else "not JSON" for at in range(100)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(RunFailed, match=r"rows \(invalid_json 4\) exceed --max-quarantine 3; what was committed"):
        go(tmp_path, tiny, split_rows=2, max_quarantine=3)
    assert len(parts(tmp_path / "out")) < 40
    assert go(tmp_path, tiny).rows_before >= 8


@pytest.mark.parametrize("asked", ["1 %%", "101%", "-3", "many", "0.5"])
def test_a_limit_that_is_none_is_refused(copy, tiny, asked):
    with pytest.raises(
        SettingsError, match=r"max-quarantine '.*': takes a share such as 1%, or a whole number of rows"
    ):
        go(copy, tiny, max_quarantine=asked)


def test_only_reasons_that_there_are_can_be_retried(copy, tiny):
    with pytest.raises(SettingsError, match="retry-reason 'nul': takes one of null, wrong_type, "):
        go(copy, tiny, retry_reasons=["nul"])


def test_a_retry_computes_the_splits_with_such_rows_and_no_others(copy, tiny, finished):
    before = times(copy)
    assert not go(copy, tiny, retry_quarantine=True).splits_left  # a null stays one until its file changes
    report = go(copy, tiny, retry_reasons=["null"])
    assert (report.parts, report.quarantined) == (3, 3)
    after = times(copy)
    assert sum(after[name] == before[name] for name in before) == 6
    for name in before:
        assert (copy / "out" / name).read_bytes() == (finished / "out" / name).read_bytes()


def test_what_a_killed_run_wrote_late_is_tidied_away(copy, tiny, monkeypatch):
    """A worker outlives its driver for a moment: it may write a part of a file's older version, or half of a pair."""
    monkeypatch.setattr(job, "connected", no_ray)
    out = copy / "out"
    before = tree_bytes(out)
    first = parts(out)[0]
    stale = f"{first[:25]}{'0' * 16}.parquet"
    shutil.copy(out / first, out / stale)
    shutil.copy(out / "_quarantine" / first, out / "_quarantine" / stale)
    assert not go(copy, tiny).splits_left
    assert tree_bytes(out) == before
    (out / "_raybert" / "tmp").mkdir()
    (out / "_raybert" / "tmp" / "left").write_bytes(b"half")
    shutil.copy(out / "_quarantine" / first, out / "_quarantine" / stale)
    go(copy, tiny)
    assert tree_bytes(out) == before


def test_a_damaged_part_does_not_count(copy, tiny, finished):
    """Only a part whose end no other name tells is looked into when a run goes on; `verify` looks into all."""
    last = parts(copy / "out")[2]
    (copy / "out" / last).write_bytes(b"PAR1 not any more")
    report = go(copy, tiny)
    assert report.parts == 1
    assert (copy / "out" / last).read_bytes() == (finished / "out" / last).read_bytes()


def test_overwrite_begins_anew(copy, tiny):
    with pytest.raises(SettingsError, match=r"split-rows: this output was made with 5, not 4; .*--overwrite"):
        go(copy, tiny, split_rows=4)
    before = set(parts(copy / "out"))
    report = go(copy, tiny, split_rows=6, overwrite=True, dtype="float32")
    assert (report.rows_before, report.rows) == (0, 3 * ROWS)
    assert len(parts(copy / "out")) == 6
    assert not before & set(parts(copy / "out"))
    table = pq.read_table(copy / "out")
    assert "id" not in table.column_names  # --keep was not asked for this time
    assert len(list((copy / "out/_quarantine").iterdir())) == 3
    assert_whole(copy)


@pytest.mark.parametrize("limit", [1, ROWS + 1, 10**9])
def test_limit_takes_the_first_rows(finished, tiny, tmp_path, limit):
    """A limit is one of the settings: the run is complete with it, and goes on with it."""
    folder = tmp_path / "limited"
    shutil.copytree(finished / "in", folder / "in")
    shutil.copytree(finished / "out" / "_raybert", folder / "out" / "_raybert")
    manifest = json.loads((folder / "out/_raybert/manifest.json").read_text())
    manifest["settings"]["limit"] = limit
    rows = min(limit, 3 * ROWS)
    manifest["files"] = manifest["files"][: -(-rows // ROWS)]
    (folder / "out/_raybert/manifest.json").write_text(json.dumps(manifest))
    report = go(folder, tiny)
    assert (report.rows_total, report.rows) == (rows, rows)
    expected = [at for at in range(rows) if at % ROWS != 3]
    assert ids(folder) == expected
    assert_whole(folder)
    assert not go(folder, tiny).splits_left
    if rows < 3 * ROWS:  # a file behind the limit is not looked at
        write_lines(folder / "in" / "d.jsonl", [{"id": 1, "text": "later"}])
        assert not go(folder, tiny).splits_left
    write_lines(folder / "in" / FILES[0], [{"id": 1, "text": "changed"}])
    with pytest.raises(SettingsError, match=r"limit: input file a\.jsonl changed .* --overwrite"):
        go(folder, tiny)
