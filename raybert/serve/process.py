"""The engine in processes of its own, beside the replica that it computes for.

A forward takes Python's lock some hundred times, and under load a replica's event loop holds it a third of the time: in
one process each waits for the other while processors idle. So do two forwards, which is why there is a process for each
of them on a CPU.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, cast

from raybert.engine import EngineSettings
from raybert.serve.pieces import Asked, Found, Together
from raybert.serve.wire import Call, Outcome, Setup, Unpacker, messages, packed
from raybert.tasks import Task

_ENDS_S = 5.0


class EngineDied(Exception):
    """The process that computes has ended; the message says how."""


class EngineProcess:
    """Trunks that compute elsewhere; ready once it is made.

    On a CPU of Linux each worker is a process, forked when the weights are there; else they are threads of one.

    Args:
        trunks: the heads of each, by name.
        settings: what decides the bits.
        workers: batches of a trunk computed at once, on a CPU with one thread of arithmetic each.
        died: called once where it ends by itself, before anybody who waits for it hears of that.

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
        self._error: EngineDied | None = None
        processes = workers if settings.device == "cpu" and sys.platform == "linux" else 1
        self._process, self._sockets = _start(processes)
        error = self._open(Setup(trunks=trunks, settings=settings, workers=workers // processes))
        if error is not None:
            raise error
        self._wires: asyncio.Future[list[_Wire]] | None = None

    def trunk(self, place: int) -> RemoteTrunk:
        """The trunk of that place."""
        return RemoteTrunk(self, place)

    @property
    def pid(self) -> int:
        """Of the process that forks the others."""
        return self._process.pid

    async def run(self, trunk: int, pieces: Sequence[Asked]) -> Sequence[Found]:
        """Compute pieces at once, where least is computed of this trunk, and of all; from one event loop.

        Raises:
            EngineDied: the process has ended.
            Exception: what the trunk raised.
        """
        if self._wires is None:
            self._wires = asyncio.ensure_future(self._connected())
        wires = await asyncio.shield(self._wires)
        if self._error is not None:
            raise self._error
        together = Together(pieces)
        found = await min(wires, key=lambda wire: wire.load(trunk)).ask(trunk, together.asked)
        return together.parted(found)

    def longest_s(self, trunk: int) -> float:
        """Seconds that the oldest call of a trunk is under way; on that event loop."""
        if self._wires is None or not self._wires.done():
            return 0.0
        begun = min(wire.begun(trunk) for wire in self._wires.result())
        return max(0.0, asyncio.get_running_loop().time() - begun)

    async def close(self) -> None:
        """End the process, whatever it does."""
        self._error = self._error or EngineDied("the engine's process was ended")
        if self._wires is not None:
            for wire in await self._wires:
                wire.close()
        self._hang_up()
        await asyncio.to_thread(_end, self._process)

    def _open(self, setup: Setup) -> Exception | None:
        """What keeps the trunks from being opened; then the process has ended."""
        first = self._sockets[0]
        try:
            first.sendall(packed(setup))
            opened = next(messages(first), None)
        except OSError:
            opened = None
        if opened is not None and opened.error is None:
            return None
        self._hang_up()
        status = _end(self._process)
        return (
            EngineDied(f"the engine's process ended as it began (status {status})") if opened is None else opened.error
        )

    def _hang_up(self) -> None:
        for each in self._sockets:
            each.close()

    async def _connected(self) -> list[_Wire]:
        loop = asyncio.get_running_loop()
        made = [await loop.create_unix_connection(lambda: _Wire(self._lost), sock=each) for each in self._sockets]
        return [wire for _, wire in made]

    def _lost(self) -> EngineDied:
        if self._error is None:  # of several processes the first one to end ends all
            self._error = EngineDied(f"the engine's process has ended (status {_end(self._process)})")
            self._died(self._error)
        return self._error


class RemoteTrunk:
    """One trunk of an `EngineProcess`: what a `raybert.serve.batcher.Batcher` feeds."""

    def __init__(self, process: EngineProcess, place: int) -> None:
        self._process, self._place = process, place

    async def run(self, pieces: Sequence[Asked]) -> Sequence[Found]:
        """As `EngineProcess.run`."""
        return await self._process.run(self._place, pieces)

    def longest_s(self) -> float:
        """As `EngineProcess.longest_s`."""
        return self._process.longest_s(self._place)


class _Wire(asyncio.Protocol):
    """This end of a socket.

    Args:
        lost: called where the other end was closed; gives the error that those get who wait.
    """

    _transport: asyncio.WriteTransport

    def __init__(self, lost: Callable[[], EngineDied]) -> None:
        self._lost = lost
        self._unpacker, self._tickets = Unpacker(), count()
        self._waiting: dict[int, asyncio.Future[Found]] = {}
        self._calls: dict[int, tuple[int, float]] = {}  # ticket -> trunk, when; also of those that nobody waits for

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        outcome: Outcome
        for outcome in self._unpacker.feed(data):
            self._calls.pop(outcome.ticket, None)
            future = self._waiting.pop(outcome.ticket, None)
            if future is None or future.done():
                continue
            if outcome.error is None:
                future.set_result(outcome.found)
            else:
                future.set_exception(outcome.error)

    def connection_lost(self, exc: Exception | None) -> None:
        error = self._lost()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def load(self, trunk: int) -> tuple[int, int]:
        """What is under way: calls of this trunk, and of all."""
        return sum(each == trunk for each, _ in self._calls.values()), len(self._calls)

    def begun(self, trunk: int) -> float:
        """When the oldest call of this trunk that is under way began, in the event loop's seconds."""
        return min((at for each, at in self._calls.values() if each == trunk), default=math.inf)

    async def ask(self, trunk: int, asked: Asked) -> Found:
        """What the other end finds of it; raises as `EngineProcess.run`."""
        ticket, loop = next(self._tickets), asyncio.get_running_loop()
        future: asyncio.Future[Found] = loop.create_future()
        self._waiting[ticket] = future
        self._calls[ticket] = (trunk, loop.time())
        self._transport.write(packed(Call(ticket=ticket, trunk=trunk, asked=asked)))
        try:
            return await future
        finally:
            self._waiting.pop(ticket, None)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


def _start(processes: int) -> tuple[subprocess.Popen[bytes], list[socket.socket]]:
    """The process, with this one's modules, and this end of a socket for each that it shall be."""
    pairs = [socket.socketpair() for _ in range(processes)]
    theirs = [their.fileno() for _, their in pairs]
    words = [sys.executable, "-P", "-m", "raybert.serve.computing", *map(str, theirs)]
    modules = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # Ray's workers have folders of their own
    environment = os.environ | modules | _allocator()
    try:
        process = subprocess.Popen(words, pass_fds=theirs, env=environment)  # noqa: S603  our own
    finally:
        for _, their in pairs:
            their.close()
    return process, [ours for ours, _ in pairs]


def _allocator() -> dict[str, str]:
    """What has a process take its memory from jemalloc, which Ray brings with it on Linux; nothing if it has one.

    A forward asks for a hundred pieces of many sizes. glibc's search among those that are free was a tenth of its time
    (perf, one or two texts a forward).
    """
    ray = find_spec("ray")
    if ray is None or ray.origin is None or sys.platform != "linux" or "LD_PRELOAD" in os.environ:
        return {}
    library = Path(ray.origin).parent / "core" / "libjemalloc.so"
    return {"LD_PRELOAD": str(library)} if library.is_file() else {}


def _end(process: subprocess.Popen[Any]) -> int:
    """Its exit status, once the socket is closed; of one that does not hear of that by force."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(_ENDS_S)
    process.kill()
    return process.wait()
