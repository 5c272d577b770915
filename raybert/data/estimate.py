"""How many rows an input has, roughly, where no footer tells: for progress and the time left, never for the ledger."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raybert.data.files import InputRoot, reading
from raybert.data.formats import compression_of
from raybert.data.splits import InputFile

_SAMPLE_BYTES = 4 << 20  # of all files
_BZIP2_BYTES = 1 << 20  # a block of bzip2 holds up to 900 kB, and is decompressed as a whole
_PIECE_BYTES = 64 << 10
_SAMPLE_FILES = 8
_PLACES = 8  # of a file: the lines at its start may be longer or shorter than the rest


def estimate_rows(root: InputRoot, files: Sequence[InputFile]) -> int:
    """Rows of files of lines, from the density of newlines in a few of them.

    Small files are counted whole, larger ones at eight places; of compressed ones the first megabytes count.

    Args:
        root: where they lie.
        files: all of them; eight, evenly spread, are looked into.
    """
    chosen = files[:: max(1, len(files) // _SAMPLE_FILES)][:_SAMPLE_FILES]
    stored = lines = 0
    for file in chosen:
        of_file = _sample(root, file, _SAMPLE_BYTES // len(chosen))
        stored, lines = stored + of_file[0], lines + of_file[1]
    total = sum(file.size for file in files)
    return round(total * lines / stored) if stored else 0


def _sample(root: InputRoot, file: InputFile, most: int) -> tuple[int, int]:
    """Bytes read of a file as it is stored, ``most`` or a little more, and the lines in them."""
    with reading(root.show(file)):
        filesystem, path = root.locate(file)
        if compression_of(path) is None and file.size > most:
            with filesystem.open_input_file(path) as opened:
                pieces = [_piece(opened, at * (file.size - _PIECE_BYTES) // (_PLACES - 1)) for at in range(_PLACES)]
            return sum(map(len, pieces)), sum(piece.count(b"\n") for piece in pieces)
        with filesystem.open_input_stream(path, None) as stream:
            head = bytes(stream.read(max(most, _BZIP2_BYTES) if compression_of(path) == "bz2" else most))
    content = _decompressed(head, compression_of(path))
    unfinished = bool(content) and not content.endswith(b"\n") and len(head) == file.size
    return len(head), content.count(b"\n") + unfinished


def _piece(opened: pa.NativeFile, begin: int) -> bytes:
    opened.seek(begin)
    return bytes(opened.read(_PIECE_BYTES))


def _decompressed(head: bytes, compression: str | None) -> bytes:
    """What the beginning of a file holds; of a damaged one nothing: reading it will say so."""
    if compression is None:
        return head
    pieces = []
    try:
        with pa.CompressedInputStream(pa.BufferReader(head), compression) as stream:
            while piece := stream.read(_PIECE_BYTES):
                pieces.append(piece)
    except (OSError, pa.ArrowException):  # the rest was not read; or the file is damaged
        pass
    return b"".join(pieces)
