"""Kill -9 at every step of a run, on a disk and in S3: the run that follows equals an undisturbed one byte for byte.

So it does where the disk was full.

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


def try_all(kind: str, kills: list[Point], full: list[Point], model: Path, folder: Path) -> None:
    with trial(kind, model, folder) as tried:
        for number, point in enumerate([*kills, *full]):
            begun = time.monotonic()
            what, attempt = ("killed", tried.kill_at) if number < len(kills) else ("full", tried.fill_disk_at)
            attempt(point)
            _LOG.info("%s, %s %s: %.1f s, equal", kind, what, point, time.monotonic() - begun)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "workers", "drivers", "full"), [("local", 3, 1, FULL[:1]), ("s3", 1, 1, [])])
def test_after_a_kill_at_some_points_the_folder_is_that_of_an_undisturbed_run(
    tiny: Path, tmp_path: Path, kind: str, workers: int, drivers: int, full: list[Point]
) -> None:
    try_all(kind, sample(kind, workers, drivers), full, tiny, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kind", "full"), [("local", FULL), ("s3", [])])
def test_after_a_kill_at_every_point_the_folder_is_that_of_an_undisturbed_run(
    tiny: Path, tmp_path: Path, kind: str, full: list[Point]
) -> None:
    """17 minutes on two busy cores: 36 points on a disk, 44 in S3, and a disk that fills up at three of them."""
    try_all(kind, POINTS[kind], full, tiny, tmp_path)
