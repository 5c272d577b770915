"""How many rows an input has, roughly, where no footer tells: for progress and the time left, never for the ledger."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from raybert.data.files import InputRoot, compression_of, reading
from raybert.data.splits import InputFile

_SAMPLE_BYTES = 256 << 10
_SAMPLE_FILES = 8


def estimate_rows(root: InputRoot, files: Sequence[InputFile]) -> int:
    """Rows of files of lines, from the density of newlines at the start of a few of them.

    Args:
        root: where they lie.
        files: all of them; eight, evenly spread, are looked into.
    """
    step = max(1, len(files) // _SAMPLE_FILES)
    stored = lines = 0
    for file in files[::step][:_SAMPLE_FILES]:
        of_file = _sample(root, file)
        stored, lines = stored + of_file[0], lines + of_file[1]
    total = sum(file.size for file in files)
    return round(total * lines / stored) if stored else 0


def _sample(root: InputRoot, file: InputFile) -> tuple[int, int]:
    """Bytes read from the start of a file as it is stored, and the lines in them."""
    with reading(root.show(file)):
        filesystem, path = root.locate(file)
        with filesystem.open_input_stream(path, None) as stream:
            head = bytes(stream.read(_SAMPLE_BYTES))
    content = head
    if compression_of(path) == "gzip":
        try:
            content = zlib.decompressobj(wbits=31).decompress(head)
        except zlib.error:  # a damaged file: reading it will say so
            content = b""
    unfinished = bool(content) and not content.endswith(b"\n") and len(head) == file.size
    return len(head), content.count(b"\n") + unfinished
