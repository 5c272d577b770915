"""Kill -9 of a model actor, a write worker and the driver in one run after another, at moments that seeds choose.

Three kills in the slow tier (test_matrix.py has those at each step), thirty in the soak tier; the log lists every one::

    pytest tests/crash/test_kills.py -m soak -o log_cli=true -o log_cli_level=INFO
"""

from __future__ import annotations

import logging
import os
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.crash.conftest import Clean, run_undisturbed
from tests.jobs import Cli, armed, assert_same_tree, at_work, parts, run_cli, tree_bytes, wait_for

_LOG = logging.getLogger(__name__)


def victim_of(cli: Cli, kind: str) -> int:
    """A process of that kind which is at work."""
    if kind == "driver":
        return cli.process.pid
    word = {"model actor": "MapWorker(MapBatches(_Model))", "write worker": "MapBatches(_write)"}[kind]
    (pid, *_) = cli.until(lambda: cli.workers(word), f"a {kind}")
    return pid


def kill(cli: Cli, kind: str, seed: int, output: Path, clean: Clean, begun: float) -> None:
    """Kill one process of that kind once some more parts are committed; the seed tells how many and how soon."""
    rng = random.Random(f"{seed} {kind}")
    goal = len(parts(output)) + rng.randint(1, 3)
    cli.until(lambda: len(parts(output)) >= goal, f"{goal} parts")
    time.sleep(rng.uniform(0, 0.2))  # anywhere between two commits
    pid = victim_of(cli, kind)
    os.kill(pid, signal.SIGKILL)
    committed = len(parts(output))
    assert 1 <= committed < len(clean.parts)
    _LOG.info(
        "seed %d: killed the %s, pid %d, %.1f s after the start, %d of %d parts committed",
        *(seed, kind, pid, time.monotonic() - begun, committed, len(clean.parts)),
    )


def kill_again_and_again(seeds: range, undisturbed: Clean, folder: Path) -> None:
    """Three kills a seed, the last of them the driver's; then the run goes on to its end."""
    output = undisturbed.begun(folder)
    expected = tree_bytes(undisturbed.output)
    with ExitStack() as families:  # Ray's agents outlive a driver by a minute: their end is awaited at the end
        for seed in seeds:
            begun = time.monotonic()
            cli = families.enter_context(Cli(*undisturbed.words(output), env=armed(commit_s=0.1)))
            workers = ["model actor", "write worker"]
            random.Random(seed).shuffle(workers)
            for kind in (*workers, "driver"):
                kill(cli, kind, seed, output, undisturbed, begun)
            assert cli.finish().code == -signal.SIGKILL
            wait_for(lambda folder=cli.folder: not at_work(folder), "the end of the dead driver's workers", within_s=30)
            found = tree_bytes(output)
            half = [name for name in found if "part-" in name and found[name] != expected.get(name)]
            assert half == []
        done = run_cli(*undisturbed.words(output))
    assert (done.code, done.errors) == (0, [])
    assert_same_tree(output, undisturbed.output)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_three_kills_the_folder_is_that_of_an_undisturbed_run(tiny: Path, tmp_path: Path) -> None:
    """30 splits: enough that some are missing at every kill."""
    undisturbed = run_undisturbed(tmp_path / "many", tiny, files=3, rows=40, split_rows=4)
    kill_again_and_again(range(1), undisturbed, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_after_thirty_kills_the_folder_is_that_of_an_undisturbed_run(tiny: Path, tmp_path: Path) -> None:
    undisturbed = run_undisturbed(tmp_path / "many", tiny, files=3, rows=216, split_rows=4)
    kill_again_and_again(range(10), undisturbed, tmp_path)
