"""The engine in a process of its own, beside the replica that it computes for.

A forward takes Python's lock some hundred times, and under load a replica's event loop holds it a third of the time: in
one process each waits for the other while processors idle.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, cast

from raybert.engine import EngineSettings
from raybert.serve.pieces import Asked, Found
from raybert.serve.wire import Call, Outcome, Setup, Unpacker, messages, packed
from raybert.tasks import Task

_ENDS_S = 5.0


class EngineDied(Exception):
    """The process that computes has ended; the message says how."""


class EngineProcess:
    """Trunks that compute elsewhere; ready once it is made.

    Args:
        trunks: the heads of each, by name.
        settings: what decides the bits.
        workers: batches of a trunk computed at once on a CPU, with one thread of arithmetic each.
        died: called where the process ends by itself, before anybody who waits for it hears of that.

    Raises:
        EngineDied: it ended before it was ready.
        Exception: what loading the trunks raised.
    """

    def __init__(
        self,
        trunks: Sequence[Mapping[str, Task]],
        settings: EngineSettings,
        *,
        workers: int,
        died: Callable[[EngineDied], None] = lambda _: None,
    ) -> None:
        self._died = died
        self._process, self._socket = _start()
        error = self._open(Setup(trunks=trunks, settings=settings, workers=workers))
        if error is not None:
            raise error
        self._wire: asyncio.Task[_Wire] | None = None

    def trunk(self, place: int) -> RemoteTrunk:
        """The trunk of that place."""
        return RemoteTrunk(self, place)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def run(self, trunk: int, pieces: Sequence[Asked]) -> Sequence[Found]:
        """Compute pieces at once; from one event loop.

        Raises:
            EngineDied: the process has ended.
            Exception: what the trunk raised.
        """
        if self._wire is None:
            self._wire = asyncio.ensure_future(self._connected())
        wire = await asyncio.shield(self._wire)
        return await wire.ask(trunk, pieces)

    async def close(self) -> None:
        """End the process, whatever it does."""
        if self._wire is not None:
            (await self._wire).close()
        self._socket.close()
        await asyncio.to_thread(_end, self._process)

    def _open(self, setup: Setup) -> Exception | None:
        """What keeps the trunks from being opened; then the process has ended."""
        try:
            self._socket.sendall(packed(setup))
            opened = next(messages(self._socket), None)
        except OSError:
            opened = None
        if opened is not None and opened.error is None:
            return None
        self._socket.close()
        status = _end(self._process)
        return (
            EngineDied(f"the engine's process ended as it began (status {status})") if opened is None else opened.error
        )

    async def _connected(self) -> _Wire:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_unix_connection(lambda: _Wire(self._lost), sock=self._socket)
        return wire

    def _lost(self) -> EngineDied:
        error = EngineDied(f"the engine's process has ended (status {_end(self._process)})")
        self._died(error)
        return error


class RemoteTrunk:
    """One trunk of an `EngineProcess`: what a `raybert.serve.batcher.Batcher` feeds."""

    def __init__(self, process: EngineProcess, place: int) -> None:
        self._process, self._place = process, place

    async def run(self, pieces: Sequence[Asked]) -> Sequence[Found]:
        """As `EngineProcess.run`."""
        return await self._process.run(self._place, pieces)


class _Wire(asyncio.Protocol):
    """This end of the socket.

    Args:
        lost: called where the other end was closed; gives the error that those get who wait.
    """

    _transport: asyncio.WriteTransport

    def __init__(self, lost: Callable[[], EngineDied]) -> None:
        self._lost = lost
        self._unpacker, self._tickets = Unpacker(), count()
        self._waiting: dict[int, asyncio.Future[Sequence[Found]]] = {}
        self._error: EngineDied | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        outcome: Outcome
        for outcome in self._unpacker.feed(data):
            future = self._waiting.pop(outcome.ticket, None)
            if future is None or future.done():
                continue
            if outcome.error is None:
                future.set_result(outcome.found)
            else:
                future.set_exception(outcome.error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = self._error or self._lost()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._error)
        self._waiting.clear()

    async def ask(self, trunk: int, pieces: Sequence[Asked]) -> Sequence[Found]:
        """As `EngineProcess.run`."""
        if self._error is not None:
            raise self._error
        ticket = next(self._tickets)
        future: asyncio.Future[Sequence[Found]] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._transport.write(packed(Call(ticket=ticket, trunk=trunk, pieces=pieces)))
        try:
            return await future
        finally:
            self._waiting.pop(ticket, None)

    def close(self) -> None:
        """Hang up."""
        self._error = EngineDied("the engine's process was ended")
        self._transport.close()


def _start() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, with this one's modules, and this end of a socket to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        words = [sys.executable, "-P", "-m", "raybert.serve.computing", str(theirs.fileno())]
        modules = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # Ray's workers have folders of their own
        process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=os.environ | modules)  # noqa: S603  our own
    return process, ours


def _end(process: subprocess.Popen[Any]) -> int:
    """Its exit status, once the socket is closed; of one that does not hear of that by force."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_ENDS_S)
    process.kill()
    return process.wait()
