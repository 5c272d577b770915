"""Messages between a replica and a process that computes for it: pickles, each behind its length.

Both ends are ours, and joined by a pair of sockets that nobody else has; nothing from outside is unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from raybert.engine import EngineSettings
from raybert.serve.pieces import Asked, Found
from raybert.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The first message.

    Attributes:
        trunks: the heads of each, by name.
        settings: obeyed to the letter.
        workers: streams of each trunk in each process.
    """

    trunks: Sequence[Mapping[str, Task]]
    settings: EngineSettings
    workers: int


class Call(NamedTuple):
    """Every further message; a tuple, since the pickle of a dataclass with slots is made by Python's own code.

    Attributes:
        ticket: comes back with what was found.
        trunk: its place in the setup.
        asked: computed at once.
    """

    ticket: int
    trunk: int
    asked: Asked


class Outcome(NamedTuple):
    """What comes back of a call, and of the setup as ticket -1.

    Attributes:
        ticket: of the call.
        found: by head; empty of the setup, and beside an error.
        error: raised instead.
    """

    ticket: int
    found: Found
    error: Exception | None = None


_LENGTH = struct.Struct("<Q")


def packed(message: Any) -> bytes:
    """The bytes of a message."""
    raw = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(raw)) + raw


class Unpacker:
    """Bytes as they come to messages."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that these bytes complete."""
        self._unread += data
        while len(self._unread) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._unread)[0]
            if len(self._unread) < end:
                return
            raw = self._unread[_LENGTH.size : end]
            del self._unread[:end]
            yield pickle.loads(raw)  # noqa: S301  see above


def messages(end: socket.socket) -> Iterator[Any]:
    """What comes, until the other end is closed."""
    unpacker = Unpacker()
    while data := end.recv(1 << 16):
        yield from unpacker.feed(data)
