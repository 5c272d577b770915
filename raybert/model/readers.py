"""Name -> tensor over a checkpoint's weight files, mapped from the disk: bytes are read when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from raybert.checkpoint.weights import ITEM_BYTES, TensorEntry, index
from raybert.errors import CheckpointError


class WeightReader:
    """All tensors of one or several weight files (shards), under the names that the files give them.

    Safetensors and ``torch.save`` files are both read through `raybert.checkpoint.weights.index`, the index that
    digests are made from: what is computed with is what was digested, and no pickle's code runs.

    Args:
        files: the weight files.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format; or two files hold one name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._entries = index(files)
        self._bytes_of: dict[Path, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, file by file."""
        return tuple(self._entries)

    def entry(self, name: str) -> TensorEntry:
        """What a tensor is and where it lies, without reading its bytes."""
        return self._entries[name]

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU as it is stored: a private mapping of the file, not yet read.

        Raises:
            CheckpointError: the file can't be mapped any more.
        """
        entry = self._entries[name]
        raw = self._bytes(entry.file)[entry.offset : entry.offset + _held_bytes(entry)]
        if entry.offset % ITEM_BYTES[entry.dtype]:
            # torch's format before 1.6 puts storages at any byte.
            raw = raw.clone()
        numbers = raw.view(getattr(torch, entry.dtype))
        if entry.strides is None:
            return numbers.view(entry.shape)
        return numbers.as_strided(entry.shape, entry.strides, numbers.storage_offset())

    def _bytes(self, file: Path) -> Tensor:
        """All bytes of a file, mapped once."""
        if file not in self._bytes_of:
            try:
                storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=file.stat().st_size)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{file}: can't be read: {error}") from error
            assert isinstance(storage, torch.UntypedStorage)
            self._bytes_of[file] = torch.empty(0, dtype=torch.uint8).set_(storage)
        return self._bytes_of[file]


def _held_bytes(entry: TensorEntry) -> int:
    """From a tensor's first byte to its last: more than its numbers take when it is a view with gaps."""
    if entry.strides is None:
        return entry.nbytes
    last = sum((size - 1) * stride for size, stride in zip(entry.shape, entry.strides, strict=True))
    return (last + 1) * ITEM_BYTES[entry.dtype]
