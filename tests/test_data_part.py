"""Parts: the same rows give the same bytes, and a receipt covers every byte."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from raybert.data.part import (
    ROW_GROUP_ROWS,
    Receipt,
    content_digest,
    encode_part,
    encode_quarantine,
    quarantine_name,
    read_footer,
    read_receipt,
    stored_schema,
)
from raybert.data.store import Store
from raybert.errors import OutputError

NAME = "part-000003-000000000100-0123456789abcdef.parquet"
VECTOR = pa.list_(pa.field("item", pa.float32(), nullable=False), 8)
SCHEMA = pa.schema(
    [
        pa.field("_file", pa.int32()),
        pa.field("_row", pa.int64()),
        pa.field("title", pa.string()),
        pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
        pa.field("kinds", pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.field("grade", pa.dictionary(pa.int8(), pa.string(), ordered=True)),
        pa.field("raw", pa.large_binary()),
        pa.field("vector", VECTOR),
        pa.field("half", pa.list_(pa.float16(), 4)),
        pa.field("topic_scores", pa.list_(pa.float32()), metadata={"labels": '["a", "b"]'}),
        pa.field("topic_score", pa.float32()),
        pa.field("names", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))),
        pa.field("cut", pa.bool_()),
        pa.field("extra", pa.map_(pa.string(), pa.int64())),
    ],
    metadata={"pandas": "{}"},
)


def rows(count: int, seed: int = 0) -> pa.Table:
    """Rows of every type that a part may hold, nulls included."""
    draw, numbers = random.Random(seed), np.random.default_rng(seed)

    def some(value):
        return None if draw.random() < 0.2 else value

    words = ["", "alpha", "日本語", "𝄞", "beta gamma"]
    grades = pa.DictionaryArray.from_arrays(
        pa.array([draw.randrange(3) for _ in range(count)], pa.int8()),
        pa.array(["low", "middle", "high"]),
        ordered=True,
    )
    columns = {
        "_file": [3] * count,
        "_row": list(range(100, 100 + count)),
        "title": [some(" ".join(draw.choices(words, k=5))) for _ in range(count)],
        "kind": pa.array([some(draw.choice(words)) for _ in range(count)]).cast(SCHEMA.field("kind").type),
        "kinds": [some(draw.choices(words, k=draw.randrange(4))) for _ in range(count)],
        "grade": grades,
        "raw": [some(draw.randbytes(draw.randrange(9))) for _ in range(count)],
        "vector": pa.FixedSizeListArray.from_arrays(numbers.random(count * 8, dtype=np.float32), type=VECTOR),
        "half": [some(numbers.random(4).astype(np.float16)) for _ in range(count)],
        "topic_scores": [some(numbers.random(draw.randrange(4))) for _ in range(count)],
        "topic_score": [some(draw.random()) for _ in range(count)],
        "names": [some([{"label": "PER", "score": draw.random()}] * draw.randrange(3)) for _ in range(count)],
        "cut": [some(draw.random() < 0.1) for _ in range(count)],
        "extra": [some([("k", draw.randrange(9))]) for _ in range(count)],
    }
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, SCHEMA.field(name).type)
        for name, column in columns.items()
    ]
    return pa.table(arrays, schema=SCHEMA)


def receipt_of(table: pa.Table) -> Receipt:
    return Receipt(
        file=3,
        first_row=100,
        rows_in=table.num_rows + 3,
        ok=table.num_rows,
        quarantined=2,
        filtered=1,
        tokens={"v": 1234, "topic": 99},
        fingerprints={"v": "f" * 64, "topic": "e" * 64},
        version="0.1.0",
        last=True,
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def part(store):
    """A part of 200 rows in the store."""
    table = rows(200)
    store.write(NAME, encode_part(table, receipt_of(table)))
    return table


def test_rows_and_receipt_come_back(store, part):
    receipt = read_receipt(store, NAME)
    assert receipt == replace(receipt_of(part), content_sha256=content_digest(store, NAME))
    footer = read_footer(store, NAME)
    raw = store.read(NAME)
    assert footer.content_sha256 == hashlib.sha256(raw[: footer.content_bytes]).hexdigest()
    assert int.from_bytes(raw[-8:-4], "little") == len(raw) - 8 - footer.content_bytes
    assert footer.rows == 200
    with store.open(NAME) as file:
        found = pq.read_table(file)
    assert found.num_rows == 200
    for name in set(SCHEMA.names) - {"extra"}:
        assert found[name].to_pylist() == part[name].to_pylist(), name
    assert footer.schema.equals(found.schema.remove_metadata(), check_metadata=True)
    assert footer.schema.equals(stored_schema(SCHEMA), check_metadata=True)
    assert footer.schema.field("topic_scores").metadata == {b"labels": b'["a", "b"]'}
    assert footer.schema.field("grade").type.ordered


def layouts(table: pa.Table):
    """The same rows, chunked and sliced in many ways."""
    padded = pa.concat_tables([table.slice(3, 11), table, table.slice(0, 5)])
    yield "sliced", padded.combine_chunks().slice(11, table.num_rows)
    yield "through IPC", pa.ipc.open_stream(_stream(padded.slice(11, table.num_rows))).read_all()
    for seed in range(6):
        draw = random.Random(seed)
        cuts = sorted({0, table.num_rows, *draw.choices(range(table.num_rows), k=seed * 5)})
        pieces = [table.slice(a, b - a) for a, b in pairwise(cuts)]
        yield f"{len(pieces)} chunks", pa.concat_tables(pieces)
    yield "taken", table.take(pa.array(np.arange(table.num_rows)))


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=333)
    return sink.getvalue()


def test_the_same_rows_give_the_same_bytes_however_they_lie():
    table = rows(6000)
    expected = encode_part(table, receipt_of(table))
    for layout, same in layouts(table):
        assert encode_part(same, receipt_of(same)).equals(expected), layout


def test_the_order_and_rest_of_a_dictionary_leave_no_trace():
    table = rows(500)
    kinds = pa.chunked_array([table["kind"].combine_chunks()])
    values = pa.array(["never used", "beta gamma", "𝄞", "日本語", "alpha", ""])
    place = {value: index for index, value in enumerate(values.to_pylist())}
    indices = pa.array([place.get(kind) for kind in kinds.to_pylist()], pa.int8())
    other = table.set_column(3, SCHEMA.field("kind"), pa.DictionaryArray.from_arrays(indices, values))
    assert encode_part(other, receipt_of(other)).equals(encode_part(table, receipt_of(table)))


def test_garbage_under_nulls_leaves_no_trace():
    valid = pa.py_buffer(np.packbits([1, 0, 1, 0, 1, 1, 1, 1], bitorder="little").tobytes())
    clean, dirty = (
        pa.Array.from_buffers(pa.int64(), 8, [valid, pa.py_buffer(np.array(values).tobytes())])
        for values in ([1, 0, 3, 0, 5, 6, 7, 8], [1, 99, 3, -7, 5, 6, 7, 8])
    )
    assert encode_quarantine(pa.table({"a": clean})).equals(encode_quarantine(pa.table({"a": dirty})))


def test_another_process_writes_the_same_bytes(tmp_path):
    table = rows(300)
    code = (
        "import hashlib, sys; sys.path.insert(0, sys.argv[1]); import test_data_part as t\n"
        "table = t.rows(300); print(hashlib.sha256(t.encode_part(table, t.receipt_of(table))).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == hashlib.sha256(encode_part(table, receipt_of(table))).hexdigest()


def test_row_groups_and_encodings(store):
    count = 2 * ROW_GROUP_ROWS + 1
    vectors = pa.FixedSizeListArray.from_arrays(np.zeros(count * 2, np.float32), 2)
    table = pa.table(
        {"_row": np.arange(count), "text": ["some words"] * count, "v": vectors, "score": np.zeros(count, np.float32)}
    )
    store.write(NAME, encode_part(table, receipt_of(table)))
    with store.open(NAME) as file:
        metadata = pq.read_metadata(file)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 1]
    row, text, vector, score = (groups[0].column(index) for index in range(4))
    assert (vector.compression, vector.has_dictionary_page, vector.is_stats_set) == ("UNCOMPRESSED", False, False)
    assert (text.compression, text.has_dictionary_page) == ("ZSTD", True)
    assert (row.compression, row.has_dictionary_page, row.is_stats_set) == ("ZSTD", False, True)
    assert (score.compression, score.has_dictionary_page) == ("ZSTD", False)


def test_a_split_without_ok_rows_has_a_part(store):
    table = rows(0)
    store.write(NAME, encode_part(table, receipt_of(table)))
    assert read_footer(store, NAME).rows == 0
    assert read_receipt(store, NAME).last
    assert read_footer(store, NAME).schema.equals(stored_schema(SCHEMA), check_metadata=True)


def test_a_wide_schema_takes_a_second_read(store):
    table = pa.table({f"column {index}": pa.array([1.0, 2.0]) for index in range(800)})
    store.write(NAME, encode_part(table, receipt_of(table)))
    footer = read_footer(store, NAME)
    assert len(store.read(NAME)) - footer.content_bytes > 1 << 16
    assert len(footer.schema) == 800


def test_a_receipt_needs_the_end_of_the_file_only(store, tmp_path):
    table = rows(20_000)
    store.write(NAME, encode_part(table, receipt_of(table)))
    raw = store.read(NAME)
    assert len(raw) > 1 << 20
    (tmp_path / NAME).write_bytes(bytes(len(raw) - (64 << 10)) + raw[-(64 << 10) :])
    assert read_receipt(store, NAME).ok == 20_000


def test_every_byte_of_the_footer_counts(store, part, tmp_path):
    raw = store.read(NAME)
    draw = random.Random(5)
    for position in range(read_footer(store, NAME).content_bytes, len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= draw.randrange(1, 256)
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(OutputError, match=f"{NAME}: damaged footer") as caught:
            read_receipt(store, NAME)
        assert "\n" not in str(caught.value)


def test_every_byte_before_the_footer_counts(store, part, tmp_path):
    raw = store.read(NAME)
    footer = read_footer(store, NAME)
    draw = random.Random(6)
    for position in [0, 3, footer.content_bytes - 1, *draw.sample(range(footer.content_bytes), 300)]:
        damaged = bytearray(raw)
        damaged[position] ^= 1 << draw.randrange(8)
        (tmp_path / NAME).write_bytes(damaged)
        assert content_digest(store, NAME) != read_footer(store, NAME).content_sha256


def test_a_file_cut_short_is_told(store, part, tmp_path):
    raw = store.read(NAME)
    for length in [0, 1, 7, 8, 11, 12, *random.Random(8).sample(range(len(raw)), 200), len(raw) - 1]:
        (tmp_path / NAME).write_bytes(raw[:length])
        with pytest.raises(OutputError, match="delete the file and run again"):
            read_receipt(store, NAME)


def test_a_foreign_file_is_told(store, tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / NAME)
    with pytest.raises(OutputError, match="damaged footer"):
        read_receipt(store, NAME)
    (tmp_path / NAME).write_bytes(b"not Parquet at all")
    with pytest.raises(OutputError, match="not a Parquet file"):
        content_digest(store, NAME)
    with pytest.raises(FileNotFoundError):
        read_receipt(store, "part-none")


def test_the_quarantine_has_digests_and_no_receipt(store):
    table = pa.table({"_row": [1, 2], "reason": ["null", "invalid_utf8"], "text": pa.array([None, b"\xff"])})
    name = quarantine_name(NAME)
    store.write(name, encode_quarantine(table))
    footer = read_footer(store, name)
    assert (footer.receipt, footer.rows) == (None, 2)
    assert content_digest(store, name) == footer.content_sha256
    with pytest.raises(OutputError, match="no receipt"):
        read_receipt(store, name)


def test_others_read_a_folder_of_parts(store, part, tmp_path):
    second = rows(50, seed=1)
    store.write(NAME.replace("000100", "000300"), encode_part(second, receipt_of(second)))
    store.write(quarantine_name(NAME), encode_quarantine(pa.table({"reason": ["null"]})))
    store.write("_raybert/manifest.json", b"{}")
    assert pads.dataset(tmp_path, format="parquet").to_table(columns=["_row", "vector"]).num_rows == 250
    frame = pd.read_parquet(tmp_path, columns=["_row", "vector"])
    assert frame["_row"].tolist() == [*range(100, 300), *range(100, 150)]
    assert np.stack(frame["vector"]).shape == (250, 8)
