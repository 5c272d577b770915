"""A row that kills its worker, or that a stage fails on, is found, quarantined and told; it costs no other row."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raybert.data.verify import verify
from tests.crash.conftest import Clean
from tests.jobs import armed, assert_same_tree, left_in, parts, run_cli, tree_bytes

PLACE = "000002-000000000015"  # of the split of rows 15 to 19 of the third file


def quarantined(output: Path) -> list[dict[str, object]]:
    """The rows of that split in the quarantine."""
    (file,) = (output / "_quarantine").glob(f"part-{PLACE}-*")
    return pq.read_table(file).to_pylist()


def part_rows(output: Path) -> list[int]:
    (file,) = output.glob(f"part-{PLACE}-*")
    rows: list[int] = pq.read_table(file)["_row"].to_pylist()
    return rows


def run_with_deadly_row(clean: Clean, folder: Path, stage: str) -> Path:
    output = clean.begun(folder)
    done = run_cli(*clean.words(output), env=armed(kill=[stage, "2.jsonl", 17]))
    assert (done.code, done.errors) == (0, []), done
    assert left_in(output) == ["manifest.json"]
    return output


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_found_and_heals_when_asked(clean: Clean, tmp_path: Path) -> None:
    output = run_with_deadly_row(clean, tmp_path, "compute")
    assert verify(output, full=True).ok
    assert parts(output) == clean.parts
    (row,) = quarantined(output)
    assert (row["_file"], row["_row"], row["reason"]) == (2, 17, "killed_worker")
    assert row["detail"] == "a worker died each time it computed this row"
    assert part_rows(output) == [15, 16, 18, 19]
    found, expected = tree_bytes(output), tree_bytes(clean.output)
    assert [name[:24] for name in expected if found[name] != expected[name]] == [f"part-{PLACE}"]

    done = run_cli(*clean.words(output), "--retry-quarantine")  # the worker might die again
    assert done.code == 0
    assert "complete already" in done.out
    done = run_cli(*clean.words(output), "--retry-reason", "killed_worker")
    assert (done.code, done.errors) == (0, [])
    assert_same_tree(output, clean.output)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_byte_depends_on_where_the_worker_died(clean: Clean, tmp_path: Path) -> None:
    trees = []
    for stage in ("read", "encode", "compute", "write"):
        trees.append(tree_bytes(run_with_deadly_row(clean, tmp_path / stage, stage)))
    assert all(tree == trees[0] for tree in trees)


@pytest.mark.slow
def test_a_row_that_a_stage_fails_on_is_quarantined_with_its_error(clean: Clean, tmp_path: Path) -> None:
    output = clean.begun(tmp_path)
    done = run_cli(*clean.words(output), env=armed(fail=["encode", "2.jsonl", 17]))
    assert (done.code, done.errors) == (0, []), done
    (row,) = quarantined(output)
    assert (row["_row"], row["reason"], row["detail"]) == (17, "failed", "ValueError: the trap")
    done = run_cli(*clean.words(output), "--retry-quarantine")
    assert (done.code, done.errors) == (0, [])
    assert_same_tree(output, clean.output)
