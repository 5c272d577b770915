"""Read the header of a ``.safetensors`` file, as strictly as the format's own library.

The file is: the header's length (8 bytes, little-endian), the header (JSON: name -> dtype, shape,
data_offsets), the tensors' bytes, end to end without gap or overlap. Source: the format's description in the
safetensors repository (README, "Format").
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from raybert.checkpoint.entry import ITEM_BYTES, TensorEntry
from raybert.errors import CheckpointError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Index the tensors of one file, in the order of their bytes.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or holds a dtype that raybert doesn't know.
    """
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            header_bytes = _header_length(path, file.read(_LENGTH_BYTES), file_bytes)
            text = file.read(header_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}") from error
    header = _parse(path, text)
    data_begin = _LENGTH_BYTES + header_bytes
    entries = [_entry(path, name, spec, data_begin) for name, spec in header.items() if name != "__metadata__"]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_coverage(path, entries, data_begin, file_bytes)
    return {entry.name: entry for entry in entries}


def _header_length(path: Path, prefix: bytes, file_bytes: int) -> int:
    if len(prefix) < _LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: {file_bytes} bytes are too few for a safetensors file; download or copy it again"
        )
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: a header of {length} bytes exceeds the format's {_MAX_HEADER_BYTES}; not such a file"
        )
    if _LENGTH_BYTES + length > file_bytes:
        raise CheckpointError(
            f"{path}: truncated: the header ends at byte {_LENGTH_BYTES + length}, the file at {file_bytes}; "
            "download or copy it again"
        )
    return length


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: the header is no valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged: the header is a JSON {type(header).__name__}, not an object")
    return header


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(path: Path, name: str, spec: Any, data_begin: int) -> TensorEntry:
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: damaged: tensor {name!r} lacks dtype, shape or data_offsets")
    shape, offsets = spec["shape"], spec["data_offsets"]
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise CheckpointError(f"{path}: damaged: tensor {name!r} has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{path}: damaged: tensor {name!r} has the data_offsets {offsets!r}")
    dtype = _DTYPES.get(spec["dtype"]) if isinstance(spec["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} has the dtype {spec['dtype']!r}; known are {', '.join(_DTYPES)}"
        )
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    begin, end = offsets
    if end - begin != nbytes:
        raise CheckpointError(
            f"{path}: damaged: tensor {name!r} of shape {tuple(shape)} and {dtype} takes {nbytes} bytes, "
            f"its data_offsets say {end - begin}"
        )
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), file=path, offset=data_begin + begin, nbytes=nbytes)


def _check_coverage(path: Path, entries: list[TensorEntry], data_begin: int, file_bytes: int) -> None:
    """The tensors must fill the file from the header to its end, each beginning where the last one ended."""
    position = data_begin
    for entry in entries:
        if entry.offset != position:
            raise CheckpointError(
                f"{path}: damaged: tensor {entry.name!r} begins at byte {entry.offset}, "
                f"the one before it ends at {position}"
            )
        position += entry.nbytes
    if position > file_bytes:
        raise CheckpointError(
            f"{path}: truncated: the tensors end at byte {position}, the file at {file_bytes}; "
            "download or copy it again"
        )
    if position < file_bytes:
        raise CheckpointError(f"{path}: damaged: the tensors end at byte {position}, the file goes on to {file_bytes}")
