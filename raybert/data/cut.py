"""Where splits begin and end, from row sizes alone: pure, and the same however the rows arrive in batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raybert.data.splits import ReadTask, missing_ranges


@dataclass(frozen=True, slots=True)
class Step:
    """Rows ``[start, stop)`` of a batch that go to one split.

    Attributes:
        start: first row, counted in the batch.
        stop: end, counted in the batch.
        row: number of the first row in the file.
        opens: these rows are the first of a new split; the one before is full.
    """

    start: int
    stop: int
    row: int
    opens: bool


class Cutter:
    """Cuts the rows of one read task greedily: a row joins the open split while rows and bytes allow it.

    Feed batches in the file's order; rows that the task does not want are passed over. A split also ends
    where the wanted rows do: at the task's end and at each committed range.

    Attributes:
        row: number of the next row in the file.
    """

    def __init__(self, task: ReadTask, *, split_rows: int, split_bytes: int) -> None:
        self.row = 0
        self._wanted = missing_ranges(task.begin, task.end, task.done)
        self._closes_file = task.closes_file
        self._max_rows = split_rows
        self._max_bytes = split_bytes
        self._open_rows = 0
        self._open_bytes = 0

    @property
    def finished(self) -> bool:
        """Every wanted row has been seen; the rest of the file need not be read."""
        return not self._wanted

    @property
    def short(self) -> int | None:
        """If the file ended here: the first wanted row that it does not have, or None if all is well.

        A task that closes its file may meet the end anywhere after its last first row, and in an empty file.
        """
        if not self._wanted:
            return None
        begin = self._wanted[0][0]
        if self._closes_file and len(self._wanted) == 1 and (self.row > begin or begin == self.row == 0):
            return None
        return max(begin, self.row)

    def steps(self, first: int, sizes: npt.NDArray[np.int64]) -> list[Step]:
        """Cut one batch.

        Args:
            first: number of the batch's first row in the file; rows left out before it are unwanted.
            sizes: [R] bytes of each row.
        """
        assert first >= self.row, (first, self.row)
        self.row = first
        upto = np.concatenate(([0], np.cumsum(sizes)))
        steps = []
        at, count = 0, len(sizes)
        while at < count and self._wanted:
            begin, end = self._wanted[0]
            if self.row < begin:
                skipped = min(count - at, begin - self.row)
                at, self.row = at + skipped, self.row + skipped
                continue
            taken = self._room(upto, at, None if end is None else end - self.row)
            if taken:
                steps.append(Step(at, at + taken, self.row, self._open_rows == 0))
                self._open_rows += taken
                self._open_bytes += int(upto[at + taken] - upto[at])
                at, self.row = at + taken, self.row + taken
            if taken == 0 or self._open_rows == self._max_rows or self.row == end:
                self._open_rows = self._open_bytes = 0
            if self.row == end:
                self._wanted.pop(0)
        return steps

    def _room(self, upto: npt.NDArray[np.int64], at: int, wanted: int | None) -> int:
        """How many rows of the batch, from ``at`` on, the open split takes; an empty one at least one."""
        limit = upto[at] + self._max_bytes - self._open_bytes
        by_bytes = int(np.searchsorted(upto, limit, side="right")) - 1 - at
        least = 1 if self._open_rows == 0 else 0
        rows = min(max(by_bytes, least), self._max_rows - self._open_rows, len(upto) - 1 - at)
        return rows if wanted is None else min(rows, wanted)
