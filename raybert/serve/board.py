"""What one process of a service knows of itself and tells the others: its meters, and where they are added up."""

from __future__ import annotations

import asyncio
import secrets
from typing import Protocol

from raybert.serve.metrics import PUSH_EVERY_S, Ledger, Meters, Snapshot


class AddsUp(Protocol):
    """A `Ledger`, or one in another process."""

    async def push(self, source: str, snapshot: Snapshot) -> None:
        """As `Ledger.push`."""
        ...

    async def text(self) -> bytes:
        """As `Ledger.text`."""
        ...


class Board:
    """A process's meters, sent to the ledger once a second while `keep_telling` runs, and at each scrape.

    Args:
        ledger: adds up; one of its own where the service is one process.
    """

    def __init__(self, ledger: AddsUp | None = None) -> None:
        self.meters = Meters()
        self._ledger = ledger or Ledger()
        self._source = secrets.token_hex(8)

    async def tell(self) -> None:
        """Send what was counted so far."""
        await self._ledger.push(self._source, self.meters.snapshot())

    async def keep_telling(self) -> None:
        """Tell once a second, until cancelled; a ledger that is just being replaced is told the next time."""
        while True:
            try:
                await self.tell()
            except Exception:  # noqa: BLE001  whatever Ray raises: counting goes on, and sums are sent again
                await asyncio.sleep(PUSH_EVERY_S)
            await asyncio.sleep(PUSH_EVERY_S)

    async def scrape(self) -> bytes:
        """What the whole service counted, as Prometheus reads it."""
        await self.tell()
        return await self._ledger.text()
