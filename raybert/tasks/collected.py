"""One head's numbers, collected as batches bring them and put in order in one place."""

from __future__ import annotations

import numpy as np

from raybert.tasks import Task
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Int32s, ranges


class Collected:
    """One head's numbers as the batches bring them, put into its order of its windows at the end.

    Args:
        task: the head.
        n_windows: of all heads.
        part: its windows among them; None: all.
    """

    def __init__(self, task: Task, n_windows: int, part: Int32s | None) -> None:
        self._task = task
        self._size = n_windows if part is None else len(part)
        self._place: np.ndarray | None = None
        if part is not None:
            self._place = np.full(n_windows, -1, np.int64)
            self._place[part] = np.arange(len(part))
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []

    def own(self, index: np.ndarray) -> np.ndarray:
        """Which of the windows ``index`` are this head's, as places in ``index``."""
        return np.arange(len(index)) if self._place is None else np.flatnonzero(self._place[index] >= 0)

    def add(self, index: np.ndarray, values: np.ndarray, counts: np.ndarray | None) -> None:
        """Take the numbers of its windows ``index``, with the rows that each has (None: one)."""
        self._found.append((index if self._place is None else self._place[index], values, counts))

    def arrays(self) -> Arrays:
        """All of them in order."""
        if not self._found:
            counts = None if self._task.one_row else np.zeros(self._size, np.int32)
            return Arrays(values=np.empty((0, self._task.width), np.float32), counts=counts)
        width = self._found[0][1].shape[1]
        if self._task.one_row:
            values = np.empty((self._size, width), np.float32)
            while self._found:  # each batch is let go as soon as it is copied
                places, found, _ = self._found.pop()
                values[places] = found
            return Arrays(values=values)
        counts = np.zeros(self._size, np.int32)
        for places, _, own in self._found:
            assert own is not None
            counts[places] = own
        begins = np.cumsum(counts, dtype=np.int64) - counts
        values = np.empty((int(counts.sum(dtype=np.int64)), width), np.float32)
        while self._found:
            places, found, _ = self._found.pop()
            values[ranges(begins[places], counts[places])] = found
        return Arrays(values=values, counts=counts)
