"""What every test needs: an offline, quiet environment, and one tiny checkpoint."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.tiny import write_tiny_checkpoint

# Set before any test imports a library that reads them at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# An inherited value would hide what raybert itself does about tokenizer threads and forks.
os.environ.pop("TOKENIZERS_PARALLELISM", None)

# A shell's background job has Ctrl-C ignored, and every process that it starts: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, no timing of a shared machine, nothing left behind.
hypothesis.settings.register_profile("raybert", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("raybert")


# Tests that start a Ray lie in these folders, or their file imports what starts one.
_RAY_FOLDERS = ("cluster", "crash", "soak")
_RAY_IMPORTS = re.compile(
    r"^from tests\.(jobs import .*\b(shared_ray|small_ray|Cli|run_cli)\b|processes import)", re.MULTILINE
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes: one runs what needs a Ray, which leaves a core half free, the other the rest.

    Soak tests measure, and need the machine for themselves; `-s` shows what only this process prints.
    """
    return 0 if config.option.markexpr == "soak" or config.option.capture == "no" else 2


def _needs_ray(file: Path) -> bool:
    return file.parent.name in _RAY_FOLDERS or _RAY_IMPORTS.search(file.read_text("utf-8")) is not None


def _shares_ray(item: pytest.Item | None) -> bool:
    return "ray" in getattr(item, "fixturenames", ())


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file of tests runs in one process, and all files that need a Ray in the same: two only hinder each other."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if _needs_ray(config.rootpath / file) else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those come first, so that neither process waits for the other at the end; among them those that share a Ray."""
    files = {item.path: not _needs_ray(item.path) for item in items}
    items.sort(key=lambda item: (files[item.path], not _shares_ray(item)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The Ray that modules share ends with the last of them."""
    if _shares_ray(item) and not _shares_ray(nextitem):
        from tests.jobs import end_shared_ray

        end_shared_ray()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain tiny BERT folder (tests/tiny.py), shared by the session: read only."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer_json=True)


@pytest.fixture(scope="session")
def trained_ner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token classifier of tests/trained.py, a minute's training, shared by the session: read only."""
    from tests.trained import train  # torch, which few sessions of one test need

    return train(tmp_path_factory.mktemp("trained_ner"))
