"""Lines of a byte stream, by blocks: found with numpy, so that passing over millions of them costs little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 1 << 20
"""Bytes asked of a stream at once."""

LINE_LIMIT = 64 << 20
"""Bytes of the longest row, unless a run is told another limit; of a longer line only the length is kept."""

JSON_SPACE = b" \t\r\n"
"""What JSON calls whitespace."""

BOM = b"\xef\xbb\xbf"
"""What some editors put in front of UTF-8."""


class ByteStream(Protocol):
    """What is read: bytes in order, fewer than asked only at the end."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Some whole lines that follow one another in the file.

    Attributes:
        buffer: their bytes.
        starts: [L] where each begins in ``buffer``.
        ends: [L] where each ends, its newline not included.
        sizes: [L] bytes of each without its newline; of a line over the limit the buffer holds nothing.
    """

    buffer: bytes
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def bytes_of(self, start: int, stop: int) -> list[bytes]:
        """The lines ``[start, stop)`` without their newlines."""
        buffer = self.buffer
        begins, ends = self.starts[start:stop].tolist(), self.ends[start:stop].tolist()
        return [buffer[begin:end] for begin, end in zip(begins, ends, strict=True)]


def read_lines(
    stream: ByteStream, *, blank_rows: bool, limit: int = LINE_LIMIT, block: int = BLOCK_BYTES
) -> Iterator[Lines]:
    r"""All lines of a stream. A line ends at ``\n`` or at the end of the stream; a BOM in front is dropped.

    Args:
        stream: the bytes, decompressed.
        blank_rows: a line of nothing but JSON whitespace is a line too; else it is passed by.
        limit: a longer line is given by its size alone and never held.
        block: bytes to ask for at once.
    """
    held: list[bytes] = []  # of a line whose end has not come yet
    size = 0  # bytes of that line so far; more than are held once it is over the limit
    chunk = stream.read(max(block, len(BOM))).removeprefix(BOM) or stream.read(block)
    while chunk:
        newline = chunk.find(b"\n")
        if newline < 0:
            size += len(chunk)
            held = [*held, chunk] if size <= limit else []
        elif size + newline > limit:
            yield over_limit(size + newline)
            held, size = [], 0
            chunk = chunk[newline + 1 :] or stream.read(block)
            continue
        else:
            whole = chunk.rfind(b"\n") + 1
            yield _split(b"".join([*held, chunk[:whole]]), blank_rows)
            held, size = [chunk[whole:]], len(chunk) - whole
        chunk = stream.read(block)
    if size > limit:
        yield over_limit(size)
    elif size:
        yield _split(b"".join(held), blank_rows)


def _split(buffer: bytes, blank_rows: bool) -> Lines:
    codes = np.frombuffer(buffer, dtype=np.uint8)
    marks = np.flatnonzero(codes == ord("\n"))
    starts = np.concatenate(([0], marks + 1))
    ends = np.append(marks, len(buffer))
    if starts[-1] == len(buffer):
        starts, ends = starts[:-1], ends[:-1]
    if not blank_rows:
        row = np.ones(len(starts), dtype=bool)
        for at in np.flatnonzero(codes[starts] <= ord(" ")).tolist():
            row[at] = bool(buffer[starts[at] : ends[at]].strip(JSON_SPACE))
        starts, ends = starts[row], ends[row]
    return Lines(buffer=buffer, starts=starts, ends=ends, sizes=ends - starts)


def over_limit(size: int) -> Lines:
    """One line of which nothing but the size is known."""
    nowhere = np.zeros(1, dtype=np.int64)
    return Lines(buffer=b"", starts=nowhere, ends=nowhere, sizes=np.array([size], dtype=np.int64))
