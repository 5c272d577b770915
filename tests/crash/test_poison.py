"""A split that kills its worker every time is given up after the third death; all others are finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.conftest import Clean
from tests.jobs import armed, assert_same_tree, left_in, parts, run_cli


@pytest.mark.parametrize(
    "stage",
    ["write", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("encode", "compute"))],
)
def test_a_deadly_split_is_given_up_and_the_next_run_heals(clean: Clean, tmp_path: Path, stage: str) -> None:
    output = clean.begun(tmp_path)
    done = run_cli(*clean.words(output), env=armed(kill=[stage, "2.jsonl", 15]))
    assert (done.code, done.out) == (1, ""), done
    (line,) = done.errors
    assert line.startswith(f"error: 2.jsonl, rows 15 to 20: 3 workers died while they tried to {stage} it; "), line
    assert line.endswith("1 of 3 files are incomplete, what was committed stays: run the same command again"), line
    missing = set(clean.parts) - set(parts(output))
    assert [name[:24] for name in missing] == ["part-000002-000000000015"]
    assert left_in(output) == ["manifest.json"]
    done = run_cli(*clean.words(output))
    assert (done.code, done.errors) == (0, [])
    assert_same_tree(output, clean.output)


@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_given_up(clean: Clean, tmp_path: Path) -> None:
    """What the reader handed on before it died may be committed or not; all other files are."""
    output = clean.begun(tmp_path)
    done = run_cli(*clean.words(output), env=armed(kill=["read", "0.jsonl", 15]))
    assert (done.code, done.out) == (1, ""), done
    (line,) = done.errors
    assert line.startswith("error: 0.jsonl, row 0 on: 3 workers died while they tried to read it; "), line
    assert "1 of 3 files are incomplete" in line
    missing = sorted(set(clean.parts) - set(parts(output)))
    assert "part-000000-000000000015" in [name[:24] for name in missing]
    assert {name[:11] for name in missing} == {"part-000000"}
    assert left_in(output) == ["manifest.json"]
    done = run_cli(*clean.words(output))
    assert (done.code, done.errors) == (0, [])
    assert_same_tree(output, clean.output)
