"""A corpus with one percent of every kind of bad row: it finishes, every count is exact, and what can heal heals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raybert.data.rows import REASONS
from raybert.data.verify import verify
from tests.jobs import armed, assert_same_tree, begin_as, run_cli

ROWS, EACH = 1000, 10
SPLIT_ROWS = 10  # one bad row a split: a retry computes whole splits, and would heal its neighbours too

JSON_LINES = {
    "null": b'{"id": 1, "score": 1.5, "text": null}',
    "wrong_type": b'{"id": 1, "score": 1.5, "text": 7}',
    "invalid_json": b'{"id": 1, "score": 1.5, "text": "cut of',
    "not_an_object": b'["a", "list"]',
    "invalid_utf8": b'{"id": 1, "score": 1.5, "text": "caf\xe9"}',
    "lone_surrogate": b'{"id": 1, "score": 1.5, "text": "half \\ud83d"}',
    "kept_column": b'{"id": "one", "score": 1.5, "text": "good"}',
    "where_column": b'{"id": 1, "score": "high", "text": "good"}',
    "too_long": json.dumps({"id": 1, "score": 1.5, "text": "long " * 500}).encode(),
}
# A column of which one record of the sample is no number holds texts: where and kept columns have no bad values then.
RECORDS = {
    "wrong_fields": b"1,1.5,good,too many",
    "invalid_csv": b'1,1.5,"good" or not',
    "invalid_utf8": b"1,1.5,caf\xe9",
    "too_long": b"1,1.5," + b"long " * 500,
}


def places(reason: int) -> list[int]:
    """Ten rows of one reason, spread over the file; different reasons have different rows."""
    return [at * (ROWS // EACH) + 7 * reason + 3 for at in range(EACH)]


def filtered() -> list[int]:
    return [at * (ROWS // EACH) for at in range(EACH)]


def write_jsonl(folder: Path) -> tuple[Path, dict[str, bytes]]:
    lines = [json.dumps({"id": at, "score": at % 100 / 50, "text": f"good text {at}"}).encode() for at in range(ROWS)]
    path = folder / "in" / "a.jsonl"
    path.parent.mkdir(parents=True)
    for number, line in enumerate(JSON_LINES.values()):
        for at in places(number):
            lines[at] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path, JSON_LINES


def write_csv(folder: Path) -> tuple[Path, dict[str, bytes]]:
    lines = [f"{at},{at % 100 / 50},good text {at}".encode() for at in range(ROWS)]
    path = folder / "in" / "a.csv"
    path.parent.mkdir(parents=True)
    for number, line in enumerate(RECORDS.values()):
        for at in places(number):
            lines[at] = line
    path.write_bytes(b"id,score,text\n" + b"\n".join(lines) + b"\n")
    return path, RECORDS


def reasons(output: Path) -> Counter[str]:
    return Counter(
        reason
        for file in (output / "_quarantine").iterdir()
        for reason in pq.read_table(file, columns=["reason"])["reason"].to_pylist()
    )


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_one_percent_of_every_bad_row(
    tiny: Path, tmp_path: Path, write: Callable[[Path], tuple[Path, dict[str, bytes]]]
) -> None:
    path, bad = write(tmp_path)
    words = ["run", "embed", "--model", tiny, "--input", path.parent, "--output"]
    shaping = ["--split-rows", SPLIT_ROWS, "--keep", "id", "--where", "score != 0", "--max-row-bytes", "1KiB"]
    clean, output = tmp_path / "clean", tmp_path / "out"
    done = run_cli(*words, clean, *shaping, "--dtype", "float32")
    assert (done.code, done.errors) == (0, []), done
    expected = dict.fromkeys(bad, EACH)
    assert reasons(clean) == expected
    begin_as(clean, output)
    traps = {"kill": "compute", "fail": "write", "starve": "encode"}
    trap = {kind: [stage, path.name, places(len(JSON_LINES) + at)] for at, (kind, stage) in enumerate(traps.items())}
    done = run_cli(*words, output, env=armed(**trap), patience_s=1500)
    assert (done.code, done.errors) == (0, []), done
    report = verify(output, full=True)
    assert report.ok, report.problems
    computed = {"killed_worker": EACH, "failed": EACH, "out_of_memory": EACH}
    assert reasons(output) == expected | computed
    assert set(JSON_LINES) | set(RECORDS) | set(computed) == set(REASONS)
    assert report.filtered == len(set(filtered()))
    assert report.rows_in == ROWS == report.ok_rows + report.quarantined + report.filtered
    done = run_cli(*words, output, "--retry-quarantine")
    assert (done.code, done.errors) == (0, []), done
    assert reasons(output) == expected | {"killed_worker": EACH}
    done = run_cli(*words, output, "--max-quarantine", "2%")
    assert done.code == 1
    assert "exceed --max-quarantine 2%" in done.errors[0]
    done = run_cli(*words, output, "--retry-reason", "killed_worker")
    assert (done.code, done.errors) == (0, []), done
    assert_same_tree(output, clean)
