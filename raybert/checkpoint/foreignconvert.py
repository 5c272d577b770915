"""Convert foreign weights into a safetensors file: a process of its own, started by `raybert.checkpoint.foreign`.

    python -m raybert.checkpoint.foreignconvert SOURCE TARGET

Each format is read by the library made for it. Exit status 0, or a key of `raybert.checkpoint.foreign.EXIT_ERRORS`
with the message on stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from raybert.checkpoint.entry import ITEM_BYTES
from raybert.checkpoint.foreign import EXIT_ERRORS
from raybert.checkpoint.foreignnames import Meaning, flax_meaning, h5_meaning, tf1_meaning
from raybert.checkpoint.wholefile import write_whole
from raybert.errors import CheckpointError, OutputError, RaybertError

# Whatever the three libraries raise on damaged bytes.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def convert(source: Path, target: Path) -> None:
    """Write all tensors of `source`, the file that its kind is known by, to `target`, whole or not at all.

    Raises:
        CheckpointError: the source is damaged, or two of its tensors mean the same and differ.
        OutputError: the target can't be written.
    """
    read, meaning = _KINDS[source.suffix]
    tensors = _canonical(source, _sound(source, read(source)), meaning)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole({target: lambda path: save_file(tensors, path, metadata={"format": "pt"})})
    except (OSError, SafetensorError) as error:
        megabytes = sum(array.nbytes for array in tensors.values()) // 10**6 + 1
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OutputError(
            f"{target.parent}: can't hold the converted {source.name}: {reason}; "
            f"set XDG_CACHE_HOME to a folder that you may write, with {megabytes} MB free"
        ) from error


def _sound(source: Path, pairs: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """The pairs of a reader, with its library's errors told as ours."""
    while True:
        try:
            name, value = next(pairs)
        except StopIteration:
            return
        except _DAMAGE as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise CheckpointError(
                f"{source}: damaged or of another format: {reason}; download or copy it again"
            ) from error
        yield name, np.asarray(value)


def _canonical(
    source: Path, pairs: Iterable[tuple[str, np.ndarray]], meaning: Callable[[str], Meaning | None]
) -> dict[str, np.ndarray]:
    """Tensors by canonical name, dense layers as [out, in], in C order."""
    tensors: dict[str, np.ndarray] = {}
    originals: dict[str, str] = {}
    for original, stored in pairs:
        meant = meaning(original)
        if meant is None:
            continue
        if stored.dtype.name not in ITEM_BYTES:
            raise CheckpointError(
                f"{source}: weight {original!r} has dtype {stored.dtype.name}; known are {', '.join(ITEM_BYTES)}"
            )
        # Copied: safetensors writes memory as it lies, and the reader's may lie turned, or be the whole file's.
        array = np.array(stored.T if meant.turned else stored, order="C")
        # Keras stores a layer that two others use below each: in transformers 4.57's files the embeddings stand
        # below the masked-lm head too.
        if meant.name not in tensors:
            tensors[meant.name], originals[meant.name] = array, original
        elif not _equal(tensors[meant.name], array):
            raise CheckpointError(
                f"{source}: {originals[meant.name]!r} and {original!r} both mean {meant.name!r} and differ; "
                "keep one of them in the file"
            )
    return tensors


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether dtype, shape and every byte are the same."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def _read_tf1(source: Path) -> Iterator[tuple[str, Any]]:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(source.with_suffix("")))
        for name in sorted(reader.get_variable_to_shape_map()):
            yield name, reader.get_tensor(name)
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error


def _read_h5(source: Path) -> Iterator[tuple[str, Any]]:
    import h5py

    datasets: dict[str, Any] = {}

    def note(name: str | bytes, item: Any) -> None:
        if isinstance(name, bytes):  # what h5py makes of a name that can't be decoded
            raise ValueError(f"the name {name!r} is no text")
        if isinstance(item, h5py.Dataset):
            datasets[name] = item

    with h5py.File(source, "r") as file:
        file.visititems(note)
        for name, dataset in datasets.items():
            yield name, dataset[()]


def _read_flax(source: Path) -> Iterator[tuple[str, Any]]:
    from flax.serialization import msgpack_restore

    tree = msgpack_restore(source.read_bytes())
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not a dict of weights")
    yield from _leaves(tree)


def _leaves(tree: dict[Any, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{place}{key}/")
        else:
            yield f"{place}{key}", value


_Read = Callable[[Path], Iterator[tuple[str, Any]]]
_Mean = Callable[[str], Meaning | None]
_KINDS: dict[str, tuple[_Read, _Mean]] = {
    ".index": (_read_tf1, tf1_meaning),
    ".h5": (_read_h5, h5_meaning),
    ".msgpack": (_read_flax, flax_meaning),
}


def main(source: str, target: str) -> int:
    """Convert, and return the exit status."""
    try:
        convert(Path(source), Path(target))
    except RaybertError as error:
        # Bytes, because a path may be no text.
        sys.stdout.buffer.write(os.fsencode(str(error)))
        return next(status for status, kind in EXIT_ERRORS.items() if isinstance(error, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
