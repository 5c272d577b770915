"""What a job costs beside its model: millions of short rows, really tokenized, with a model of a stated time.

The stand-in (`standin/sitecustomize.py`) takes the place of the encoder and of the head's `reduce`, nothing else: rows
are read, packed, decoded, written, committed and verified as ever, vectors of 384 numbers each.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from raybert.data.history import load
from raybert.data.store import Store
from raybert.data.verify import verify
from raybert.predict import load as load_predictor
from tests.jobs import ROOT, environment
from tests.processes import short_folder, stopped, watch
from tests.tiny import stdlib_docstrings

STANDIN = Path(__file__).with_name("standin")
SIZES = (10_000, 100_000, 1_000_000)
ROWS_PER_SECOND = 20_000


def words() -> list[str]:
    return [word for text in stdlib_docstrings(2000) for word in text.split() if len(word) < 20]


def some_texts(rows: int, *, least: int, most: int) -> list[str]:
    """Texts of so many words."""
    rng, vocabulary = random.Random(0), words()
    return [" ".join(rng.choices(vocabulary, k=rng.randint(least, most))) for _ in range(rows)]


def start(folder: Path, input_path: Path, output: Path, *more: object, batch_s: float) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("raybert")
    command = [program, "run", "embed=demo", "--input", input_path, "--output", output]
    env = environment(folder, {"PYTHONPATH": f"{STANDIN}{os.pathsep}{ROOT}", "RAYBERT_STANDIN": str(batch_s)})
    return subprocess.Popen([str(word) for word in (*command, *more)], env=env, text=True)


def session(output: Path) -> dict[str, list[float]]:
    """When and how long: the one session's splits."""
    (only,) = load(Store(output))
    assert only["outcome"] == "complete"
    splits: dict[str, list[float]] = only["splits"]
    return splits


def say(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")


def check_vectors(output: Path, texts: Sequence[str]) -> None:
    """Every row has its own window's vector, in the input's order."""
    task = load_predictor("demo", "embed").task
    table = ds.dataset(output).to_table(columns=["_row", "embed"])
    assert table["_row"].to_pylist() == list(range(len(texts)))
    for begin in range(0, len(texts), 50_000):
        windows = task.encode(texts[begin : begin + 50_000])
        vectors = table["embed"].slice(begin, 50_000).combine_chunks().flatten().to_numpy().reshape(-1, 384)
        assert np.array_equal(vectors[:, 0], windows.lengths.astype(np.float32))
        sums = np.add.reduceat(windows.ids, np.cumsum(windows.lengths) - windows.lengths)
        assert np.array_equal(vectors[:, 1], sums.astype(np.float32))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_million_short_rows(tmp_path: Path) -> None:
    found = {}
    for rows in SIZES:
        corpus, output = tmp_path / f"{rows}.parquet", tmp_path / f"out-{rows}"
        texts = some_texts(rows, least=8, most=12)
        pq.write_table(pa.table({"text": texts}), corpus, row_group_size=100_000)
        begun = time.perf_counter()
        with short_folder() as folder, stopped(start(folder, corpus, output, batch_s=0.0)) as process:
            peaks = watch(process)
            whole_s = time.perf_counter() - begun
        assert process.returncode == 0
        splits = session(output)
        seconds = max(splits["committed"]) - min(splits["committed"])
        first = splits["rows"][int(np.argmin(splits["committed"]))]
        found[rows] = {
            "rows/s": (rows - first) / seconds if seconds else float("nan"),
            "seconds": seconds,
            "whole run s": whole_s,
            "MB": sum(path.stat().st_size for path in output.glob("part-*")) / 1e6,
            "driver MB": peaks[process.pid].peak / 1e6,
        }
        for name, full in (("verify s", False), ("verify --full s", True)):
            begun = time.perf_counter()
            report = verify(output, full=full)
            found[rows][name] = time.perf_counter() - begun
            assert report.ok
            assert report.ok_rows == rows
            assert all(report.tokens.values())
        if rows == 100_000:
            check_vectors(output, texts)
        committed = np.sort(splits["committed"])
        halves = np.diff(committed[[0, len(committed) // 2, -1]])
        say(f"{rows:,} rows: " + ", ".join(f"{name} {value:,.1f}" for name, value in found[rows].items()))
    say(f"the million's first and second half took {halves[0]:.1f} and {halves[1]:.1f} s")
    output, corpus = tmp_path / f"out-{SIZES[-1]}", tmp_path / f"{SIZES[-1]}.parquet"
    begun = time.perf_counter()
    with short_folder() as folder, stopped(start(folder, corpus, output, batch_s=0.0)) as process:
        assert process.wait(60) == 0
        again_s = time.perf_counter() - begun
        assert not [name for name in folder.iterdir() if name.name.startswith("session")]  # no Ray was started
    say(f"second start of the finished run: {again_s:.1f} s")
    assert again_s < 5
    assert found[SIZES[-1]]["rows/s"] >= ROWS_PER_SECOND
    assert halves[1] <= 1.3 * halves[0]  # a row costs the same however many came before it
    assert found[SIZES[-1]]["driver MB"] < found[SIZES[0]]["driver MB"] + 50


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_times_the_splits(tmp_path: Path) -> None:
    """A million rows have 62 splits, a billion 61,036: what the driver keeps of each decides what a billion takes."""
    corpus, peak = tmp_path / "in.parquet", {}
    pq.write_table(pa.table({"text": some_texts(100_000, least=8, most=12)}), corpus)
    for split_rows in (2000, 200, 50):
        output = tmp_path / f"out-{split_rows}"
        with (
            short_folder() as folder,
            stopped(start(folder, corpus, output, "--split-rows", split_rows, batch_s=0.0)) as process,
        ):
            peaks = watch(process)
        assert process.returncode == 0
        peak[split_rows] = peaks[process.pid].peak / 1e6
        say(f"{100_000 // split_rows:,} splits: driver {peak[split_rows]:.1f} MB")
    a_split_kb = 1000 * (peak[50] - peak[2000]) / (2000 - 50)
    say(f"a split keeps {a_split_kb:.1f} KB in the driver")
    assert a_split_kb < 25


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_one_large_row_group_keeps_two_actors_busy(tmp_path: Path) -> None:
    """1 GB in one row group is read once, as a stream, and handed on in splits; each token batch takes 10 ms."""
    corpus, output, batch_s = tmp_path / "large.parquet", tmp_path / "out", 0.01
    texts = some_texts(1_000_000, least=100, most=140)
    table = pa.table({"text": pa.array(texts, pa.large_string())})
    rows = len(texts) * 102 * 10**7 // table.nbytes  # Parquet needs four bytes less for a length
    table = pa.concat_tables([table, table.slice(0, rows - len(texts))]) if rows > len(texts) else table.slice(0, rows)
    pq.write_table(table, corpus, row_group_size=rows, compression="none", use_dictionary=False)
    assert pq.read_metadata(corpus).num_row_groups == 1
    assert corpus.stat().st_size >= 10**9
    words_more = ("--actors", 2, "--budget", 2048)
    with short_folder() as folder, stopped(start(folder, corpus, output, *words_more, batch_s=batch_s)) as process:
        assert process.wait(3000) == 0
    splits = session(output)
    committed = np.array(splits["committed"])
    warm = np.sort(committed)[3]  # both actors have handed on two
    after = committed > warm
    busy = float(np.array(splits["model_s"])[after].sum() / (2 * (committed.max() - warm)))
    say(f"{rows:,} rows of 1 GB in one row group, {batch_s * 1000:g} ms a token batch: two actors busy {busy:.1%}")
    assert busy >= 0.9
