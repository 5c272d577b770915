"""What every test needs: an offline, quiet environment, and one tiny checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two files at a time, since a Ray that starts leaves a core free; alone what measures, or shows what it prints."""
    return 0 if config.option.markexpr == "soak" or config.option.capture == "no" else 2


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain tiny BERT folder (tests/tiny.py), shared by the session: read only."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer_json=True)


@pytest.fixture(scope="session")
def trained_ner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The token classifier of tests/trained.py, a minute's training, shared by the session: read only."""
    from tests.trained import train  # torch, which few sessions of one test need

    return train(tmp_path_factory.mktemp("trained_ner"))
