"""The batch job's driver: plan, join Ray, own OUTPUT, let the splits flow, prove that none is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from raybert.cluster import Shares, alive_nodes, call_on_worker, connected, share_out
from raybert.config import HeadSpec, heads_from, known_options
from raybert.data import manifest as manifests
from raybert.data.driver import DriverLock
from raybert.data.manifest import Manifest
from raybert.data.part import QUARANTINE, quarantine_name
from raybert.data.pipeline import build, data_context, notes, start_tries
from raybert.data.plan import Options, Plan, make_plan, progress_of, work_left
from raybert.data.splits import ReadTask
from raybert.data.stages import Job, Note, load_check
from raybert.errors import OutputError, RunFailed, SettingsError

_KEPT = {manifests.NAME, "_raybert/report.html", "_raybert/report.json"}


@dataclass(kw_only=True)
class RunReport:
    """What a run did, kept up to date while it goes on.

    Attributes:
        output: OUTPUT.
        rows_total: rows of the input; for progress.
        total_is_exact: whether footers or a limit told them; else they are estimated.
        rows_before: rows that earlier runs had committed.
        rows: rows committed by this run, quarantined ones included.
        quarantined: of these.
        tokens: by head, before truncation.
        forwarded: tokens that this run put through an encoder: those of heads that share a window count once.
        parts: parts committed by this run.
        splits_left: whether anything was left to do at the start.
        vanished: input files of the manifest that are no longer there; their parts stay.
        started: when the first worker could begin, seconds since the epoch.
        first_commit: of this run; None before it.
        last_commit: likewise.
        first_rows: rows of the part that was committed first.
        first_tokens: its tokens, all heads.
    """

    output: str
    rows_total: int
    total_is_exact: bool
    rows_before: int = 0
    rows: int = 0
    quarantined: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    forwarded: int = 0
    parts: int = 0
    splits_left: bool = True
    vanished: tuple[str, ...] = ()
    started: float = 0.0
    first_commit: float | None = None
    last_commit: float | None = None
    first_rows: int = 0
    first_tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """From the first commit to the last: what lies between, start-up left out. None below two commits."""
        if self.first_commit is None or self.last_commit is None or self.last_commit <= self.first_commit:
            return None
        return (sum(self.tokens.values()) - self.first_tokens) / (self.last_commit - self.first_commit)

    def add(self, note: Note) -> None:
        """Count a committed split."""
        rows = note["ok"] + note["quarantined"]
        tokens = sum(note["tokens"].values())
        if self.first_commit is None or note["committed"] < self.first_commit:
            self.first_commit, self.first_rows, self.first_tokens = note["committed"], rows, tokens
        self.last_commit = max(self.last_commit or 0.0, note["committed"])
        self.rows += rows
        self.quarantined += note["quarantined"]
        self.parts += 1
        self.forwarded += note["forwarded"]
        for name, count in note["tokens"].items():
            self.tokens[name] = self.tokens.get(name, 0) + count


def run(
    heads: Mapping[str, Sequence[Any] | HeadSpec] | Sequence[HeadSpec],
    *,
    input: str,  # noqa: A002  the outer contract's name
    output: str,
    actors: int | tuple[int, int] | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    on_progress: Callable[[RunReport], None] | None = None,
    **options: Any,
) -> RunReport:
    """Run heads over a corpus into a folder of Parquet parts; run it again to continue what was interrupted.

    Args:
        heads: ``{"v": ("demo", "embed")}``, with task options as a third member.
        input: a file, folder or URI.
        output: the run's folder; on a cluster one that every node reaches.
        actors: model actors, or least and most; None fills the cluster.
        cpus_per_actor: CPUs booked for one.
        gpus_per_actor: GPUs booked for one.
        address: of a Ray cluster; None takes RAY_ADDRESS, else a private one.
        on_progress: called with the growing report at the start and after each commit.
        **options: see `raybert.data.plan.Options`.

    Raises:
        UsageError: something that was asked for can't be meant; nothing was written.
        OutputError: OUTPUT can't be written; what was committed stays.
        RunFailed: splits are missing at the end; what was committed stays, the next run tries them again.
    """
    specs = heads_from(heads) if isinstance(heads, Mapping) else tuple(heads)
    plan = make_plan(specs, _options(input, output, options))
    total, exact = plan.rows()
    report = RunReport(output=plan.store.uri, rows_total=total, total_is_exact=exact)
    report.vanished = tuple(file.path for file in plan.diff.vanished)
    if plan.manifest is not None and not plan.diff.changed:
        left, stale = _left(plan, plan.manifest, report)
        if not left:
            report.splits_left = False
            if stale or set(plan.store.list("_raybert/")) - _KEPT:  # a driver was killed after its last commit
                with DriverLock(plan.store):
                    _tidy(plan, stale)
            return report
    plan.store.check_writable()
    lock = DriverLock(plan.store)
    lock.check_free()
    # The lock ends after Ray: when temporaries are swept, nobody writes any more.
    with ExitStack() as held, connected(address):
        shares = share_out(
            alive_nodes(),
            device=(options.get("device") or "auto") if plan.manifest is None else plan.manifest.engine["device"],
            actors=(actors, actors) if isinstance(actors, int) else actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
        )
        engine = _engine(plan, options, shares)
        held.enter_context(lock)
        manifest = _begin(plan, engine, overwrite=bool(options.get("overwrite")))
        left, stale = _left(plan, manifest, report)
        _delete_stale(plan, stale)
        _flow(plan, manifest, left, shares=shares, report=report, lock=lock, on_progress=on_progress or _nothing)
    return report


def _nothing(report: RunReport) -> None:
    """The progress of a run that nobody watches."""


def _options(input_uri: str, output: str, given: Mapping[str, Any]) -> Options:
    known_options("run", given, [name for name in Options.__dataclass_fields__ if name not in ("input", "output")])
    keep = given.get("keep")
    if isinstance(keep, str) and keep != "all":
        raise SettingsError(f"keep {keep!r}: takes 'all' or a list of column names")
    if keep is not None and not isinstance(keep, str):
        given = {**given, "keep": tuple(keep)}
    return Options(input=str(input_uri), output=str(output), **given)


def _engine(plan: Plan, options: Mapping[str, Any], shares: Shares) -> Mapping[str, Any]:
    """What decides bits: the manifest's, or chosen now on a worker of the actors' kind, heads loaded for a proof."""
    if plan.manifest is not None:
        return plan.manifest.engine
    chosen: dict[str, Any] = call_on_worker(
        load_check,
        plan.specs,
        options.get("device") or "auto",
        options.get("dtype") or "auto",
        options.get("budget"),
        cpus=shares.cpus,
        gpus=shares.gpus,
    )
    return chosen


def _begin(plan: Plan, engine: Mapping[str, Any], *, overwrite: bool) -> Manifest:
    """Own OUTPUT from here: clear it if asked, and write the manifest before the first part."""
    before = None if overwrite else manifests.load(plan.store)
    if before != plan.manifest:
        raise SettingsError(f"output {plan.store.uri}: another run changed it meanwhile; run the same command again")
    if overwrite:
        doomed = [*plan.store.list("part-"), *plan.store.list(f"{QUARANTINE}/"), manifests.NAME]
        for name in sorted(doomed, reverse=True):
            plan.store.delete(name)
    manifest = plan.new_manifest(engine)
    if manifest != before:
        manifests.save(plan.store, manifest)
    return manifest


def _left(plan: Plan, manifest: Manifest, report: RunReport) -> tuple[list[ReadTask], list[str]]:
    """Read tasks that are not committed, and parts that belong to older versions of their files."""
    files = [task[0].file for task in plan.tasks.values()]
    progress = progress_of(plan, manifest.shaping, files)
    report.rows_before = sum(end - begin for each in progress.values() for begin, end in each.ranges)
    return work_left(plan, progress), [name for each in progress.values() for name in each.stale]


def _delete_stale(plan: Plan, stale: Sequence[str]) -> None:
    for name in stale:
        plan.store.delete(name)
        plan.store.delete(quarantine_name(name))


def _tidy(plan: Plan, stale: Sequence[str]) -> None:
    """Drop what does not belong to a complete run, such as what a killed run's last worker wrote of an older file."""
    _delete_stale(plan, stale)
    parts = set(plan.store.list("part-"))
    for name in plan.store.list(f"{QUARANTINE}/"):
        if name.removeprefix(f"{QUARANTINE}/") not in parts:
            plan.store.delete(name)


