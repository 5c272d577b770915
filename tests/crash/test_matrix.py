"""Kill -9 at every step of a run, on a disk and in S3: the run that follows equals an undisturbed one byte for byte.

All points, one command; a line a point tells the seconds::

    pytest tests/crash/test_matrix.py -m soak -o log_cli=true -o log_cli_level=INFO
"""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path

import pytest

from tests.crash.points import LOCAL, S3, Point, trial

POINTS = {"local": LOCAL, "s3": S3}
FULL = [Point("fill", kind, "before") for kind in ("quarantine", "part", "manifest")]
SEED = 2611
_LOG = logging.getLogger(__name__)


def sample(kind: str, workers: int, drivers: int) -> list[Point]:
    """Some points of each kind of process, by `SEED`."""
    rng = random.Random(f"{SEED} {kind}")
    of_driver = [point for point in POINTS[kind] if point.of_driver]
    of_worker = [point for point in POINTS[kind] if not point.of_driver]
    return rng.sample(of_worker, workers) + rng.sample(of_driver, drivers)


def kill_at_all(kind: str, points: list[Point], model: Path, folder: Path) -> None:
    with trial(kind, model, folder) as tried:
        for point in points:
            begun = time.monotonic()
            tried.kill_at(point)
            _LOG.info("%s: %s, %.1f s, equal", kind, point, time.monotonic() - begun)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "workers", "drivers"), [("local", 3, 1), ("s3", 1, 1)])
def test_after_a_kill_at_some_points_the_folder_is_that_of_an_undisturbed_run(
    tiny: Path, tmp_path: Path, kind: str, workers: int, drivers: int
) -> None:
    kill_at_all(kind, sample(kind, workers, drivers), tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_is_full_at_any_write_costs_nothing_but_the_time(tiny: Path, tmp_path: Path) -> None:
    with trial("local", tiny, tmp_path) as tried:
        for point in FULL:
            tried.fill_disk_at(point)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", POINTS)
def test_after_a_kill_at_every_point_the_folder_is_that_of_an_undisturbed_run(
    tiny: Path, tmp_path: Path, kind: str
) -> None:
    kill_at_all(kind, POINTS[kind], tiny, tmp_path)
