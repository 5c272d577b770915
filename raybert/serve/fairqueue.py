"""Whose windows are computed next: a pure function of what was asked and in which order, without clock or threads.

Weighted fair queueing (Demers, Keshav and Shenker 1989); the windows of a request take the place of a flow's packets,
and their tokens that of bytes. A request's first window gets the queue's *virtual time* as its tag, each further one
the tag before it and the tokens of the window before it; the lowest tag is next. Virtual time runs with the tokens
that are handed out, divided by the requests that share them. So short requests are served in the order in which they
came, a long one goes on beside them at its fair share, and no stream of new requests holds anybody off for ever:
their tags begin at a virtual time that goes on.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from raybert.errors import SettingsError

LOOK_AHEAD = 64
"""Requests that are looked through for a window which still fits into a batch."""
BULK_SHARE = 1 / 8
"""What a bulk request gets beside an interactive one."""
LEAST_SHARED = 160
"""Tokens of a batch that are not divided among streams: below, an encoder's overhead would tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Consecutive windows of one request.

    Attributes:
        ticket: of the request.
        begin: its first window.
        end: behind its last one.
    """

    ticket: int
    begin: int
    end: int


@dataclass(kw_only=True, slots=True)
class _Request:
    lengths: Sequence[int]
    share: float
    tag: float
    done: int = 0
    left_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.left_tokens = sum(self.lengths)


class FairQueue:
    """Windows that wait for a forward pass.

    Args:
        budget: tokens that one batch may hold; a longer window is a batch of its own.
        streams: that compute batches side by side.

    Raises:
        SettingsError: the budget holds nothing.
    """

    def __init__(self, *, budget: int, streams: int = 1) -> None:
        if budget < 1:
            raise SettingsError(f"budget: {budget} tokens hold nothing; give 1 or more")
        self._budget, self._streams = budget, streams
        self._requests: dict[int, _Request] = {}
        self._heap: list[tuple[float, int]] = []  # (tag, ticket); those of removed requests are skipped
        self._virtual_time = 0.0
        self._shares = 0.0
        self._tokens = 0

    def __len__(self) -> int:
        """Requests with windows that wait."""
        return len(self._requests)

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def add(self, ticket: int, lengths: Sequence[int], *, bulk: bool = False) -> None:
        """Let a request wait.

        Args:
            ticket: its number, larger than all before it.
            lengths: tokens of each of its windows, one window or more, none empty.
            bulk: it yields to those that are not.
        """
        assert lengths
        share = BULK_SHARE if bulk else 1.0
        # A bulk request begins behind what an interactive one of its size would be through with.
        tag = self._virtual_time + (lengths[0] / share if bulk else 0.0)
        request = _Request(lengths=lengths, share=share, tag=tag)
        self._requests[ticket] = request
        self._shares += share
        self._tokens += request.left_tokens
        heapq.heappush(self._heap, (tag, ticket))

    def remove(self, ticket: int) -> None:
        """Let nothing more of a request be computed; one that is through, or was never there, is no error."""
        request = self._requests.pop(ticket, None)
        if request is not None:
            self._shares -= request.share
            self._tokens -= request.left_tokens
            self._settle()

    def take(self) -> list[Piece]:
        """The next batch: at most `budget` tokens, or one longer window; empty if nothing waits.

        Each stream gets an equal part of what waits, from `LEAST_SHARED` tokens on, so that one does not compute all
        that came in a burst while another is about to be free.

        The window that is next always goes. One that does not fit beside those before it leads the next batch, and
        shorter ones of up to `LOOK_AHEAD` requests behind it may fill this one: nobody is overtaken in two batches.
        """
        taken: dict[int, tuple[int, int]] = {}
        room = min(self._budget, max(LEAST_SHARED, -(-self._tokens // self._streams)))
        aside: list[tuple[float, int]] = []
        while self._heap and room > 0 and len(aside) < LOOK_AHEAD:
            tag, ticket = heapq.heappop(self._heap)
            request = self._requests.get(ticket)
            if request is None:
                continue
            cost = request.lengths[request.done]
            if taken and cost > room:
                aside.append((tag, ticket))
                continue
            room -= cost
            begin, _ = taken.get(ticket, (request.done, 0))
            taken[ticket] = (begin, request.done + 1)
            self._advance(ticket, request, cost)
        for entry in aside:
            heapq.heappush(self._heap, entry)
        self._settle()
        return [Piece(ticket=ticket, begin=begin, end=end) for ticket, (begin, end) in taken.items()]

    def _advance(self, ticket: int, request: _Request, cost: int) -> None:
        self._virtual_time += cost / self._shares
        self._tokens -= cost
        request.done += 1
        request.left_tokens -= cost
        if request.done == len(request.lengths):
            del self._requests[ticket]
            self._shares -= request.share
        else:
            request.tag += cost / request.share
            heapq.heappush(self._heap, (request.tag, ticket))

    def _settle(self) -> None:
        """With nobody waiting, time begins anew: numbers stay small, and no rounding adds up."""
        if not self._requests:
            self._heap.clear()
            self._virtual_time = self._shares = 0.0
