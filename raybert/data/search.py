"""The rows that fail: a split whose workers die, or whose stages raise, is computed in halves until they are found.

A row that is found goes into the quarantine, and its split is computed again as a whole without it: what the part holds
depends on the split and on the rows left out, not on how they were found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raybert.cluster import Shares, cause_of, first_line
from raybert.data.splits import Excluded, ReadTask
from raybert.data.stages import Job, ModelStage, compute_split
from raybert.errors import InputError, RaybertError, RunFailed

MOST_ROWS = 16
"""A split with more rows that fail fails for another reason than its rows."""

Failure = tuple[str, str]
"""Reason and detail, as the quarantine has them."""

DIED: Failure = ("killed_worker", "a worker died each time it computed this row")


class TooMany(Exception):
    """More than `MOST_ROWS` rows of a split fail."""


def failing_rows(
    begin: int, end: int, fails: Callable[[int, int], Failure | None], most: int = MOST_ROWS
) -> dict[int, Failure]:
    """The rows of ``[begin, end)`` that fail by themselves, found by halving.

    Rows that fail only together are not found. Where the first half of a failing range is sound, the second half is not
    computed as a whole: each row found has failed alone, so that nothing rests on the conclusion.

    Args:
        begin: first row of a range that failed.
        end: its end.
        fails: computes the rows of a range; how that failed, None if it went well.
        most: as many may fail.

    Raises:
        TooMany: more than ``most`` do.
    """
    found: dict[int, Failure] = {}

    def look(low: int, high: int) -> None:
        """Search a range that failed, or that must hold a row that does."""
        if high - low == 1:
            if (failure := fails(low, high)) is not None:
                found[low] = failure
                if len(found) > most:
                    raise TooMany
            return
        middle = (low + high) // 2
        if fails(low, middle) is None:
            look(middle, high)
            return
        look(low, middle)
        if fails(middle, high) is not None:
            look(middle, high)

    look(begin, end)
    return found


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search brought to light.

    Attributes:
        rows: rows that fail alone, and how.
        probes: how many ranges were computed.
        sound: the whole split went well: what had failed was not its rows.
    """

    rows: Mapping[int, Failure]
    probes: int
    sound: bool = False


class Prober:
    """An actor that computes a range of rows through every stage, and writes nothing."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._model = ModelStage(job.heads, job.fingerprints, job.engine, job.streams, job.pairs)

    def ready(self) -> bool:
        """The model is loaded."""
        return True

    def probe(self, task: ReadTask) -> Failure | None:
        """How computing these rows fails, if it does; a fault of their file is none of theirs."""
        try:
            compute_split(task, self._job, self._model)
        except InputError:
            return None
        except RaybertError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a row causes is what is looked for
            return failure_of(error)
        return None


def failure_of(error: BaseException) -> Failure:
    """The typed reason of what a stage raised."""
    from raybert.engine import is_out_of_memory

    if is_out_of_memory(error):
        return "out_of_memory", "computing this row alone takes more memory than there is"
    return "failed", f"{type(error).__name__}: {first_line(error)}"


class Probes:
    """Ranges of one split, computed in workers of the model actors' kind; one that dies is replaced."""

    def __init__(self, task: ReadTask, job: Job, shares: Shares) -> None:
        self._task, self._job, self._shares = task, job, shares
        self._actor: Any = None
        self.count = 0

    def __call__(self, begin: int, end: int) -> Failure | None:
        """How the rows fail, if they do.

        Raises:
            RaybertError: a worker can't be started, or can't do what the run's settings say.
        """
        import ray

        self.count += 1
        try:
            if self._actor is None:
                self._actor = self._started()
            task = replace(self._task, begin=begin, end=end, done=())
            failure: Failure | None = ray.get(self._actor.probe.remote(task))
        except ray.exceptions.RayActorError:
            self._actor = None
            return DIED
        except ray.exceptions.RayError as error:
            raise (cause_of(error) or RunFailed(f"Ray: {first_line(error)}")) from error
        return failure

    def _started(self) -> Any:
        import ray

        prober = ray.remote(num_cpus=self._shares.cpus, num_gpus=self._shares.gpus, max_restarts=0)(Prober)
        actor = prober.remote(self._job)
        try:
            ray.get(actor.ready.remote())
        except ray.exceptions.RayError as error:
            raise (cause_of(error) or RunFailed(f"Ray: {first_line(error)}; run again")) from error
        return actor

    def close(self) -> None:
        """End the worker."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


def search(task: ReadTask, begin: int, end: int, job: Job, shares: Shares) -> Found:
    """Find the rows of a split that fail.

    Args:
        task: the read task that it belongs to, with the rows that were found before.
        begin: its first row.
        end: its end.
        job: of the run.
        shares: of the run.

    Raises:
        RaybertError: see `Probes`.
    """
    probes = Probes(task, job, shares)
    try:
        if probes(begin, end) is None:
            return Found(rows={}, probes=probes.count, sound=True)
        return Found(rows=failing_rows(begin, end, probes), probes=probes.count)
    except TooMany:
        return Found(rows={}, probes=probes.count)
    finally:
        probes.close()


def excluded(found: Found) -> tuple[Excluded, ...]:
    """The rows as a read task leaves them out."""
    rows = sorted(found.rows.items())
    return tuple(Excluded(row=row, reason=reason, detail=detail) for row, (reason, detail) in rows)
