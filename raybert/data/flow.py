"""Splits flow until none is left: the passes of a run, the search for rows that fail, and the proof at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from raybert.cluster import Shares
from raybert.data.driver import DriverLock
from raybert.data.history import History
from raybert.data.manifest import Manifest
from raybert.data.metrics import Tags, Watch
from raybert.data.part import QUARANTINE, quarantine_name
from raybert.data.pipeline import SUSPECT, build, data_context, notes, start_tries
from raybert.data.plan import Plan, progress_of, work_left
from raybert.data.quarantine import Limit
from raybert.data.runreport import RunReport
from raybert.data.search import Found, excluded, search
from raybert.data.splits import Excluded, Progress, ReadTask
from raybert.data.stages import Job, Note
from raybert.data.waiting import watched
from raybert.errors import OutputError, RunFailed

_MOST_SEARCHES = 8  # of one split: each one but the last finds a row, or a worker died of something else
_HOPELESS = 16  # so many splits fail and none is committed: what fails is not their rows


def make_job(plan: Plan, manifest: Manifest, shares: Shares, driver: str) -> Job:
    """What the stages have to know; ``driver`` is the token of who owns OUTPUT."""
    return Job(
        heads=plan.specs,
        fingerprints=manifest.fingerprints,
        engine=manifest.engine,
        streams=shares.streams,
        read=plan.spec,
        output=plan.store.uri,
        shaping=manifest.shaping,
        schema=manifest.schema.serialize().to_pybytes(),
        vector_type=plan.settings["vector_type"],
        driver=driver,
    )


@dataclass(kw_only=True)
class Flow:
    """The passes of one run over what is left of its input.

    Attributes:
        plan: of the run.
        manifest: of the run.
        shares: how the stages share the cluster.
        report: kept up to date.
        history: likewise.
        lock: that this process holds on OUTPUT.
        watch: told of what happens to splits.
        on_progress: called with the report after each commit.
        limit: how much may go into the quarantine.
    """

    plan: Plan
    manifest: Manifest
    shares: Shares
    report: RunReport
    history: History
    lock: DriverLock
    watch: Watch
    on_progress: Callable[[RunReport], None]
    limit: Limit | None = None
    _errors: list[str] = field(default_factory=list)
    _excluded: dict[int, tuple[Excluded, ...]] = field(default_factory=dict)
    _searches: dict[tuple[int, int], int] = field(default_factory=dict)

    def run(self, left: Sequence[ReadTask]) -> None:
        """Let the splits flow until none is left.

        Raises:
            OutputError: OUTPUT can't be written to.
            RunFailed: splits are missing at the end, or too many rows are bad.
        """
        job = make_job(self.plan, self.manifest, self.shares, self.lock.token)
        self.report.started = time.time()
        self.on_progress(self.report)
        while left:
            suspects = self._pass(left, job)
            self._judge(ended=False)
            left = self._again([suspect for suspect in suspects if self._searched(suspect, job)])
        tidy(self.plan, self._prove_complete())
        self._judge(ended=True)

    def _pass(self, left: Sequence[ReadTask], job: Job) -> list[Note]:
        """One dataset over the tasks; gives the notes of the splits that were set aside."""
        suspects: list[Note] = []
        waiting = watched(self.shares.cpus, self.shares.gpus)
        with data_context(), waiting, closing(_noted(left, job, self.shares, self.watch.tags)) as flowing:
            for note in flowing:
                self.lock.check()
                if "error" not in note:
                    self.report.add(note)
                    self.history.add(note)
                    self.watch.committed(note)
                    self._judge(ended=False)
                    self.on_progress(self.report)
                elif note["kind"] == OutputError.__name__:
                    raise OutputError(note["error"])
                elif note["kind"] == SUSPECT:
                    suspects.append(note)
                    self.watch.set_aside(note)
                    if len(suspects) >= _HOPELESS and not self.report.parts:
                        place = f"{note['file']['path']}, row {note['begin']} on"
                        raise RunFailed(f"{place}: {note['error']}; so it went with the first {_HOPELESS} splits")
                else:
                    self._errors.append(note["error"])
                    self.watch.failed(note)
        return suspects

    def _judge(self, *, ended: bool) -> None:
        if self.limit is not None:
            self.limit.check(self.report, ended=ended)

    def _searched(self, suspect: Note, job: Job) -> bool:
        """Look for the rows that are to blame; whether their split is worth another try."""
        number, begin = suspect["file"]["number"], suspect["begin"]
        key = (number, begin)
        self._searches[key] = self._searches.get(key, 0) + 1
        task = self._task_of(number, begin)
        end = suspect.get("end") or begin + self.plan.spec.split_rows
        end = end if task.end is None else min(end, task.end)
        found = Found(rows={}, probes=0)
        if self._searches[key] <= _MOST_SEARCHES:
            found = search(self._without(task), begin, end, job, self.shares)
        self._excluded[number] = tuple(
            sorted((*self._excluded.get(number, ()), *excluded(found)), key=lambda each: each.row)
        )
        path, why = suspect["file"]["path"], suspect["error"]
        rows = [{"row": each.row, "reason": each.reason} for each in excluded(found)]
        self.history.session.searches.append(
            {"path": path, "begin": begin, "end": end, "why": why, "probes": found.probes, "found": rows}
        )
        worth = bool(found.rows) or (found.sound and self._searches[key] == 1)
        if not worth:
            self._errors.append(
                f"{path}, rows {begin} to {end}: {why}, and no few rows are to blame; given up for this run: pass a "
                "smaller --split-rows if memory is short"
            )
            self.watch.given_up(path, begin, end, self._errors[-1])
        return worth

    def _task_of(self, number: int, row: int) -> ReadTask:
        """The planned read task of a row."""
        tasks = self.plan.tasks[number]
        return next(task for task in tasks if task.end is None or row < task.end or task is tasks[-1])

    def _without(self, task: ReadTask) -> ReadTask:
        """The task without the rows that were found to fail."""
        return replace(task, excluded=self._excluded.get(task.file.number, ()))

    def _again(self, suspects: Sequence[Note]) -> list[ReadTask]:
        """What is left of the read tasks that these splits belong to."""
        if not suspects:
            return []
        wanted = [self._task_of(each["file"]["number"], each["begin"]) for each in suspects]
        left = work_left(self.plan, self._progress())
        return [self._without(task) for task in left if self._task_of(task.file.number, task.begin) in wanted]

    def _progress(self) -> Mapping[int, Progress]:
        files = [tasks[0].file for tasks in self.plan.tasks.values()]
        return progress_of(self.plan, self.manifest.shaping, files)

    def _prove_complete(self) -> list[str]:
        """Prove that every row is in a part; gives the names of parts that belong to older versions of their files.

        Raises:
            RunFailed: some are not.
        """
        progress, errors = self._progress(), self._errors
        missing = [self.plan.tasks[number][0].file.path for number, each in progress.items() if not each.complete]
        if missing:
            first = errors[0] if errors else f"{missing[0]}: splits are missing"
            more = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
            raise RunFailed(
                f"{first}{more}; {len(missing)} of {len(self.plan.tasks)} files are incomplete, what was committed "
                "stays: run the same command again"
            )
        return [name for each in progress.values() for name in each.stale]


def _noted(left: Sequence[ReadTask], job: Job, shares: Shares, tags: Tags | None) -> Generator[Note]:
    tries = start_tries(tags)
    yield from notes(build(left, job, shares, tries, tags), tries)


def delete_parts(plan: Plan, names: Sequence[str]) -> None:
    """Delete parts, each before its quarantine: a part that is there proves that its quarantine is there too."""
    for name in names:
        plan.store.delete(name)
        plan.store.delete(quarantine_name(name))


def tidy(plan: Plan, stale: Sequence[str]) -> None:
    """Drop what does not belong to a complete run, such as what a killed run's last worker wrote of an older file."""
    delete_parts(plan, stale)
    parts = set(plan.store.list("part-"))
    for name in plan.store.list(f"{QUARANTINE}/"):
        if name.removeprefix(f"{QUARANTINE}/") not in parts:
            plan.store.delete(name)
