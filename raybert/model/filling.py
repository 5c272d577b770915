"""Put a checkpoint's tensors into a module, accounting for every name (law 8 of DESIGN)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from raybert.checkpoint.names import (
    TIED,
    canonical,
    canonical_names,
    head_of,
    is_buffer,
    is_pooler,
    is_trunk,
    lacks_heads,
)
from raybert.checkpoint.weights import TensorEntry
from raybert.errors import CheckpointError, UsageError
from raybert.model.readers import WeightReader

Module = TypeVar("Module", bound=nn.Module)

_WHICH_LABELS = "config.json's num_labels (or id2label) says how many labels a head has, multiple choice has one"
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
    build: Callable[[], Module],
    reader: WeightReader,
    *,
    place: Path,
    dtype: torch.dtype | str | None = None,
    part: bool = False,
    fresh: Collection[str] = (),
    remedy: str = "load another checkpoint",
) -> tuple[Module, LoadReport]:
    """Build a module, fill it from a checkpoint, and put it in eval mode.

    Where the module has one parameter under two names (`raybert.checkpoint.names.TIED`), a file may lack either.

    Args:
        build: makes the module.
        reader: the checkpoint's tensors.
        place: the checkpoint, for messages.
        dtype: of the parameters; None means float32, whatever the file's.
        part: whether the module is a head alone; the trunk's names are then passed by.
        fresh: canonical names of parameters that keep the numbers ``build`` draws. Without any, nothing is drawn.
        remedy: for a checkpoint that lacks a head.

    Raises:
        CheckpointError: a name is missing, unknown, or has another shape or kind of dtype.
        UsageError: ``dtype`` is not a floating one.
    """
    dtype = _floating(dtype)
    if fresh:
        module = build().to(dtype)
    else:
        with torch.device("meta"):
            module = build()
    own = {canonical(name): (name, tensor) for name, tensor in module.state_dict().items()}
    ties = _ties(module)
    stored = canonical_names(reader.names)
    wanted = [name for name in own if name not in fresh]
    passed_by = {name for name in stored if part and is_trunk(name)}
    account = {name: original for name, original in stored.items() if name not in passed_by}
    report = _account(account, wanted, ties, reader, place, remedy)
    for name in report.loaded:
        _check(reader.entry(stored[name]), tuple(own[name][1].shape))
    # Copied out of the mapping: torch aligns its own memory, and kernels round differently on other addresses,
    # so that equal weights in files of another layout would give other last bits. Nor may a file that is
    # overwritten change a model that serves.
    tensors = {
        name: reader.read(stored[name]).to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name in report.loaded
    }
    tensors |= {name: own[name][1] for name in fresh}
    # Drawn beside embeddings that are loaded now: it is these that are meant.
    tensors |= {copy: tensors[source] for copy, source in ties.items() if copy in fresh}
    _share_tied(tensors, ties)
    module.load_state_dict({own[name][0]: tensor for name, tensor in tensors.items()}, strict=True, assign=True)
    for copy, source in ties.items():
        if tensors[copy] is tensors[source]:
            parent, _, attribute = own[copy][0].rpartition(".")
            setattr(module.get_submodule(parent), attribute, module.get_parameter(own[source][0]))
    return module.eval(), report


def _floating(dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype that is meant: float32 for None, torch's for its name."""
    found = torch.float32 if dtype is None else getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype: {dtype} is not a floating dtype; use torch.float32, bfloat16 or float16")
    return found


def _ties(module: nn.Module) -> dict[str, str]:
    """The ties (copy -> source, canonical names) whose two names are one parameter of this module."""
    parameters = {canonical(name): value for name, value in module.named_parameters(remove_duplicate=False)}
    return {
        copy: source for copy, source in TIED.items() if copy in parameters and parameters[copy] is parameters[source]
    }


def _share_tied(tensors: dict[str, Tensor], ties: Mapping[str, str]) -> None:
    """Give both names of a tie one tensor where one is missing or both are equal.

    Where they differ the config is wrong and the numbers are right: both stay, as in the reference.
    """
    for copy, source in ties.items():
        if source not in tensors:
            tensors[source] = tensors[copy]
        elif copy not in tensors or torch.equal(tensors[copy], tensors[source]):
            tensors[copy] = tensors[source]


def _account(
    stored: dict[str, str],
    wanted: Collection[str],
    ties: Mapping[str, str],
    reader: WeightReader,
    place: Path,
    remedy: str,
) -> LoadReport:
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
    twins = dict(ties) | {source: copy for copy, source in ties.items()}
    _check_missing([name for name in wanted if not {name, twins.get(name)} & stored.keys()], stored, place, remedy)
    return LoadReport(loaded=tuple(loaded), unused_heads=unused, buffers=tuple(buffers))


def _check_missing(missing: Sequence[str], stored: Collection[str], place: Path, remedy: str) -> None:
    """Refuse a checkpoint that lacks weights; where they are a whole head's or the pooler's, say which it has."""
    if not missing:
        return
    lacks = lacks_heads(missing, stored)
    if lacks is not None:
        raise CheckpointError(f"{place}: {lacks}; {remedy}")
    raise CheckpointError(f"{place}: {_first_and_more(missing)} missing from the weights")


def _first_and_more(names: Sequence[str]) -> str:
    more = len(names) - 1
    return f"weight {names[0]!r} is" if not more else f"weights {names[0]!r} and {more} more are"


def _check(entry: TensorEntry, expected: tuple[int, ...]) -> None:
    place = f"{entry.file}: weight {entry.name!r}"
    if entry.shape != expected:
        is_classifier = head_of(canonical(entry.name)) == "classifier" and entry.shape[1:] == expected[1:]
        why = f"; {_WHICH_LABELS}" if is_classifier else ""
        raise CheckpointError(f"{place} has shape {entry.shape}; expected {expected}{why}")
    if entry.dtype not in _FLOATING:
        raise CheckpointError(f"{place} has dtype {entry.dtype}; expected one of {', '.join(_FLOATING)}")
