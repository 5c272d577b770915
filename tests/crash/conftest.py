"""One corpus and one undisturbed run over it, which every disturbed one has to equal byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs import begin_as, left_in, parts, run_cli, some_texts, write_lines


@dataclass
class Clean:
    """An undisturbed run.

    Attributes:
        input: its corpus.
        output: its folder, only to be read.
        model: its checkpoint.
    """

    input: Path
    output: Path
    model: Path

    @property
    def parts(self) -> list[str]:
        """Names of all its parts."""
        return parts(self.output)

    def words(self, output: Path) -> tuple[object, ...]:
        """The same command into another folder."""
        return ("run", "embed", "--model", self.model, "--input", self.input, "--output", output)

    def begun(self, folder: Path) -> Path:
        """A folder in which the same run has only begun."""
        return begin_as(self.output, folder / "out")


def run_undisturbed(folder: Path, model: Path, *, files: int, rows: int, split_rows: int) -> Clean:
    """Write a corpus of JSON lines, one of them gzipped, a bad row in every tenth, and run over it."""
    texts = some_texts(files * rows)
    for number in range(files):
        of_file = [
            {"id": at, "text": texts[at] if at % 10 else None} for at in range(number * rows, (number + 1) * rows)
        ]
        write_lines(folder / "in" / f"{number}.jsonl{'.gz' if number == 1 else ''}", of_file)
    clean = Clean(folder / "in", folder / "out", model)
    done = run_cli(*clean.words(clean.output), "--split-rows", split_rows, "--keep", "id", "--dtype", "float32")
    assert (done.code, done.errors) == (0, [])
    assert left_in(clean.output) == ["manifest.json"]
    assert len(clean.parts) == files * -(-rows // split_rows)
    return clean


@pytest.fixture(scope="session")
def clean(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Three files of 40 rows in splits of five."""
    return run_undisturbed(tmp_path_factory.mktemp("clean"), tiny, files=3, rows=40, split_rows=5)
