"""How much a service takes on: limits of one request, and a bound for all that are under way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field

from raybert.serve.faults import Fault, ServiceError


class Limits(BaseModel):
    """Limits of one ingress.

    Attributes:
        max_body_bytes: of a request.
        max_items: texts, pairs or lists of ids in one request.
        max_waiting_tokens: of all requests under way; over it they are refused with 429.
        deadline_s: seconds from a request's first byte to its answer; a client's ``x-request-timeout-seconds`` may
            shorten it.
        body_s: seconds that a request's body may take to arrive.
        bulk_tokens: a request of more tokens lets smaller ones go first.
        auto_truncate: whether too long a text is cut where the request does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int = Field(default=16 << 20, ge=1)
    max_items: int = Field(default=2048, ge=1)
    max_waiting_tokens: int = Field(default=262_144, ge=1)
    deadline_s: float = Field(default=60.0, gt=0)
    body_s: float = Field(default=20.0, gt=0)
    bulk_tokens: int = Field(default=4096, ge=1)
    auto_truncate: bool = True


class Room:
    """What one request has of the room behind a `Gate`."""

    def __init__(self, gate: Gate, tokens: int) -> None:
        self._gate, self.tokens = gate, tokens

    def know(self, tokens: int) -> bool:
        """What was a guess is known; returns whether it is so much that it must wait for smaller requests.

        Raises:
            ServiceError: there is no room for so many.
        """
        self._gate.resize(self, tokens)
        return self._gate.is_bulk(tokens)


class Gate:
    """Bounds the tokens under way, and knows how fast they go.

    A request that finds nothing under way is let in whatever its size: the limits of one request are others.
    """

    def __init__(self, limits: Limits) -> None:
        self._most, self._bulk_from = limits.max_waiting_tokens, limits.bulk_tokens
        self._tokens = 0
        self._rate = 0.0

    @property
    def tokens(self) -> int:
        """Under way."""
        return self._tokens

    def is_bulk(self, tokens: int) -> bool:
        """Whether a request of so many yields to smaller ones."""
        return tokens > self._bulk_from

    def check(self) -> None:
        """Refuse what comes while there is no room at all, before any work is spent on it.

        Raises:
            ServiceError: there is none; with the seconds after which there should be.
        """
        if self._tokens >= self._most:
            raise self._full(f"{self._tokens} tokens are under way, of {self._most}")

    @contextmanager
    def held(self, guess: int) -> Iterator[Room]:
        """Hold room for about so many tokens, until the block ends.

        Raises:
            ServiceError: there is no room; with the seconds after which there should be.
        """
        room = Room(self, 0)
        self.resize(room, guess)
        try:
            yield room
        finally:
            self._tokens -= room.tokens

    def resize(self, room: Room, tokens: int) -> None:
        """Give a request room for another number of tokens.

        Raises:
            ServiceError: there is none; it keeps what it has.
        """
        others = self._tokens - room.tokens
        if others and others + tokens > self._most:
            raise self._full(f"{others} tokens are under way and {tokens} more exceed {self._most}")
        self._tokens, room.tokens = others + tokens, tokens

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from an answered request how many tokens a second the service gets through."""
        if seconds > 0:
            # All that was under way beside it went through in that time too, roughly.
            rate = max(tokens, self._tokens) / seconds
            self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate

    def _full(self, why: str) -> ServiceError:
        wait_s = min(60, max(1, math.ceil(self._tokens / self._rate))) if self._rate else 1
        return ServiceError(Fault.BUSY, f"{why}; try again in {wait_s} s", retry_after_s=wait_s)
