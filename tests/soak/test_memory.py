"""Memory of a job does not grow with its input: the real command on 20 MB and on up to 2 GB, peaks side by side.

The figure is the kernel's VmHWM of every process of the job. Where it lies is told beside it: RssAnon is the process's
own, RssFile its libraries, RssShmem the pages of Ray's object store that it has touched, which other processes share.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from raybert.data.splits import SPLIT_BYTES
from raybert.data.verify import verify
from tests.processes import Peak, short_folder, stopped, watch
from tests.soak.corpora import FORMATS, write_corpus
from tests.tiny import write_tiny_checkpoint

MB = 10**6
SMALL = 20 * MB
DRIVER_BAR = 350 * MB
GROWTH_BAR = 300 * MB + 4 * SPLIT_BYTES
WORKERS = {
    "reader": "ray::MapBatches(_read)",
    "encoder": "ray::MapBatches(_encode)",
    "actor": "ray::MapWorker(MapBatches(_Model))",
    "writer": "ray::MapBatches(_write)",
}

Measure = Callable[[str, int], Mapping[str, Peak]]


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measure]:
    """(format, bytes) -> the largest peak of each role; the small runs are made once."""
    folder = tmp_path_factory.mktemp("memory")
    model = write_tiny_checkpoint(folder / "model", tokenizer_json=True)

    def run(kind: str, size: int) -> Mapping[str, Peak]:
        corpus = write_corpus(folder / f"corpus.{kind}", kind, size)
        output = folder / f"vectors-{kind}-{size}"
        try:
            return _peaks_of_job(model, corpus, output)
        finally:
            corpus.unlink()

    with short_folder() as ray_folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield cache(run)


def _peaks_of_job(model: Path, corpus: Path, output: Path) -> dict[str, Peak]:
    words = ["run", "embed", "--model", model, "--max-length", "64", "--input", corpus, "--output", output]
    command = [Path(sys.executable).with_name("raybert"), *words]
    process = subprocess.Popen([os.fspath(word) for word in command], text=True)
    with stopped(process):
        peaks = watch(process)
    assert process.returncode == 0
    report = verify(output)
    assert report.ok, report.problems
    assert report.ok_rows == report.rows_in > 0
    largest = {"driver": peaks[process.pid]}
    for role, title in WORKERS.items():
        found = [peak for peak in peaks.values() if any(seen.startswith(title) for seen in peak.titles)]
        assert found, f"no process was ever called {title}"
        largest[role] = max(found, key=lambda peak: peak.peak)
    return largest


def _sized(size: int, name: str, *marks: pytest.MarkDecorator, kinds: Iterable[str]) -> list[Any]:
    return [pytest.param(kind, size, id=f"{name}-{kind}", marks=marks) for kind in kinds]


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        # JSON lines are read as .gz of them are; the long runs have both.
        *_sized(100 * MB, "100MB", pytest.mark.slow, pytest.mark.timeout(900), kinds=("jsonl.gz", "parquet")),
        *_sized(2000 * MB, "2GB", pytest.mark.soak, pytest.mark.timeout(7200), kinds=FORMATS),
    ],
)
def test_memory_is_that_of_a_split(measure: Measure, kind: str, size: int) -> None:
    small, large = measure(kind, SMALL), measure(kind, size)
    sys.stdout.write(f"\n{_table(kind, size, small, large)}\n")
    assert large["driver"].peak <= DRIVER_BAR
    for role in WORKERS:
        growth = large[role].peak - small[role].peak
        assert growth <= GROWTH_BAR, f"{role}: {growth // MB} MB more than with {SMALL // MB} MB of input"


def _table(kind: str, size: int, small: Mapping[str, Peak], large: Mapping[str, Peak]) -> str:
    head = f"| {kind}, MB | {SMALL // MB} MB in | {size // MB} MB in | growth | bar | anon | file | shared |"
    lines = [head, "|" + "---|" * 8]
    for role, peak in large.items():
        growth = peak.peak - small[role].peak
        bar = f"{DRIVER_BAR // MB} in all" if role == "driver" else f"{GROWTH_BAR // MB} more"
        shares = " | ".join(f"{peak.shares[name] // MB}" for name in ("RssAnon", "RssFile", "RssShmem"))
        lines.append(f"| {role} | {small[role].peak // MB} | {peak.peak // MB} | {growth // MB} | {bar} | {shares} |")
    return "\n".join(lines)
