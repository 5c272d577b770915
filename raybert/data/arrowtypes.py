"""Arrow types of the input: what they are once decoded, which are texts, how many bytes a row takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries and views, at any depth: how values are coded is no part of a schema."""
    if types.is_dictionary(kind):
        kind = plain_type(kind.value_type)
    elif types.is_string_view(kind):
        kind = pa.string()
    elif types.is_binary_view(kind):
        kind = pa.binary()
    elif types.is_struct(kind):
        kind = pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    elif types.is_map(kind):
        kind = pa.map_(plain_type(kind.key_type), plain_type(kind.item_type), keys_sorted=kind.keys_sorted)
    elif types.is_fixed_size_list(kind):
        kind = pa.list_(_plain_items(kind), kind.list_size)
    elif types.is_large_list(kind):
        kind = pa.large_list(_plain_items(kind))
    elif types.is_list(kind):
        kind = pa.list_(_plain_items(kind))
    return kind


def _plain_items(kind: pa.DataType) -> pa.Field:
    return kind.value_field.with_type(plain_type(kind.value_type))


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this plain type are texts: strings, or bytes that are checked to be UTF-8."""
    return kind in _TEXTS


_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())

LISTS = pa.large_list(pa.large_string())
"""The run's type of a pair column that holds lists of texts."""


def pair_type(kind: pa.DataType) -> pa.DataType | None:
    """The run's type of a pair column of this plain type: a large string, ``LISTS``, or None where it is neither."""
    if is_text(kind):
        return pa.large_string()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return LISTS if is_text(kind.value_type) or types.is_null(kind.value_type) else None
    return None


def row_bytes(column: Any) -> npt.NDArray[np.int64]:
    """[R] bytes of each row's values: lengths of strings, widths of numbers, sums over what is nested."""
    kind, rows = column.type, len(column)
    if isinstance(kind, pa.BaseExtensionType):
        sizes = row_bytes(column.storage)
    elif types.is_dictionary(kind):
        lengths = np.append(row_bytes(column.dictionary), 0)  # one more: of nulls alone the dictionary is empty
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        sizes = np.where(valid, lengths[column.indices.fill_null(0).to_numpy()], 0)
    elif types.is_struct(kind):
        sizes = sum((row_bytes(child) for child in column.flatten()), np.zeros(rows, dtype=np.int64))
    elif types.is_fixed_size_list(kind):
        items = column.values.slice(column.offset * kind.list_size, rows * kind.list_size)
        sizes = row_bytes(items).reshape(rows, kind.list_size).sum(axis=1)
    elif types.is_nested(kind):
        upto = np.concatenate(([0], np.cumsum(row_bytes(column.values))))
        sizes = np.diff(upto[column.offsets.to_numpy()])
    elif types.is_string_view(kind) or types.is_binary_view(kind):
        sizes = row_bytes(column.cast(pa.large_binary()))
    elif is_text(kind):
        sizes = pc.binary_length(column).fill_null(0).to_numpy().astype(np.int64)
    else:
        width = 0 if types.is_null(kind) else (kind.bit_width + 7) // 8
        sizes = np.full(rows, width, dtype=np.int64)
    return np.asarray(sizes, dtype=np.int64)
