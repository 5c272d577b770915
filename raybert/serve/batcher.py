"""From many requests to token batches and back: nobody waits while the encoder is idle.

    compute() ── FairQueue ──> batches ── a stream of the engine ──> arrays ──> each request its own

A batch leaves as soon as a stream is free, with its part of what has come until then: under load batches fill by
themselves, and a lone request never waits for company. All decisions are made on the event loop; the streams only
compute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from raybert.serve.fairqueue import FairQueue, Piece
from raybert.serve.pieces import Asked, Found, Parts
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Int32s, Sequences, ranges


class Runs(Protocol):
    """What a batcher feeds: a `raybert.serve.process.RemoteTrunk`."""

    async def run(self, pieces: Sequence[Asked]) -> Sequence[Found]:
        """Compute pieces at once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request gets.

    Attributes:
        arrays: by head, as `Trunk.run` gives them for these windows alone.
        device: that computed them.
        queue_s: seconds until its first window was handed to the encoder.
        compute_s: seconds from then until its last one came back.
    """

    arrays: dict[str, Arrays]
    device: str
    queue_s: float
    compute_s: float


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """One head of a request.

    Attributes:
        windows: that it reads, ascending; None: all of them.
        place: where each of them stands in its own order; None: it is this one.
        found: (first window, arrays) of each piece that came back.
    """

    windows: np.ndarray | None
    place: np.ndarray | None
    found: list[tuple[int, Arrays]] = field(default_factory=list)

    @classmethod
    def of(cls, part: Int32s | None) -> _Reader:
        if part is None:
            return cls(windows=None, place=None)
        order = np.argsort(part)
        ascending = bool((order == np.arange(len(order))).all())
        return cls(windows=part[order], place=None if ascending else order)

    def own(self, piece: Piece) -> np.ndarray | None:
        """Those of a piece's windows that it reads, counted from the piece's first; None: all of them."""
        if self.windows is None:
            return None
        begin, end = np.searchsorted(self.windows, (piece.begin, piece.end))
        own: np.ndarray = self.windows[begin:end] - piece.begin
        return own

    def arrays(self) -> Arrays:
        """All that came back, in the head's order."""
        if len(self.found) == 1 and self.place is None:
            return self.found[0][1]
        pieces = [arrays for _, arrays in sorted(self.found, key=lambda each: each[0])]
        values = np.concatenate([each.values for each in pieces])
        counts = None if pieces[0].counts is None else np.concatenate([each.counts for each in pieces])
        if self.place is None:
            return Arrays(values=values, counts=counts)
        back = np.argsort(self.place)
        if counts is None:
            return Arrays(values=values[back])
        begins = np.cumsum(counts, dtype=np.int64) - counts
        return Arrays(values=values[ranges(begins[back], counts[back])], counts=counts[back])


@dataclass(kw_only=True)
class _Call:
    """A request while it is under way."""

    sequences: Sequences
    readers: dict[str, _Reader]
    future: asyncio.Future[None]
    came: float
    left: int
    begun: float = 0.0


_Batch = Sequence[tuple[Piece, _Call]]


class Batcher:
    """Feeds one trunk from one event loop.

    Args:
        trunk: computes.
        budget: tokens that one batch may hold.
        workers: batches under way at once, one for each of the trunk's streams.
        device: that it computes on.
        computed: told of each batch that came back: its requests, its tokens, and the seconds it took.
    """

    def __init__(
        self,
        trunk: Runs,
        *,
        budget: int,
        workers: int,
        device: str = "cpu",
        computed: Callable[[int, int, float], None] = lambda *_: None,
    ) -> None:
        self._trunk, self._device, self._told = trunk, device, computed
        self._queue = FairQueue(budget=budget, streams=workers)
        self._calls: dict[int, _Call] = {}
        self._tickets = count()
        self._free = workers
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def tokens_waiting(self) -> int:
        """Tokens that no batch has taken yet."""
        return self._queue.tokens

    @property
    def requests(self) -> int:
        """Requests that are not answered yet."""
        return len(self._calls)

    async def compute(self, sequences: Sequences, parts: Parts, *, bulk: bool = False) -> Answer:
        """Compute heads over windows, among everybody else's.

        A cancelled call takes what no batch has taken yet out of the queue.

        Args:
            sequences: the windows, one or more.
            parts: head name -> which windows it reads, each at most once; None: all of them.
            bulk: it yields to those that are not.

        Raises:
            Exception: what the trunk raised over this request's windows; nobody else's error.
        """
        loop = asyncio.get_running_loop()
        ticket = next(self._tickets)
        call = _Call(
            sequences=sequences,
            readers={name: _Reader.of(part) for name, part in parts.items()},
            future=loop.create_future(),
            came=loop.time(),
            left=sequences.n_windows,
        )
        self._calls[ticket] = call
        self._queue.add(ticket, sequences.lengths.tolist(), bulk=bulk)
        self._feed()
        try:
            await call.future
        finally:
            self._queue.remove(ticket)
            del self._calls[ticket]
        arrays = {name: reader.arrays() for name, reader in call.readers.items()}
        return Answer(
            arrays=arrays,
            device=self._device,
            queue_s=call.begun - call.came,
            compute_s=loop.time() - call.begun,
        )

    async def close(self) -> None:
        """Wait for the batches under way; requests that wait must have been cancelled before."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    def _feed(self) -> None:
        """Give every free worker a batch."""
        while self._free and (pieces := self._queue.take()):
            self._free -= 1
            loop = asyncio.get_running_loop()
            batch = [(piece, self._calls[piece.ticket]) for piece in pieces]
            batch.sort(key=_tokens, reverse=True)  # the engine's order: it need not move them
            for _, call in batch:
                call.begun = call.begun or loop.time()
            task = loop.create_task(self._run(batch))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _run(self, batch: _Batch) -> None:
        try:
            await self._computed(batch)
        finally:
            self._free += 1
            self._feed()

    async def _computed(self, batch: _Batch) -> None:
        """Compute a batch; if it fails, each request alone, so that one can't spoil the answers of the others."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            found = await self._trunk.run([_asked(*each) for each in batch])
        except Exception as error:  # noqa: BLE001  whatever it is, the callers must hear of it
            if len(batch) > 1:
                for each in batch:
                    await self._computed([each])
                return
            piece, call = batch[0]
            self._queue.remove(piece.ticket)
            if not call.future.done():
                call.future.set_exception(error)
            return
        self._told(len(batch), sum(map(_tokens, batch)), loop.time() - begun)
        for (piece, call), by_head in zip(batch, found, strict=True):
            for name, arrays in by_head.items():
                call.readers[name].found.append((piece.begin, arrays))
            call.left -= piece.end - piece.begin
            if not call.left and not call.future.done():
                call.future.set_result(None)


def _tokens(each: tuple[Piece, _Call]) -> int:
    piece, call = each
    return int(call.sequences.lengths[piece.begin : piece.end].sum())


def _asked(piece: Piece, call: _Call) -> Asked:
    whole = call.sequences
    cut = whole
    if (piece.begin, piece.end) != (0, whole.n_windows):
        cut = whole.select(np.arange(piece.begin, piece.end))
    return Asked(sequences=cut, parts={name: reader.own(piece) for name, reader in call.readers.items()})
