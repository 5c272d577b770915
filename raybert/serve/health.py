"""Whether an encoder still computes: the age of its last forward, and one probe for all who ask.

A process that answers may have lost its GPU, and a forward may hang for ever: only a forward says more. Batches under
way are probes as good as any, so that a busy encoder is asked for nothing; an idle one computes one short window.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

FRESH_S = 2.0
"""So old may the forward be that health is told by."""
HANGS_S = 30.0
"""A forward that has not come back by then won't: the longest batch takes a few seconds."""


class Unhealthy(Exception):
    """An encoder does not compute; the message says what happened."""


class Pulse:
    """One encoder's health.

    Args:
        forward: computes one short window, ahead of all that wait.
        longest_s: seconds that the oldest forward is under way; one of several may hang while others come back.
        hangs_s: seconds after which a forward is given up.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        forward: Callable[[], Coroutine[Any, Any, Any]],
        *,
        longest_s: Callable[[], float] = lambda: 0.0,
        hangs_s: float = HANGS_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward, self._longest_s = forward, longest_s
        self._hangs_s, self._clock = hangs_s, clock
        self._last = float("-inf")
        self._probe: asyncio.Task[Any] | None = None
        self._begun = 0.0

    def beat(self) -> None:
        """A forward came back."""
        self._last = self._clock()

    async def check(self) -> None:
        """Return if a forward came back lately, or comes back now.

        Raises:
            Unhealthy: it failed, or it hangs.
        """
        if (seconds := self._longest_s()) > self._hangs_s:
            raise Unhealthy(f"a forward hangs since {seconds:.0f} s")
        if self._clock() - self._last <= FRESH_S:
            return
        if self._probe is None or self._probe.done():
            self._begun = self._clock()
            self._probe = asyncio.create_task(self._forward())
            self._probe.add_done_callback(self._came_back)
        left_s = max(0.0, self._begun + self._hangs_s - self._clock())
        done, _ = await asyncio.wait((self._probe,), timeout=left_s)
        if not done:
            raise Unhealthy(f"a forward hangs since {self._clock() - self._begun:.0f} s")
        if error := self._probe.exception():
            raise Unhealthy(f"a forward failed: {type(error).__name__}: {error}") from error

    def _came_back(self, probe: asyncio.Task[Any]) -> None:
        with suppress(asyncio.CancelledError):
            if probe.exception() is None:
                self.beat()

    def close(self) -> None:
        """Wait for no probe any more."""
        if self._probe is not None:
            self._probe.cancel()
