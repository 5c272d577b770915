"""What `--plan` says against what the run takes, on three corpora: docstrings, titles, and long documents."""

from __future__ import annotations

import gzip
import json
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.data.job import preview, run
from tests.jobs import small_ray
from tests.tiny import python_files, stdlib_docstrings

BAR = 0.25


@pytest.fixture(autouse=True)
def ray() -> Iterator[None]:
    with small_ray():
        yield


def docstrings(folder: Path) -> None:
    """6,000 texts of all lengths in three files of JSON lines."""
    texts = stdlib_docstrings(6000)
    for number in range(3):
        lines = (json.dumps({"text": text}) for text in texts[number::3])
        (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def titles(folder: Path) -> None:
    """30,000 texts of 6 to 10 words in Parquet."""
    rng, words = random.Random(0), [word for text in stdlib_docstrings(2000) for word in text.split()]
    texts = [" ".join(rng.choices(words, k=rng.randint(6, 10))) for _ in range(30_000)]
    pq.write_table(pa.table({"text": texts}), folder / "titles.parquet", row_group_size=5000)


def documents(folder: Path) -> None:
    """1,200 whole modules, cut by the model at its length, in a .gz; long ones and short ones as they come."""
    files = list(python_files(Path(sysconfig.get_path("stdlib"))))
    texts = [path.read_text(encoding="utf-8", errors="replace")[:20_000] for path in files]
    lines = "".join(json.dumps({"text": texts[at % len(texts)]}) + "\n" for at in range(1200))
    (folder / "documents.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("write", [docstrings, titles, documents])
def test_a_plan_is_within_a_quarter_of_the_run(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in")
    words = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    ahead = preview({"v": ("demo", "embed")}, **words).forecast
    assert ahead is not None
    assert not (tmp_path / "out").exists()
    report = run({"v": ("demo", "embed")}, **words)
    assert report.last_commit is not None
    taken = report.last_commit - report.started
    tokens, size = sum(report.tokens.values()), sum(file.stat().st_size for file in (tmp_path / "out").glob("part-*"))
    sys.stdout.write(
        f"\n{write.__name__}: {report.rows:,} rows; plan {ahead.seconds:.1f} s ({ahead.low:.1f} to {ahead.high:.1f}), "
        f"taken {taken:.1f} s: {ahead.seconds / taken - 1:+.1%}; tokens {ahead.tokens / tokens - 1:+.1%}, rows "
        f"{ahead.rows / report.rows - 1:+.1%}, bytes {ahead.bytes / size - 1:+.1%}\n"
    )
    assert abs(ahead.seconds / taken - 1) <= BAR