def _flow(
    plan: Plan,
    manifest: Manifest,
    left: Sequence[ReadTask],
    *,
    shares: Shares,
    report: RunReport,
    lock: DriverLock,
    on_progress: Callable[[RunReport], None],
) -> None:
    """Let the splits flow until none is left.

    Raises:
        OutputError: OUTPUT can't be written to.
        RunFailed: splits are missing at the end.
    """
    job = Job(
        heads=plan.specs,
        fingerprints=manifest.fingerprints,
        engine=manifest.engine,
        streams=shares.streams,
        read=plan.spec,
        output=plan.store.uri,
        shaping=manifest.shaping,
        schema=manifest.schema.serialize().to_pybytes(),
        vector_type=plan.settings["vector_type"],
    )
    report.started = time.time()
    on_progress(report)
    errors = []
    with data_context(), closing(_noted(left, job, shares)) as flowing:
        for note in flowing:
            lock.check()
            if "error" in note:
                if note["kind"] == "OutputError":
                    raise OutputError(note["error"])
                errors.append(note["error"])
                continue
            report.add(note)
            on_progress(report)
    _tidy(plan, _prove_complete(plan, manifest, errors))


def _noted(left: Sequence[ReadTask], job: Job, shares: Shares) -> Generator[Note]:
    if left:
        tries = start_tries()
        yield from notes(build(left, job, shares, tries), tries)


def _prove_complete(plan: Plan, manifest: Manifest, errors: Sequence[str]) -> list[str]:
    """Prove that every row is in a part; gives the names of parts that belong to older versions of their files.

    Raises:
        RunFailed: some are not.
    """
    files = [tasks[0].file for tasks in plan.tasks.values()]
    progress = progress_of(plan, manifest.shaping, files)
    missing = [plan.tasks[number][0].file.path for number, each in progress.items() if not each.complete]
    if missing:
        first = errors[0] if errors else f"{missing[0]}: splits are missing"
        more = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
        raise RunFailed(
            f"{first}{more}; {len(missing)} of {len(plan.tasks)} files are incomplete, what was committed stays: "
            "run the same command again"
        )
    return [name for each in progress.values() for name in each.stale]
