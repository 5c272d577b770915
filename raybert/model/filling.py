"""Put a checkpoint's tensors into a module, accounting for every name (law 8 of DESIGN)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from raybert.checkpoint.names import canonical, canonical_names, head_of, is_buffer, is_pooler
from raybert.checkpoint.weights import TensorEntry
from raybert.errors import CheckpointError, UsageError
from raybert.model.readers import WeightReader

Module = TypeVar("Module", bound=nn.Module)

POOLER_FAMILY = "pooler"
_FLOATING = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Where each name of a checkpoint went; names are canonical (``bert.…``), in the files' order.

    Attributes:
        loaded: parameters of the module.
        unused_heads: family ("masked-lm", "classifier", … or "pooler") -> its names; in the checkpoint, not
            part of the module that was asked for.
        buffers: known tensors without learned numbers.
    """

    loaded: tuple[str, ...]
    unused_heads: dict[str, list[str]]
    buffers: tuple[str, ...]


def has_pooler(reader: WeightReader) -> bool:
    """Whether a checkpoint has (a part of) the pooler."""
    return any(is_pooler(name) for name in canonical_names(reader.names))


def build_filled(
    build: Callable[[], Module], reader: WeightReader, *, place: Path, dtype: torch.dtype | None = None
) -> tuple[Module, LoadReport]:
    """Build a module without drawing weights, fill it from a checkpoint, and put it in eval mode.

    Args:
        build: makes the module.
        reader: the checkpoint's tensors.
        place: the checkpoint, for messages.
        dtype: of the parameters; None means float32, whatever the file's.

    Raises:
        CheckpointError: a name is missing, unknown, or has another shape or kind of dtype.
        UsageError: ``dtype`` is not a floating one.
    """
    dtype = torch.float32 if dtype is None else dtype
    if not dtype.is_floating_point:
        raise UsageError(f"dtype: {dtype} is not a floating dtype; use torch.float32, bfloat16 or float16")
    with torch.device("meta"):
        module = build()
    own = {canonical(name): (name, tensor) for name, tensor in module.state_dict().items()}
    stored = canonical_names(reader.names)
    report = _account(stored, own.keys(), reader, place)
    for name in report.loaded:
        _check(reader.entry(stored[name]), tuple(own[name][1].shape))
    # Copied out of the mapping: torch aligns its own memory, and kernels round differently on other addresses,
    # so that equal weights in files of another layout would give other last bits. Nor may a file that is
    # overwritten change a model that serves.
    tensors = {
        own[name][0]: reader.read(stored[name]).to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name in report.loaded
    }
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval(), report


def _account(stored: dict[str, str], wanted: Collection[str], reader: WeightReader, place: Path) -> LoadReport:
    """Sort every stored name into the report, or refuse."""
    loaded: list[str] = []
    buffers: list[str] = []
    unknown: list[str] = []
    unused: dict[str, list[str]] = {}
    for name, file_name in stored.items():
        family = POOLER_FAMILY if is_pooler(name) else head_of(name)
        if name in wanted:
            loaded.append(name)
        elif is_buffer(name):
            buffers.append(name)
        elif family is not None:
            unused.setdefault(family, []).append(name)
        else:
            unknown.append(file_name)
    if unknown:
        where = reader.entry(unknown[0]).file
        raise CheckpointError(
            f"{where}: {_first_and_more(unknown)} in no place of this model; "
            "check config.json's sizes and settings, or remove the weights from the file"
        )
    missing = [name for name in wanted if name not in stored]
    if missing:
        raise CheckpointError(f"{place}: {_first_and_more(missing)} missing from the weights")
    return LoadReport(loaded=tuple(loaded), unused_heads=unused, buffers=tuple(buffers))


def _first_and_more(names: Sequence[str]) -> str:
    more = len(names) - 1
    return f"weight {names[0]!r} is" if not more else f"weights {names[0]!r} and {more} more are"


def _check(entry: TensorEntry, expected: tuple[int, ...]) -> None:
    place = f"{entry.file}: weight {entry.name!r}"
    if entry.shape != expected:
        raise CheckpointError(f"{place} has shape {entry.shape}; expected {expected}")
    if entry.dtype not in _FLOATING:
        raise CheckpointError(f"{place} has dtype {entry.dtype}; expected one of {', '.join(_FLOATING)}")
