"""Memory of a service: what was there at its start is not looked through again, what was freed goes back.

An allocator keeps it for the next request of its size, and after a while holds pieces of all sizes. Given back every
ten seconds, a service over texts between 1 and 20,000 tokens stays level (tests/soak/test_service.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

EVERY_S = 10.0


def keep_what_is_there() -> None:
    """Take all objects that exist out of Python's search for garbage.

    A process with Ray and torch has hundreds of thousands, none of which goes away, and nobody gets an answer while
    they are looked through. Of those that come, the young are looked through when there are 10,000, as in Ray Serve's
    proxies, not 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, *gc.get_threshold()[1:])


_ALL_ARENAS = b"arena.4096.purge"  # jemalloc's MALLCTL_ARENAS_ALL


def give_back() -> None:
    """Give back what is free; nothing where memory comes neither from jemalloc nor from glibc."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallctl"):
        library.mallctl(_ALL_ARENAS, None, None, None, ctypes.c_size_t(0))
    elif hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


async def keep_giving_back() -> None:
    """Give back what is free, until cancelled."""
    while True:
        await asyncio.sleep(EVERY_S)
        await asyncio.to_thread(give_back)
