"""Memory that was freed goes back to the system.

glibc keeps it for the next request of its size, and after a while holds pieces of all sizes. Given back every ten
seconds, a service over texts between 1 and 20,000 tokens stays level (tests/soak/test_service.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import sys

EVERY_S = 10.0


async def keep_giving_back() -> None:
    """Give back what is free, until cancelled; nothing where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    while trim is not None:
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(trim, 0)
