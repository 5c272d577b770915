"""Mutual exclusion in an object store, for the moments in which a driver reads and writes ``driver.json``.

An object store has no locks, and pyarrow offers no conditional writes; but a listing shows every object whose write
was acknowledged before (S3, GCS, MinIO). So each contender writes a claim of its own, then lists all claims. Whoever
sees its own alone is inside: anyone who writes later sees this one. Whoever sees another withdraws, waits for a random
while and tries again. No clock is involved; two are never inside together.

    A writes | A lists: alone, inside            |  A deletes
             |        B writes | B lists: A, withdraws      B writes | B lists: alone, inside

A claim whose writer was killed would stand for ever. It holds what tells whether its writer lives, for those who can
look; the others remove one that they saw unchanged for `STALE_S`: inside, nobody takes a tenth of that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from raybert.data.store import Store
from raybert.errors import SettingsError

FOLDER = "_raybert/claims"
STALE_S = 60.0
_WAIT_S = 0.2  # about what it takes to write, list and withdraw
_LONGEST_WAIT_S = 5.0


class Claim:
    """Context manager: inside, no other claim of this folder is.

    Args:
        store: an object store.
        token: this process's own word.
        content: of its claims.
        is_dead: whether the writer of such a content surely lives no more.
        patience_s: seconds to wait for others, beside those that it takes to find a dead one's claim stale.
        stale_s: seconds after which an unchanged claim of another counts as a dead one's.
    """

    def __init__(
        self,
        store: Store,
        token: str,
        content: bytes,
        is_dead: Callable[[bytes], bool],
        *,
        patience_s: float,
        stale_s: float = STALE_S,
    ) -> None:
        self._store = store
        self._token = token
        self._content, self._is_dead = content, is_dead
        self._patience_s, self._stale_s = patience_s, stale_s
        self._attempt = 0
        self._first_seen: dict[str, float] = {}

    @property
    def _name(self) -> str:
        """A new name for each attempt: others tell by it that this process still lives."""
        return f"{FOLDER}/{self._token}-{self._attempt}"

    def __enter__(self) -> Claim:
        """Wait for the others.

        Raises:
            SettingsError: they held on for too long.
            OutputError: the store refused.
        """
        give_up = time.monotonic() + self._patience_s + self._stale_s
        while True:
            self._attempt += 1
            try:
                self._store.write(self._name, self._content)
                others = [name for name in self._store.list(f"{FOLDER}/") if name != self._name]
                if not others:
                    return self
            except BaseException:
                self._withdraw()
                raise
            self._withdraw()
            if time.monotonic() > give_up:
                place = self._store.place(others[0])
                raise SettingsError(f"{place}: another driver holds on; if no raybert run writes here, delete it")
            self._remove_dead(others)
            longest = min(_LONGEST_WAIT_S, _WAIT_S * 2 ** min(self._attempt, 10))
            time.sleep(random.uniform(0, longest))  # noqa: S311  no secret

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._withdraw()

    def _withdraw(self) -> None:
        self._store.delete(self._name)

    def _remove_dead(self, others: list[str]) -> None:
        now = time.monotonic()
        self._first_seen = {name: self._first_seen.get(name, now) for name in others}
        for name, seen in self._first_seen.items():
            with suppress(FileNotFoundError):  # withdrawn meanwhile
                if now - seen > self._stale_s or self._is_dead(self._store.read(name)):
                    self._store.delete(name)
