"""The batch job's driver: plan, join Ray, own OUTPUT, let the splits flow, prove that none is missing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from os import PathLike
from threading import Event
from typing import Any

from raybert.cluster import Shares, alive_nodes, call_on_worker, connected, share_out
from raybert.config import HeadSpec, heads_from, known_options
from raybert.data import history as histories
from raybert.data import manifest as manifests
from raybert.data.calibrate import Forecast
from raybert.data.driver import DriverLock
from raybert.data.flow import Flow, delete_parts, make_job, tidy
from raybert.data.foretell import PLAN_S, RUN_S, Preview, adapt, cluster_cpus, is_worth_it, measure, split_count
from raybert.data.history import History, Session
from raybert.data.manifest import Manifest
from raybert.data.metrics import session, tell_complete
from raybert.data.part import QUARANTINE
from raybert.data.plan import Options, Plan, make_plan, orphans, progress_of, work_left
from raybert.data.quarantine import Limit, parts_with, quarantined_rows, retried_reasons
from raybert.data.runreport import RunReport
from raybert.data.splits import ReadTask
from raybert.data.stages import load_check
from raybert.data.waiting import watched
from raybert.errors import OutputError, RaybertError, SettingsError

_KEPT = {manifests.NAME, histories.NAME, "_raybert/report.html", "_raybert/report.json"}


def run(
    heads: Mapping[str, Sequence[Any] | HeadSpec] | Sequence[HeadSpec],
    *,
    input: str | Sequence[str],  # noqa: A002  the outer contract's name
    output: str,
    actors: int | tuple[int, int] | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    max_quarantine: str | float | None = None,
    retry_quarantine: bool = False,
    retry_reasons: Collection[str] = (),
    metrics: bool = False,
    on_progress: Callable[[RunReport], None] | None = None,
    **options: Any,
) -> RunReport:
    """Run heads over a corpus into a folder of Parquet parts; run it again to continue what was interrupted.

    Args:
        heads: ``{"v": ("demo", "embed")}``, with task options as a third member.
        input: a file, folder, URI or pattern (``in/**/*.jsonl.gz``), or several of them.
        output: the run's folder; on a cluster one that every node reaches.
        actors: model actors, or least and most; None fills the cluster.
        cpus_per_actor: CPUs booked for one.
        gpus_per_actor: GPUs booked for one.
        address: of a Ray cluster; None takes RAY_ADDRESS, else a private one.
        max_quarantine: stop when more rows are bad: a share such as ``"1%"``, or a number of rows.
        retry_quarantine: compute splits again whose quarantine holds rows that a retry could heal.
        retry_reasons: reasons that are to be retried beside those.
        metrics: count rows, tokens and seconds in Ray's own metrics, which its nodes serve to Prometheus.
        on_progress: called with the growing report at the start and after each commit.
        **options: see `raybert.data.plan.Options`.

    Raises:
        UsageError: something that was asked for can't be meant; nothing was written.
        OutputError: OUTPUT can't be written; what was committed stays.
        RunFailed: splits are missing at the end; what was committed stays, the next run tries them again.
    """
    limit = None if max_quarantine is None else Limit.parse(max_quarantine)
    retried = retried_reasons(retry_reasons) if retry_quarantine or retry_reasons else frozenset()
    asked, plan, report = _planned(heads, input, output, options)
    again = parts_with(plan.store, retried) if plan.manifest is not None and retried else []
    if plan.manifest is not None and not again and _is_complete(plan, plan.manifest, report):
        _check_quarantine(limit, plan, report)
        tell_complete(report, plan.store.place(""))
        return report
    plan.store.check_writable()
    lock = DriverLock(plan.store)
    lock.check_free()
    names = [spec.name for spec in plan.specs]
    # The lock ends after Ray: when temporaries are swept, nobody writes any more.
    with (
        session(report, plan.store.place(""), names, metrics=metrics) as watch,
        ExitStack() as held,
        connected(address),
    ):
        shares = _shares(plan, asked, actors, cpus_per_actor, gpus_per_actor)
        engine = _engine(plan, asked, shares)
        held.enter_context(lock)
        manifest = _begin(plan, engine, overwrite=asked.overwrite)
        delete_parts(plan, again)
        left, stale = _left(plan, manifest, report)
        delete_parts(plan, stale)
        if limit is not None:
            report.quarantined_before = quarantined_rows(plan.store)
        rows = max(0, report.rows_total - report.rows_before)
        if is_worth_it(plan, rows):
            found = measure(left, make_job(plan, manifest, shares, lock.token), shares, RUN_S)
            shares, report.plan = adapt(found, rows, shares, fixed=cpus_per_actor is not None)
        history = History(plan.store, Session(resources=asdict(shares), plan=report.plan))
        with _told(history):
            Flow(
                plan=plan,
                manifest=manifest,
                shares=shares,
                report=report,
                history=history,
                lock=lock,
                watch=watch,
                on_progress=on_progress or _nothing,
                limit=limit,
            ).run(left)
    return report


def preview(
    heads: Mapping[str, Sequence[Any] | HeadSpec] | Sequence[HeadSpec],
    *,
    input: str | Sequence[str],  # noqa: A002  the outer contract's name
    output: str,
    actors: int | tuple[int, int] | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
    address: str | None = None,
    **options: Any,
) -> Preview:
    """What `run` with the same arguments would do and take, measured on a sample; nothing is written.

    Raises:
        UsageError: as `run` would.
        RunFailed: no Ray answers.
    """
    asked, plan, report = _planned(heads, input, output, options)
    with connected(address):
        shares = _shares(plan, asked, actors, cpus_per_actor, gpus_per_actor)
        engine = _engine(plan, asked, shares)
        manifest = plan.new_manifest(engine)
        left, _ = _left(plan, manifest, report)
        rows = max(0, report.rows_total - report.rows_before)
        plain = None
        if left:
            found = measure(left, make_job(plan, manifest, shares, ""), shares, PLAN_S)
            shares, plain = adapt(found, rows, shares, fixed=cpus_per_actor is not None)
        return Preview(
            input=plan.spec.root.shown,
            files=len(plan.tasks),
            rows=report.rows_total,
            rows_exact=report.total_is_exact,
            rows_before=report.rows_before,
            splits=split_count(plan, left, rows),
            output=plan.store.uri,
            shares=shares,
            cpus=cluster_cpus(),
            forecast=None if plain is None else Forecast(**plain),
        )


def _planned(
    heads: Mapping[str, Sequence[Any] | HeadSpec] | Sequence[HeadSpec],
    given_input: str | Sequence[str],
    output: str,
    options: Mapping[str, Any],
) -> tuple[Options, Plan, RunReport]:
    """What was asked for, checked, and the report of a run that has not begun."""
    specs = heads_from(heads) if isinstance(heads, Mapping) else tuple(heads)
    asked = _options(given_input, output, options)
    plan = make_plan(specs, asked)
    total, exact = plan.rows()
    report = RunReport(output=plan.store.uri, rows_total=total, total_is_exact=exact)
    report.vanished = tuple(file.path for file in plan.diff.vanished)
    report.dropped = tuple(file.path for file in plan.diff.dropped)
    return asked, plan, report


def _check_quarantine(limit: Limit | None, plan: Plan, report: RunReport) -> None:
    """A run that is complete can still hold more bad rows than are allowed now."""
    if limit is not None:
        report.quarantined_before = quarantined_rows(plan.store)
        limit.check(report, ended=True)


def _shares(
    plan: Plan,
    asked: Options,
    actors: int | tuple[int, int] | None,
    cpus_per_actor: float | None,
    gpus_per_actor: float | None,
) -> Shares:
    return share_out(
        alive_nodes(),
        device=(asked.device or "auto") if plan.manifest is None else plan.manifest.engine["device"],
        actors=(actors, actors) if isinstance(actors, int) else actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
    )


@contextmanager
def _told(history: History) -> Iterator[None]:
    """Write into the history how the session ended; a disk that refuses that has refused a part before."""
    outcome = "stopped"
    try:
        yield
        outcome = "complete"
    except RaybertError:
        outcome = "failed"
        raise
    finally:
        with suppress(OutputError):
            history.end(outcome)


def _is_complete(plan: Plan, manifest: Manifest, report: RunReport) -> bool:
    """Whether nothing is left to compute; what lies about is tidied up then, without a Ray."""
    if plan.diff.changed:
        return False
    left, stale = _left(plan, manifest, report)
    if left:
        return False
    report.splits_left = False
    # A driver may have been killed after its last commit.
    if stale or plan.diff.dropped or set(plan.store.list("_raybert/")) - _KEPT:
        with DriverLock(plan.store):
            if plan.diff.dropped:
                _begin(plan, manifest.engine, overwrite=False)
            tidy(plan, stale)
    return True


def _nothing(report: RunReport) -> None:
    """The progress of a run that nobody watches."""


def _options(given_input: str | Sequence[str], output: str, given: Mapping[str, Any]) -> Options:
    known_options("run", given, [name for name in Options.__dataclass_fields__ if name not in ("input", "output")])
    keep = given.get("keep")
    if isinstance(keep, str) and keep != "all":
        raise SettingsError(f"keep {keep!r}: takes 'all' or a list of column names")
    if keep is not None and not isinstance(keep, str):
        given = {**given, "keep": tuple(keep)}
    places = [given_input] if isinstance(given_input, str | PathLike) else given_input
    return Options(input=tuple(str(place) for place in places), output=str(output), **given)


def _engine(plan: Plan, options: Options, shares: Shares) -> Mapping[str, Any]:
    """What decides bits: the manifest's, or chosen now on a worker of the actors' kind, heads loaded for a proof."""
    if plan.manifest is not None:
        return plan.manifest.engine
    started = Event()
    with watched(shares.cpus, shares.gpus, is_idle=lambda: not started.is_set()):
        chosen: dict[str, Any] = call_on_worker(
            load_check,
            plan.specs,
            options.device or "auto",
            options.dtype or "auto",
            options.budget,
            cpus=shares.cpus,
            gpus=shares.gpus,
            on_start=started.set,
        )
    return chosen


def _begin(plan: Plan, engine: Mapping[str, Any], *, overwrite: bool) -> Manifest:
    """Own OUTPUT from here: clear it if asked, and write the manifest before the first part."""
    before = None if overwrite else manifests.load(plan.store)
    if before != plan.manifest:
        raise SettingsError(f"output {plan.store.uri}: another run changed it meanwhile; run the same command again")
    if overwrite:
        kept = [name for name in plan.store.list("_raybert/") if name in _KEPT]
        doomed = [*plan.store.list("part-"), *plan.store.list(f"{QUARANTINE}/"), *kept]
        for name in sorted(doomed, reverse=True):
            plan.store.delete(name)
    manifest = plan.new_manifest(engine)
    if manifest != before:
        manifests.save(plan.store, manifest)
    return manifest


def _left(plan: Plan, manifest: Manifest, report: RunReport) -> tuple[list[ReadTask], list[str]]:
    """Read tasks that are not committed, and parts that belong to no file, or to older versions of one."""
    files = [task[0].file for task in plan.tasks.values()]
    progress = progress_of(plan, manifest.shaping, files)
    report.rows_before = sum(end - begin for each in progress.values() for begin, end in each.ranges)
    stale = [name for each in progress.values() for name in each.stale]
    return work_left(plan, progress), stale + orphans(plan)
