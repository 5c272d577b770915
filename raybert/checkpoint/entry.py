"""One tensor of a weight file: what it is, where its bytes lie, how to read them without loading the file."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raybert.errors import CheckpointError

ITEM_BYTES: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""The dtypes that a weight file may hold, by torch's names -> bytes per number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: as the file spells it.
        dtype: by torch's name, a key of `ITEM_BYTES`.
        shape: rows first.
        file: the weight file.
        offset: of the first number, in bytes from the file's start.
        nbytes: of the tensor in C order.
        strides: numbers to skip per dimension when the file does not hold the tensor in C order; else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None


def read_bytes(entry: TensorEntry) -> memoryview:
    """The tensor's numbers in C order, little-endian, read-only.

    A tensor that lies in C order is mapped, not copied: its memory is the page cache's, and goes back when
    the view is dropped. Another one is copied into order.

    Raises:
        CheckpointError: the file has gone, can't be read, or has become shorter since it was indexed.
    """
    if entry.nbytes == 0:
        return memoryview(b"")
    item_bytes = ITEM_BYTES[entry.dtype]
    if entry.strides is None:
        return _map(entry, entry.nbytes)
    steps = [(size - 1) * stride for size, stride in zip(entry.shape, entry.strides, strict=True)]
    held = np.frombuffer(_map(entry, (sum(steps) + 1) * item_bytes), dtype=f"V{item_bytes}")
    strides = [stride * item_bytes for stride in entry.strides]
    ordered = np.lib.stride_tricks.as_strided(held, shape=entry.shape, strides=strides, writeable=False)
    return memoryview(ordered.tobytes())


def stream_bytes(entry: TensorEntry, chunk_bytes: int = 1 << 22) -> Iterator[memoryview]:
    """The same bytes as `read_bytes` in pieces, so that no more than one piece is in memory at a time.

    Raises:
        CheckpointError: as `read_bytes`.
    """
    if entry.strides is not None:
        yield read_bytes(entry)
        return
    for begin in range(0, entry.nbytes, chunk_bytes):
        yield _map(entry, min(chunk_bytes, entry.nbytes - begin), begin)


def _map(entry: TensorEntry, nbytes: int, first: int = 0) -> memoryview:
    """A read-only view of `nbytes` of the file, from byte `first` of the entry on."""
    # A mapping may begin only at multiples of the granularity.
    skipped = (entry.offset + first) % mmap.ALLOCATIONGRANULARITY
    begin = entry.offset + first - skipped
    try:
        with entry.file.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), skipped + nbytes, access=mmap.ACCESS_READ, offset=begin)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{entry.file}: tensor {entry.name!r} can't be read: {error}") from error
    return memoryview(mapped)[skipped:]


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in numbers, of a tensor of this shape in C order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
