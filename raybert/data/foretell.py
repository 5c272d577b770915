"""``--plan``: what a run would do and take, measured on a sample; nothing is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybert.cluster import Shares, alive_nodes, call_on_worker
from raybert.data.calibrate import Calibration, Forecast, calibrate, forecast, sized, spread_out
from raybert.data.plan import Plan
from raybert.data.splits import ReadTask
from raybert.data.stages import Job

RUN_S = 2.0
"""Seconds of arithmetic that a run spends on its calibration."""

PLAN_S = 15.0
"""Seconds that ``--plan`` spends on it."""

_WORTH_ROWS = 20_000
_WORTH_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a run would do.

    Attributes:
        input: where from, as the caller wrote it.
        files: input files.
        rows: of the input.
        rows_exact: whether footers or a limit told them.
        rows_before: that are committed already.
        splits: that are left, roughly.
        output: OUTPUT.
        shares: how the stages would share the cluster.
        cpus: of the cluster.
        forecast: what it takes; None where no row of the sample can be computed, or nothing is left.
    """

    input: str
    files: int
    rows: int
    rows_exact: bool
    rows_before: int
    splits: int
    output: str
    shares: Shares
    cpus: float
    forecast: Forecast | None


def is_worth_it(plan: Plan, rows: int) -> bool:
    """Whether a run is long enough for a calibration of a few seconds."""
    size = sum(tasks[0].file.size for tasks in plan.tasks.values())
    return rows >= _WORTH_ROWS or (rows > 0 and size >= _WORTH_BYTES)


def cluster_cpus() -> float:
    """CPUs of the connected cluster."""
    return sum(node.get("CPU", 0.0) for node in alive_nodes())


def measure(left: Sequence[ReadTask], job: Job, shares: Shares, seconds: float) -> Calibration | None:
    """Calibrate on a worker of the model actors' kind; see `calibrate`.

    Returns:
        None also where a row of the sample kills the worker or fails: the run itself finds it, and does not depend on
        a forecast.
    """
    import ray

    try:
        found: Calibration | None = call_on_worker(
            calibrate, spread_out(left), job, seconds, cpus=shares.cpus, gpus=shares.gpus
        )
    except ray.exceptions.RayError:
        return None
    return found


def adapt(
    found: Calibration | None, rows: int, shares: Shares, *, fixed: bool
) -> tuple[Shares, Mapping[str, Any] | None]:
    """The stages' shares by what was measured, and the forecast for so many rows.

    Args:
        found: what was measured.
        rows: that are left.
        shares: as chosen without it.
        fixed: the caller said what an actor books; nothing is taken from that.
    """
    if found is None:
        return shares, None
    cpus = cluster_cpus()
    shares = shares if fixed else sized(found, shares, cpus)
    return shares, forecast(found, rows, shares, cpus).as_dict()


def split_count(plan: Plan, left: Sequence[ReadTask], rows: int) -> int:
    """Roughly how many splits so many rows make: limits of rows and of bytes count, and no split spans two tasks."""
    size = sum({task.file.number: task.file.size for task in left}.values())
    by_bytes = 0 if plan.spec.format == "parquet" else size / plan.spec.split_bytes
    return max(len(left), math.ceil(max(rows / plan.spec.split_rows, by_bytes)))
