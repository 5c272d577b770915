"""Other programs read a finished run's folder as it is: pyarrow, pandas, DuckDB, Ray Data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import raybert
from raybert.data.part import read_receipt
from raybert.data.store import Store
from raybert.data.verify import verify
from tests.jobs import assert_near, parts, shared_ray, some_texts, write_lines
from tests.tiny import write_tiny_checkpoint

TEXTS = [*some_texts(60), "a [MASK] in [MASK]"]
LABELS = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "num_labels": 3}
WIDTH = 32
ENTITY = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("text", pa.string()),
    ]
)
FILL = pa.struct([("token_id", pa.int32()), ("token", pa.string()), ("score", pa.float32()), ("text", pa.string())])


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    return str(write_tiny_checkpoint(folder, heads=("classifier", "masked-lm"), config=LABELS))


def finished(model: str, top: Path, vector_type: str) -> Path:
    """A run of every kind of column over two files, with a quarantine and everything that lies in ``_raybert``."""
    rows: list[Any] = [{"text": text, "id": at} for at, text in enumerate(TEXTS)]
    write_lines(top / "in" / "a.jsonl", [*rows[:25], b"{", *rows[25:40]])
    write_lines(top / "in" / "b.jsonl", [*rows[40:], {"text": None}])
    heads: dict[str, Any] = {
        "v": (model, "embed"),
        "states": (model, "embed", {"output": "tokens", "max_length": 16}),
        "sparse": (model, "embed", {"output": "sparse"}),
        "topic": (model, "classify"),
        "people": (model, "ner"),
        "fill": (model, "fill-mask", {"top_k": 2}),
    }
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "split_rows": 20, "keep": ["id"]}
    output = top / "out"
    raybert.data.run(heads, input=str(top / "in"), output=str(output), vector_type=vector_type, **options)
    for name in ("report.json", "report.html", "history.json", "driver.json"):
        (output / "_raybert" / name).touch()
    assert verify(output, full=True).ok
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"_quarantine", "_raybert"}
    return output


@pytest.fixture(name="output", scope="module", params=["float32", pytest.param("float16", marks=pytest.mark.slow)])
def output_fixture(request: pytest.FixtureRequest, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(model, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(name="expected", scope="module")
def expected_fixture(output: Path) -> pa.Table:
    """The parts one after the other in the order of their names, each read by itself."""
    return pa.concat_tables([pq.read_table(output / name) for name in parts(output)])


def numbers(output: Path) -> pa.DataType:
    return pa.float16() if output.parent.name.startswith("float16") else pa.float32()


def test_the_parts_in_the_order_of_their_names_are_the_input_in_its_order(output: Path, expected: pa.Table) -> None:
    places = list(zip(expected["_file"].to_pylist(), expected["_row"].to_pylist(), strict=True))
    assert places == sorted(places)
    assert expected["id"].to_pylist() == list(range(len(TEXTS)))
    assert sum(read_receipt(Store(output), name).ok for name in parts(output)) == len(expected)
    assert len(parts(output)) == 5


def test_pyarrow_gives_the_columns_their_types(output: Path, expected: pa.Table, model: str) -> None:
    dataset = ds.dataset(output)  # no option: names that begin with _ are passed by
    vector = pa.list_(numbers(output), WIDTH)
    kinds = {
        "_file": pa.int32(),
        "_row": pa.int64(),
        "id": pa.int64(),
        "v": vector,
        "states": pa.list_(vector),
        "sparse_ids": pa.list_(pa.int32()),
        "sparse_weights": pa.list_(pa.float32()),
        "topic_label": pa.string(),
        "topic_score": pa.float32(),
        "topic_scores": pa.list_(pa.float32()),
        "people": pa.list_(ENTITY),
        "fill": pa.list_(pa.list_(FILL)),
        **{f"{name}_tokens": pa.int32() for name in ("v", "states", "sparse", "topic", "people", "fill")},
        **{f"{name}_truncated": pa.bool_() for name in ("v", "states", "sparse", "topic", "people", "fill")},
    }
    found = dict(zip(dataset.schema.names, dataset.schema.types, strict=True))
    assert found.keys() == kinds.keys()
    for name, kind in kinds.items():
        assert str(found[name]).replace("element:", "item:") == str(kind), name
    assert dataset.schema.field("topic_scores").metadata[b"labels"] == b'["O", "B-X", "I-X"]'
    assert [Path(file).name for file in dataset.files] == parts(output)
    assert dataset.count_rows() == len(expected)
    assert dataset.to_table().equals(expected)
    assert pq.read_table(output).equals(expected)
    flat = expected["v"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    with raybert.load(model, "embed", dtype="float32", device="cpu") as embed:
        if numbers(output) == pa.float32():
            assert_near(flat, embed(TEXTS))
        else:
            np.testing.assert_allclose(flat, embed(TEXTS), rtol=1e-3, atol=1e-3)


def test_pandas_reads_the_folder(output: Path, expected: pa.Table) -> None:
    frame = pd.read_parquet(output)
    assert frame["id"].tolist() == list(range(len(TEXTS)))
    assert list(frame.columns) == expected.column_names
    vectors = np.stack(frame["v"].to_list())
    assert vectors.dtype == numbers(output).to_pandas_dtype()
    np.testing.assert_array_equal(vectors, np.array(expected["v"].to_pylist(), vectors.dtype))
    for found, states in zip(frame["states"], expected["states"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.stack(found), np.array(states, vectors.dtype))
    found = [[dict(entity) for entity in entities] for entities in frame["people"]]
    assert found == expected["people"].to_pylist()
    assert frame["topic_label"].tolist() == expected["topic_label"].to_pylist()


def test_duckdb_reads_the_parts(output: Path, expected: pa.Table) -> None:
    with duckdb.connect() as database:
        parquet = f"read_parquet('{output}/part-*.parquet')"
        kinds = {name: kind for name, kind, *_ in database.sql(f"DESCRIBE SELECT * FROM {parquet}").fetchall()}
        rows = database.sql(f"SELECT _file, _row, id, v, states, people, fill FROM {parquet}").fetchall()
        squares = f"SELECT list_sum(list_transform(v, lambda x: x * x)) FROM {parquet} LIMIT 1"
        ((square,),) = database.sql(squares).fetchall()
        ((entities,),) = database.sql(f"SELECT count(*) FROM (SELECT unnest(people) FROM {parquet})").fetchall()
    assert list(kinds) == expected.column_names
    # A list of a fixed length, and one of half floats, are no types of DuckDB's Parquet reader.
    assert (kinds["v"], kinds["states"], kinds["topic_scores"]) == ("FLOAT[]", "FLOAT[][]", "FLOAT[]")
    assert kinds["people"] == 'STRUCT("label" VARCHAR, score FLOAT, "start" INTEGER, "end" INTEGER, "text" VARCHAR)[]'
    names = ("_file", "_row", "id", "v", "states", "people", "fill")
    assert rows == list(zip(*(expected[name].to_pylist() for name in names), strict=True))  # in the input's order
    assert square == pytest.approx(float(np.square(expected["v"][0].as_py()).sum()), rel=1e-5)
    assert entities == sum(map(len, expected["people"].to_pylist())) > 0


def test_ray_data_reads_the_folder(output: Path, expected: pa.Table) -> None:
    import ray.data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's, about its own reader
        dataset = ray.data.read_parquet(str(output))
        found = sorted(dataset.take_all(), key=lambda row: (row["_file"], row["_row"]))
    assert [row["id"] for row in found] == list(range(len(TEXTS)))
    assert set(found[0]) == set(expected.column_names)
    np.testing.assert_array_equal([row["v"] for row in found], expected["v"].to_pylist())
    for row, states in zip(found, expected["states"].to_pylist(), strict=True):
        np.testing.assert_array_equal(np.array([list(vector) for vector in row["states"]]), states)
    assert [row["people"] for row in found] == expected["people"].to_pylist()


def test_the_quarantine_reads_by_its_own_name(output: Path) -> None:
    """Asked for itself, the folder gives its rows: pyarrow looks at names below the one that it was given."""
    for table in (ds.dataset(output / "_quarantine").to_table(), pq.read_table(output / "_quarantine")):
        assert table.select(["_file", "_row", "id", "reason"]).to_pylist() == [
            {"_file": 0, "_row": 25, "id": None, "reason": "invalid_json"},
            {"_file": 1, "_row": len(TEXTS) - 40, "id": None, "reason": "null"},
        ]
    assert len(pd.read_parquet(output / "_quarantine")) == 2
    with duckdb.connect() as database:
        assert database.sql(f"SELECT count(*) FROM '{output}/_quarantine/*.parquet'").fetchall() == [(2,)]
