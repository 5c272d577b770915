"""Estimated row counts: near the truth for even files, zero without lines, never an error for a damaged file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from raybert.data.estimate import estimate_rows
from raybert.data.files import list_inputs


@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_even_lines_are_estimated_well(tmp_path: Path, suffix: str) -> None:
    content = b"".join(f"{number:08d} {'words ' * 12}\n".encode() for number in range(40_000))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    inputs = list_inputs(str(tmp_path))
    assert estimate_rows(inputs.root, inputs.files) == pytest.approx(120_000, rel=0.1)


def test_small_empty_and_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthree")
    inputs = list_inputs(str(tmp_path))
    assert estimate_rows(inputs.root, inputs.files) == 3
    (tmp_path / "a.txt").write_bytes(b"")
    inputs = list_inputs(str(tmp_path))
    assert estimate_rows(inputs.root, inputs.files) == 0
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt.gz").write_bytes(b"not gzip at all\n")
    inputs = list_inputs(str(tmp_path))
    assert estimate_rows(inputs.root, inputs.files) == 0
