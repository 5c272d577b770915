"""What is counted and told of requests, a moment after they are answered.

Done together, it finds in the processor's caches what the one before it needed: while a model computes, little of an
event loop's own stays there from one request to the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

_AFTER_S = 0.05  # at 400 requests a second twenty at once, about a millisecond in which nobody is answered


class Afterwards:
    """Work for later, from one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        """Do it with whatever comes within a moment."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            self._later()

    def now(self) -> None:
        """Do all that waits; what is behind work that fails waits for the next moment."""
        try:
            while self._waiting:
                self._waiting.popleft()()
        finally:
            if self._waiting:
                self._later()

    def _later(self) -> None:
        asyncio.get_running_loop().call_later(_AFTER_S, self.now)
