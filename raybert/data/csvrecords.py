"""Records of a CSV stream, by blocks: as `lines`, but a newline between quotes ends nothing.

A field is quoted where its first byte is a quote, and then ends at the next quote that is not doubled; a quote anywhere
else is a character like others. That is how Python's csv module reads, and why a stray quote costs its own record only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from raybert.data.lines import BLOCK_BYTES, BOM, LINE_LIMIT, ByteStream, Lines, over_limit

_REST_OF_QUOTED = re.compile(rb'[^"]*+(?:""[^"]*+)*+("?)')


def read_records(
    stream: ByteStream, delimiter: str, *, limit: int = LINE_LIMIT, block: int = BLOCK_BYTES
) -> Iterator[Lines]:
    r"""All records of a stream, the header among them; empty lines are passed by, a BOM in front is dropped.

    A record ends at ``\n`` outside of quotes or at the end of the stream. A quote that nothing closes takes the rest of
    the stream into its record.

    Args:
        stream: the bytes, decompressed.
        delimiter: between fields.
        limit: a longer record is given by its size alone and never held.
        block: bytes to ask for at once.
    """
    ends_of = _Ends(delimiter)
    held: list[bytes] = []  # of a record whose end has not come yet
    size = 0  # bytes of that record so far; more than are held once it is over the limit
    chunk = stream.read(max(block, len(BOM))).removeprefix(BOM) or stream.read(block)
    while chunk:
        ends, begin = ends_of(chunk), 0
        if len(ends) and size + ends[0] > limit:
            yield over_limit(size + int(ends[0]))
            held, size, begin, ends = [], 0, int(ends[0]) + 1, ends[1:]
        if len(ends):
            whole, before = int(ends[-1]) + 1, sum(map(len, held))
            yield _cut(b"".join([*held, chunk[begin:whole]]), ends - begin + before)
            held, size = [chunk[whole:]], len(chunk) - whole
        else:
            held = [*held, chunk[begin:]] if size <= limit else []
            size += len(chunk) - begin
        chunk = stream.read(block)
    if size > limit:
        yield over_limit(size)
    elif size:
        yield _cut(b"".join(held), np.array([size], dtype=np.int64))


class _Ends:
    """Where records end, chunk after chunk: carries over whether a chunk ends within quotes."""

    def __init__(self, delimiter: str) -> None:
        self._quoted = re.compile(rb'(?<=[\n%b])"[^"]*+(?:""[^"]*+)*+("?)' % re.escape(delimiter.encode()))
        self._before = b"\n"  # the byte in front of the chunk
        self._inside = False  # the chunk begins within quotes
        self._half = False  # it does unless its first byte is no quote: the last byte was one, and may be half of two

    def __call__(self, chunk: bytes) -> npt.NDArray[np.int64]:
        """Positions of the newlines in the chunk that end a record."""
        quotes = b'"' in chunk
        if self._inside and not self._half and not quotes:  # a quote that nothing closes may take a whole file
            self._before = chunk[-1:]
            return np.zeros(0, dtype=np.int64)
        marks = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
        if self._inside or quotes:
            spans = self._spans(self._before + chunk)
            if spans:
                starts, stops = (np.array(each, dtype=np.int64) - 1 for each in zip(*spans, strict=True))
                span = np.searchsorted(starts, marks, side="right") - 1
                marks = marks[(span < 0) | (marks >= stops[span])]
        self._before = chunk[-1:]
        return marks

    def _spans(self, text: bytes) -> list[tuple[int, int]]:
        """Begin and end of all that is quoted; the first byte of the text is the last one of the chunk before."""
        spans, at, closed = [], 1, True
        if self._inside:
            if self._half and text[1:2] != b'"':
                self._inside = False
            else:
                found = _REST_OF_QUOTED.match(text, 1 + self._half)
                assert found is not None
                at, closed = found.end(), bool(found[1])
                spans.append((1, at))
        for found in self._quoted.finditer(text, at):
            spans.append(found.span())
            closed = bool(found[1])
        if spans:
            self._half = closed and spans[-1][1] == len(text)
            self._inside = self._half or not closed
        return spans


def _cut(buffer: bytes, ends: npt.NDArray[np.int64]) -> Lines:
    """Records that end at these places; empty ones are left out."""
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts
    # A newline may be b"\r\n": of an empty line the carriage return is left.
    bare = (sizes == 1) & (np.frombuffer(buffer, dtype=np.uint8)[np.minimum(starts, len(buffer) - 1)] == ord("\r"))
    row = (sizes > 0) & ~bare
    return Lines(buffer=buffer, starts=starts[row], ends=ends[row], sizes=sizes[row])
