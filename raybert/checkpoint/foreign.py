"""Weights of other frameworks: converted once into a safetensors file, which is what everything else reads.

The converted file lies in ``$XDG_CACHE_HOME/raybert/converted`` (``~/.cache/…`` without it), in a folder named by the
sha256 of the source's contents: fine-tuned twice, a model's files have the same names and sizes, and times survive
a copy, so that anything less could give another model's numbers. Reading 438 MB for it takes 0.4 s at each opening.
The converted file may be deleted at any time.

The libraries that read these files run in a process of their own, once (`raybert.checkpoint.foreignconvert`):
importing TensorFlow 2.21 takes 7 s and 790 MB and writes to stderr, importing Flax 0.12 takes 1 s and 180 MB.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from raybert.errors import CheckpointError, OutputError, RaybertError

_INDEX_SUFFIX = ".index"
# Rises when the same source gives another file.
_CONVERSION = 1


class Foreign(NamedTuple):
    """A kind of foreign weights: what reads it, and the extra that installs that."""

    library: str
    extra: str


FOREIGN_WEIGHTS = {
    "tf_model.h5": Foreign("h5py", "h5"),
    "flax_model.msgpack": Foreign("flax", "flax"),
    "bert_model.ckpt.index": Foreign("tensorflow", "tf1"),
    "model.ckpt.index": Foreign("tensorflow", "tf1"),
}
"""The file that each kind is known by, best first: Keras' and Flax's are transformers', ``.ckpt`` is Google's."""

EXIT_ERRORS: dict[int, type[RaybertError]] = {3: CheckpointError, 4: OutputError}
"""How the converting process ends when the one line that it wrote to stdout is the error."""


def source_files(chosen: str, names: Iterable[str]) -> list[str]:
    """All files of the weights `chosen` among a folder's file names: a TensorFlow 1 checkpoint is several."""
    if not chosen.endswith(_INDEX_SUFFIX):
        return [chosen]
    data = chosen.removesuffix(_INDEX_SUFFIX) + ".data-"
    return [chosen, *sorted(name for name in names if name.startswith(data) and "/" not in name)]


def converted(folder: Path, chosen: str) -> Path:
    """The safetensors file with the numbers of `chosen`, one of `FOREIGN_WEIGHTS`, under canonical names.

    Made if it is not in the cache; then it appears whole or not at all, and any number of processes may make it at
    once. Dtypes are those of the source. Names that no BERT has are kept as the source spells them.

    Raises:
        CheckpointError: the source is damaged or incomplete, or the extra that reads it is not installed.
        OutputError: the cache can't be written.
    """
    place = folder / chosen
    files = source_files(chosen, (path.name for path in folder.iterdir()))
    if chosen.endswith(_INDEX_SUFFIX) and len(files) == 1:
        data = chosen.removesuffix(_INDEX_SUFFIX) + ".data-…"
        raise CheckpointError(f"{place}: no {data} beside it, which holds the numbers; download or copy it too")
    # Named after the source, because messages about weights give this path.
    target = _cache() / _digest(folder, files) / f"{chosen.removesuffix(_INDEX_SUFFIX)}.safetensors"
    if not target.is_file():
        library, extra = FOREIGN_WEIGHTS[chosen]
        if importlib.util.find_spec(library) is None:
            raise CheckpointError(f"{place}: reading it needs {library}; pip install 'raybert[{extra}]'")
        _convert(place, target)
    return target


def _cache() -> Path:
    # The XDG base directory specification: a relative path is to be ignored.
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not stated.is_absolute():
        try:
            stated = Path.home() / ".cache"
        except RuntimeError as error:
            raise OutputError("cache: no home folder for converted weights; set XDG_CACHE_HOME to a folder") from error
    return stated / "raybert" / "converted"


def _digest(folder: Path, files: Iterable[str]) -> str:
    """sha256 (hex) over names and contents of the files, and over how they are converted."""
    digest = hashlib.sha256(f"raybert conversion {_CONVERSION}\n".encode())
    for name in files:
        try:
            with (folder / name).open("rb") as file:
                contents = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{folder / name}: can't be read: {error.strerror or error}") from error
        digest.update(f"{name} {contents}\n".encode())
    return digest.hexdigest()


def _convert(place: Path, target: Path) -> None:
    """Have another process convert; it finds modules where this one does, and nowhere else (-P)."""
    search = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    done = subprocess.run(  # noqa: S603  our own module, on paths
        [sys.executable, "-P", "-m", "raybert.checkpoint.foreignconvert", str(place), str(target)],
        env=os.environ | {"PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode in EXIT_ERRORS:
        raise EXIT_ERRORS[done.returncode](os.fsdecode(done.stdout))
    if done.returncode or not target.is_file():
        last = next(iter(reversed(os.fsdecode(done.stderr).splitlines())), "it said nothing")
        library, extra = FOREIGN_WEIGHTS[place.name]
        raise CheckpointError(
            f"{place}: reading it with {library} ended with status {done.returncode}: {last}; "
            f"free memory, or install raybert[{extra}] anew"
        )
