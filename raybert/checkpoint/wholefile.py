"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    path.write_text(text, encoding="utf-8")


def write_whole(writers: Mapping[Path, Callable[[Path], None]]) -> None:
    """Have all files written beside their places and flushed to the disk, then moved there.

    Args:
        writers: place -> what writes the file, given the path to write to.
    """
    beside = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}") for path in writers}
    try:
        for path, write in writers.items():
            write(beside[path])
            with beside[path].open("rb+") as file:
                os.fsync(file.fileno())
        for path, written in beside.items():
            written.replace(path)
    finally:
        for written in beside.values():
            with contextlib.suppress(OSError):
                written.unlink(missing_ok=True)
