"""How a split passes Ray Data whole: one row of two cells, a description and everything else as bytes.

Ray Data cuts blocks by size, joins small ones, and hands UDFs what it likes. A table of one row can't be cut, and one
binary cell passes through the object store without a look inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.text.encoding import Windows

NOTE, PAYLOAD = "note", "payload"
_WINDOWS = ("ids", "lengths", "row_of_window", "tokens", "truncated", "type_ids")


def to_row(note: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> pa.Table:
    """One row: ``note`` as JSON, ``tables`` as Arrow IPC streams one after the other in one cell."""
    begins, end = {}, 0
    for name, table in tables.items():
        begins[name] = end
        end += _stream_bytes(table)
    payload = pa.allocate_buffer(end)
    sink = pa.FixedSizeBufferWriter(payload)
    for table in tables.values():
        _write_stream(sink, table)
    return pa.table({NOTE: [json.dumps([note, begins])], PAYLOAD: _cell(payload)})


def from_row(row: pa.Table) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """What `to_row` was given; the tables lie in the row's own memory."""
    assert row.num_rows == 1, "a split travels as one row"
    note, begins = json.loads(row[NOTE][0].as_py())
    payload = _content(row[PAYLOAD].chunk(0))
    return note, {name: _table(payload.slice(begin)) for name, begin in begins.items()}


def windows_table(windows: Windows) -> pa.Table:
    """Windows as one row whose cells are the arrays."""
    columns = {}
    for name in _WINDOWS:
        values = getattr(windows, name)
        if values is not None:
            columns[name] = pa.LargeListArray.from_arrays([0, len(values)], pa.array(values))
    return pa.table(columns)


def windows_from(table: pa.Table) -> Windows:
    """The windows of `windows_table`."""
    arrays = {
        name: table[name].chunk(0).values.to_numpy(zero_copy_only=False)
        for name in _WINDOWS
        if name in table.column_names
    }
    return Windows(**{**dict.fromkeys(_WINDOWS), **arrays})


def vectors_table(vectors: np.ndarray) -> pa.Table:
    """Float32 [W, D] as one row: the numbers in one cell, D beside them."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.table({"numbers": pa.LargeListArray.from_arrays([0, len(flat)], flat), "width": [vectors.shape[1]]})


def vectors_from(table: pa.Table) -> np.ndarray:
    """The array of `vectors_table`."""
    numbers: np.ndarray = table["numbers"].chunk(0).values.to_numpy()
    return numbers.reshape(-1, table["width"][0].as_py())


def _cell(content: pa.Buffer) -> pa.Array:
    """A binary array of one value that lies in ``content`` itself: `pa.array` would copy it."""
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _content(cell: pa.Array) -> pa.Buffer:
    """The bytes of `_cell`'s one value where they lie: a scalar's would be a copy."""
    _, offsets, content = cell.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[cell.offset : cell.offset + 2].tolist()
    return content.slice(begin, end - begin)


def _write_stream(sink: Any, table: pa.Table) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _stream_bytes(table: pa.Table) -> int:
    sink = pa.MockOutputStream()
    _write_stream(sink, table)
    return int(sink.size())


def _table(buffer: pa.Buffer) -> pa.Table:
    with pa.ipc.open_stream(buffer) as reader:
        return reader.read_all()
