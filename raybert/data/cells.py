"""How a split passes Ray Data whole: one row of two cells, a description and everything else as bytes.

Ray Data cuts blocks by size, joins small ones, and hands UDFs what it likes. A table of one row can't be cut, and one
binary cell passes through the object store without a look inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Sequences, Windows

NOTE, PAYLOAD = "note", "payload"
_SEQUENCES = ("ids", "lengths", "type_ids")
_PLACES = ("row_of_window", "tokens", "truncated", "offsets", "second")


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


def sequences_table(sequences: Sequences) -> pa.Table:
    """Windows to compute, as one row whose cells are the arrays."""
    return _arrays_row({name: getattr(sequences, name) for name in _SEQUENCES})


def sequences_from(table: pa.Table) -> Sequences:
    """The windows of `sequences_table`."""
    return Sequences(**_row_arrays(table, _SEQUENCES))


def places_table(windows: Windows) -> pa.Table:
    """What is known of windows beside their ids, likewise."""
    return _arrays_row({name: getattr(windows, name) for name in _PLACES})


def windows_from(table: pa.Table, sequences: Sequences) -> Windows:
    """The windows of `places_table` with these ids."""
    found = _row_arrays(table, _PLACES)
    for name in ("offsets", "second"):
        found[name] = None if found[name] is None else found[name].reshape(-1, 2)
    return Windows(ids=sequences.ids, lengths=sequences.lengths, type_ids=sequences.type_ids, **found)


def arrays_table(arrays: Arrays) -> pa.Table:
    """A head's numbers as one row, with how many stand side by side."""
    table = _arrays_row({"values": arrays.values, "counts": arrays.counts})
    return table.append_column("width", [[arrays.values.shape[1]]])


def arrays_from(table: pa.Table) -> Arrays:
    """The numbers of `arrays_table`."""
    found = _row_arrays(table, ("values", "counts"))
    values: np.ndarray = found["values"]
    return Arrays(values=values.reshape(-1, table["width"][0].as_py()), counts=found["counts"])


def numbers_table(numbers: np.ndarray) -> pa.Table:
    """One array as one row."""
    return _arrays_row({"numbers": numbers})


def numbers_from(table: pa.Table) -> np.ndarray:
    """The array of `numbers_table`."""
    found: np.ndarray = _row_arrays(table, ("numbers",))["numbers"]
    return found


def _arrays_row(arrays: Mapping[str, np.ndarray | None]) -> pa.Table:
    """One row, a cell an array, in C order; an array that is None has no column."""
    columns = {}
    for name, values in arrays.items():
        if values is not None:
            flat = np.ascontiguousarray(values).reshape(-1)
            columns[name] = pa.LargeListArray.from_arrays([0, len(flat)], pa.array(flat))
    return pa.table(columns)


def _row_arrays(table: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    """The flat arrays of `_arrays_row`; None for one without a column."""
    return {
        name: table[name].chunk(0).values.to_numpy(zero_copy_only=False) if name in table.column_names else None
        for name in names
    }


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
