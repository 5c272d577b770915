"""What a job writes: every row of the input once and in order, with the vectors that `raybert.load` gives."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raybert
import raybert.data
from raybert.data.manifest import load as load_manifest
from raybert.data.part import read_receipt
from raybert.data.splits import Split, part_name
from raybert.data.store import Store
from raybert.data.verify import verify
from tests.jobs import (
    assert_near,
    assert_same_tree,
    begin_as,
    parts,
    run_cli,
    shared_ray,
    some_texts,
    vectors,
    write_lines,
)
from tests.tiny import write_tiny_checkpoint

BAD: list[tuple[Any, str]] = [
    ({"id": 100, "text": None}, "null"),
    ({"id": 101}, "null"),
    ({"id": 102, "text": 7}, "wrong_type"),
    ({"id": 103, "text": ["a"]}, "wrong_type"),
    (b'{"id": 104, "text": "cut', "invalid_json"),
    (b"", None),  # a blank line is no row
    (b"[1]", "not_an_object"),
    (b'{"id": 105, "text": "\xff"}', "invalid_utf8"),
    (b'{"id": 106, "text": "\\ud800"}', "lone_surrogate"),
    ({"id": "107", "text": "a fine text"}, "kept_column"),
]


@dataclass
class Row:
    """What is expected of one row of the input."""

    file: int
    row: int
    id: int | None
    text: str | None
    reason: str | None


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """JSON lines in four files: plain, gz, empty, and one in a folder; bad rows of every kind among the good ones."""
    folder = tmp_path_factory.mktemp("rows") / "in"
    texts = some_texts(70)
    good = [({"id": at, "text": text, "tags": {"n": [at]}}, None) for at, text in enumerate(texts)]
    files = {
        "a.jsonl": [*good[:15], *BAD, *good[15:20]],
        "b.jsonl.gz": [*BAD[:3], *good[20:60]],
        "c.jsonl": [],
        "d/e.jsonl": [*good[60:], *BAD[-1:]],
    }
    expected = []
    for number, (name, rows) in enumerate(files.items()):
        write_lines(folder / name, [row for row, _ in rows])
        for at, (row, reason) in enumerate([row for row in rows if row[0] != b""]):
            known = row if isinstance(row, dict) else {}
            expected.append(Row(number, at, known.get("id"), known.get("text"), reason))
    return folder, expected


@pytest.fixture(scope="module")
def done(corpus: tuple[Path, list[Row]], tiny: Path) -> tuple[raybert.data.RunReport, Path]:
    """One run over the corpus, by the Python call."""
    output = corpus[0].parent / "out"
    report = raybert.data.run(
        {"embed": (str(tiny), "embed")},
        input=str(corpus[0]),
        output=str(output),
        keep=["id", "tags"],
        split_rows=7,
        dtype="float32",
    )
    return report, output


def test_a_folder_reads_as_one_dataset_in_the_inputs_order(corpus, done, tiny):
    good = [row for row in corpus[1] if row.reason is None]
    table = pq.read_table(done[1])
    assert table.column_names == ["_file", "_row", "id", "tags", "embed", "embed_tokens", "embed_truncated"]
    assert table["_file"].to_pylist() == [row.file for row in good]
    assert table["_row"].to_pylist() == [row.row for row in good]
    assert table["id"].to_pylist() == [row.id for row in good]
    assert table["tags"].to_pylist() == [{"n": [row.id]} for row in good]
    predictor = raybert.load(str(tiny), "embed", dtype="float32")
    assert_near(vectors(table), predictor([row.text for row in good]))
    manifest = load_manifest(Store(done[1]))
    assert manifest.fingerprints == {"embed": predictor.fingerprint}
    assert table["embed_truncated"].to_pylist() == [row.text.startswith("word word") for row in good]
    assert table["embed_tokens"].to_pylist()[:3] == [2, 2, 1202]


def test_bad_rows_are_in_the_quarantine_with_their_reasons(corpus, done):
    bad = [row for row in corpus[1] if row.reason]
    table = pq.read_table(done[1] / "_quarantine")
    assert table.schema.names == ["_file", "_row", "id", "tags", "text", "reason", "detail"]
    assert table["_file"].to_pylist() == [row.file for row in bad]
    assert table["_row"].to_pylist() == [row.row for row in bad]
    assert table["reason"].to_pylist() == [row.reason for row in bad]
    assert set(table["reason"].to_pylist()) == {reason for _, reason in BAD} - {None}
    assert all(table["detail"].to_pylist())
    assert table["id"].to_pylist()[:4] == [100, 101, 102, 103]
    by_row = dict(zip(table["_row"].to_pylist()[:9], table["text"].to_pylist(), strict=False))
    assert by_row[15] is None
    assert by_row[19] == '{"id": 104, "text": "cut'
    assert by_row[23] == "a fine text"


def test_rows_in_are_rows_out_and_quarantined(corpus, done):
    report, output = done
    store = Store(output)
    manifest = load_manifest(store)
    files = {file.number: file for file in manifest.files}
    assert [file.path for file in manifest.files] == ["a.jsonl", "b.jsonl.gz", "c.jsonl", "d/e.jsonl"]
    wanted = Counter((row.file, row.reason is None) for row in corpus[1])
    found: Counter[tuple[int, bool]] = Counter()
    reached = dict.fromkeys(files, 0)
    lasts = []
    for name in parts(output):
        receipt = read_receipt(store, name)
        assert receipt.first_row == reached[receipt.file]
        assert receipt.rows_in == receipt.ok + receipt.quarantined <= 7
        reached[receipt.file] += receipt.rows_in
        found[receipt.file, True] += receipt.ok
        found[receipt.file, False] += receipt.quarantined
        lasts += [receipt.file] if receipt.last else []
        split = Split(file=receipt.file, begin=receipt.first_row, end=reached[receipt.file], last=receipt.last)
        assert name == part_name(files[receipt.file], split, manifest.shaping)
        assert (output / "_quarantine" / name).exists() == (receipt.quarantined > 0)
    assert lasts == [0, 1, 2, 3]
    assert +found == wanted
    assert (report.rows, report.quarantined) == (len(corpus[1]), sum(row.reason is not None for row in corpus[1]))
    assert report.parts == len(parts(output))
    assert report.tokens == {"embed": sum(pq.read_table(output)["embed_tokens"].to_pylist())}
    checked = verify(store, full=True)
    assert checked.problems == ()
    assert checked.rows_in == len(corpus[1])


def test_nothing_else_lies_in_the_folder(done):
    assert sorted(path.name for path in done[1].iterdir() if not path.name.startswith("part-")) == [
        "_quarantine",
        "_raybert",
    ]
    assert sorted(path.name for path in (done[1] / "_raybert").iterdir()) == ["history.json", "manifest.json"]


@pytest.mark.parametrize(
    "resources", [{"actors": 2}, {"actors": 1, "cpus_per_actor": 0.3}], ids=["two actors", "one stream"]
)
def test_no_byte_depends_on_the_actors(corpus, done, tiny, tmp_path, resources):
    output = begin_as(done[1], tmp_path / "elsewhere")
    raybert.data.run({"embed": (str(tiny), "embed")}, input=str(corpus[0]), output=str(output), **resources)
    assert_same_tree(output, done[1])


def test_parquet_of_many_row_groups_keeps_nested_and_dictionary_columns(tiny, tmp_path):
    texts = some_texts(60)
    texts[3] = texts[41] = None
    table = pa.table(
        {
            "key": pa.array([f"k{at % 3}" for at in range(60)]).dictionary_encode(),
            "nested": [{"a": [at, None], "b": {"c": f"é{at}"}} if at % 5 else None for at in range(60)],
            "tags": pa.array([["x", "y"][: at % 3] for at in range(60)], pa.list_(pa.string())),
            "body": pa.array(texts).dictionary_encode(),
            "vec": pa.array([[at, at / 2] for at in range(60)], pa.list_(pa.float32(), 2)),
        }
    )
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(table.slice(0, 45), folder / "a.parquet", row_group_size=8)
    pq.write_table(table.slice(0, 0), folder / "b.parquet")
    pq.write_table(table.slice(45), folder / "c.pq", row_group_size=100)
    output = tmp_path / "out"
    report = raybert.data.run(
        {"v": (str(tiny), "embed"), "w": (str(tiny), "embed", {"normalize": True, "dimensions": 8})},
        input=str(folder),
        output=str(output),
        text_column="body",
        keep="all",
        split_rows=10,
        dtype="float32",
    )
    found = pq.read_table(output)
    good = table.filter(pa.array([text is not None for text in texts]))
    assert (report.rows_total, report.rows, report.quarantined) == (60, 60, 2)
    assert found["_row"].to_pylist() == [at for at in range(45) if at not in (3, 41)] + list(range(15))
    for name in table.column_names:
        assert found[name].to_pylist() == good[name].to_pylist(), name
    assert found.schema.field("nested").type == table.schema.field("nested").type
    assert found.schema.field("vec").type == table.schema.field("vec").type
    expected = raybert.load(str(tiny), "embed", dtype="float32")(good["body"].to_pylist())
    assert_near(vectors(found, "v"), expected)
    short = expected[:, :8]
    assert_near(vectors(found, "w"), short / np.linalg.norm(short, axis=1, keepdims=True))
    assert found["v_tokens"].equals(found["w_tokens"])
    quarantined = pq.read_table(output / "_quarantine")
    assert quarantined["key"].to_pylist() == ["k0", "k2"]
    assert verify(str(output), full=True).problems == ()


def test_lines_of_text(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes("one\n\nthree, é\r\n".encode())
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"four\nf\xffve\nsix", mtime=0))
    output = tmp_path / "out"
    raybert.data.run(
        {"embed": (str(tiny), "embed")},
        input=str(folder),
        output=str(output),
        keep="all",
        vector_type="float16",
        dtype="float32",
    )
    found = pq.read_table(output)
    assert found["text"].to_pylist() == ["one", "", "three, é", "four", "six"]
    assert found["_row"].to_pylist() == [0, 1, 2, 0, 2]
    assert found.schema.field("embed").type == pa.list_(pa.float16(), 32)
    expected = raybert.load(str(tiny), "embed", dtype="float32")(found["text"].to_pylist())
    np.testing.assert_allclose(vectors(found).astype(np.float32), expected, rtol=1e-3, atol=1e-3)
    assert pq.read_table(output / "_quarantine")["reason"].to_pylist() == ["invalid_utf8"]


def test_heads_of_two_models_in_one_job(tiny, tmp_path):
    other = write_tiny_checkpoint(
        tmp_path / "other",
        seed=5,
        sentence={"pooling": ["cls", "max"], "normalize": True, "max_seq_length": 16, "dense": [{"out_features": 12}]},
    )
    texts = some_texts(20)
    write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    heads = {"a": (str(tiny), "embed"), "b": (str(other), "embed")}
    report = raybert.data.run(
        heads, input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), dtype="float32", split_bytes=2000
    )
    found = pq.read_table(tmp_path / "out")
    assert len(parts(tmp_path / "out")) > 1
    assert found.column_names[2:] == ["a", "a_tokens", "a_truncated", "b", "b_tokens", "b_truncated"]
    assert set(report.tokens) == {"a", "b"}
    for name, (model, task) in heads.items():
        assert_near(vectors(found, name), raybert.load(model, task, dtype="float32")(texts))
    assert sum(found["b_truncated"].to_pylist()) > sum(found["a_truncated"].to_pylist())


def test_more_actors_than_splits_is_nothing_to_hear_of(tiny: Path, tmp_path: Path) -> None:
    """Ray Data warns of it, and advises an option that no user of a job has."""
    write_lines(tmp_path / "in.jsonl", [{"text": "a text"}])
    words = ("run", "embed", "--model", tiny, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out")
    done = run_cli(*words, "--actors", 2)
    assert (done.code, done.errors) == (0, [])
