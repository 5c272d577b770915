"""A split in one row: what goes in comes out, through Arrow's own file formats and slices too."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raybert.data.cells import (
    arrays_from,
    arrays_table,
    from_row,
    places_table,
    sequences_from,
    sequences_table,
    to_row,
    windows_from,
)
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Windows

WORDS = pa.array(["red", "blue", None, "red"]).dictionary_encode()
TABLE = pa.table(
    {
        "_row": pa.array([3, 4, 5, 6], pa.int64()),
        "word": WORDS,
        "nested": [{"a": [1, 2], "b": "x"}, {"a": [], "b": None}, None, {"a": None, "b": "ü"}],
        "words": pa.array([["red"], None, [], ["red", "blue"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "vector": pa.array([[1.5, 2.5]] * 4, pa.list_(pa.float32(), 2)),
        "text": pa.array(["a", "", "東京", "d"], pa.large_string()),
    }
)


def windows(*lengths: int, types: bool = False, places: bool = False) -> Windows:
    count = sum(lengths)
    return Windows(
        ids=np.arange(count, dtype=np.int32),
        lengths=np.array(lengths, np.int32),
        row_of_window=np.arange(len(lengths), dtype=np.int32),
        tokens=np.array(lengths, np.int32) + 1,
        truncated=np.arange(len(lengths)) % 2 == 0,
        type_ids=(np.arange(count) % 2).astype(np.int8) if types else None,
        offsets=np.arange(2 * count, dtype=np.int32).reshape(-1, 2) if places else None,
        second=np.arange(2 * len(lengths), dtype=np.int32).reshape(-1, 2) if places else None,
    )


def stored(block: pa.Table) -> pa.Table:
    """A block as the object store hands it on."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def among_others(row: pa.Table) -> pa.Table:
    """A row that travelled in a block beside others, and was sliced out."""
    block = pa.concat_tables([to_row({"other": 1}, {}), row, to_row({}, {"t": TABLE})]).combine_chunks()
    return stored(block).slice(1, 1)


@pytest.mark.parametrize("carried", [lambda row: row, stored, among_others], ids=["as made", "stored", "sliced"])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"rows": TABLE},
        {"rows": TABLE.slice(1, 2), "bad": TABLE.slice(0, 0), "empty": pa.table({})},
        {"chunks": pa.concat_tables([TABLE, TABLE.slice(2)])},
    ],
    ids=["no table", "one", "slices", "chunks"],
)
def test_a_row_gives_back_what_it_was_made_of(tables, carried):
    note = {"file": {"number": 3, "path": "ü/ä.jsonl"}, "begin": 1 << 40, "last": True, "tokens": {"v": 7}}
    row = to_row(note, tables)
    assert row.num_rows == 1
    found, came = from_row(carried(row))
    assert found == note
    assert list(came) == list(tables)
    for name, table in tables.items():
        assert came[name].schema.equals(table.schema)
        assert came[name].to_pylist() == table.to_pylist()


def test_tables_lie_in_the_rows_own_memory():
    row = to_row({}, {"rows": TABLE})
    payload = row["payload"].chunk(0).buffers()[2]
    _, tables = from_row(row)
    text = tables["rows"]["text"].chunk(0).buffers()[2]
    assert payload.address <= text.address < payload.address + payload.size


def test_more_than_one_row_is_our_own_mistake():
    row = to_row({}, {})
    with pytest.raises(AssertionError, match="one row"):
        from_row(pa.concat_tables([row, row]))


@pytest.mark.parametrize(
    "given",
    [windows(), windows(1), windows(5, 1, 128), windows(3, 4, types=True), windows(3, 4, places=True)],
    ids=["none", "one", "three", "types", "places"],
)
def test_windows_travel_whole(given):
    row = to_row({}, {"trunk0": sequences_table(given), "encoding0": places_table(given)})
    _, tables = from_row(among_others(row))
    came = windows_from(tables["encoding0"], sequences_from(tables["trunk0"]))
    for name in Windows.__dataclass_fields__:
        array, expected = getattr(came, name), getattr(given, name)
        if expected is None:
            assert array is None, name
            continue
        assert array.dtype == expected.dtype, name
        np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 384)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("counted", [False, True])
def test_numbers_travel_bit_for_bit(shape, order, counted):
    values = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32, order=order)
    values[:1, :1] = np.nan
    counts = np.array([len(values), 0], np.int32) if counted else None
    _, tables = from_row(among_others(to_row({}, {"arrays.v": arrays_table(Arrays(values=values, counts=counts))})))
    came = arrays_from(tables["arrays.v"])
    assert came.values.dtype == np.float32
    assert came.values.shape == shape
    assert came.values.tobytes() == np.ascontiguousarray(values).tobytes()
    assert (came.counts is None) == (counts is None)
    assert counts is None or came.counts.tolist() == counts.tolist()
