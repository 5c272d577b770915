"""`ray job submit` to a cluster that asks for tokens: jobs/run.py with the package installed, and without."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raybert.data.verify import verify
from tests.processes import descendants, short_folder, stopped
from tests.tiny import stdlib_docstrings

ROOT = Path(__file__).resolve().parent.parent
TEXTS = 500

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Cluster:
    """A cluster of one node.

    Attributes:
        python: what it runs on.
        dashboard: its URL.
        environment: of its clients, the mode of authentication left out.
    """

    python: Path
    dashboard: str
    environment: dict[str, str]

    def ray(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's command line."""
        return subprocess.run(
            [os.fspath(self.python), "-m", "ray.scripts.scripts", *words],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def submit(self, folder: Path, words: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Submit jobs/run.py from a folder and wait for its end."""
        job = ["--address", self.dashboard, "--working-dir", os.fspath(folder), "--", "python", "jobs/run.py", *words]
        return self.ray("job", "submit", *job, **environment)


def _without_raybert(folder: Path) -> Path:
    """A Python with all that this one has but raybert, where that was installed as README and CI do (editable)."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    # A path file that is found through a path file is not read: that is how an editable install gets lost.
    (site / "all_but_raybert.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    python = folder / "bin" / "python"
    # Isolated, since the folder where the tests run would be found first.
    found = subprocess.run([os.fspath(python), "-I", "-c", "import raybert"], capture_output=True, check=False)
    if found.returncode == 0:
        pytest.skip("raybert is installed as a copy, which no path file hides")
    return python


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(params=["installed", "from the folder alone"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    installed = request.param == "installed"
    python = Path(sys.executable) if installed else _without_raybert(tmp_path / "python")
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    inherited["PATH"] = f"{python.parent}{os.pathsep}{inherited['PATH']}"
    inherited.pop("PYTHONPATH", None)
    environment = inherited | {"RAY_AUTH_TOKEN_PATH": os.fspath(token), "HOME": os.fspath(tmp_path)}
    dashboard, agent, client = _free_ports(3)
    with short_folder() as ray_folder:
        ports = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--port=0"]
        command = ["start", "--head", "--block", "--num-cpus=2", *ports, f"--ray-client-server-port={client}"]
        process = subprocess.Popen(
            [os.fspath(python), "-m", "ray.scripts.scripts", *command, f"--temp-dir={ray_folder}"],
            env=environment | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with stopped(process):
            try:
                started = Cluster(python, f"http://127.0.0.1:{dashboard}", environment)
                assert _answer(f"{started.dashboard}/api/jobs/", process) == 401  # it is asked without a token
                # Jobs go through the node's agent, which may come long after the dashboard on a busy machine, and
                # which Ray's job server waits 10 s for.
                _answer(f"http://127.0.0.1:{agent}/", process)
                yield started
            finally:
                # A head that ends by itself takes half a minute: its agents go on asking for it.
                children = descendants(process.pid)
                for pid in (process.pid, *children):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        _wait_until_gone(children)


def _answer(url: str, process: subprocess.Popen[str]) -> int:
    """The status that a URL of a cluster's answers with, once it answers."""
    give_up = time.monotonic() + 120
    while (status := _status(url)) is None:
        assert process.poll() is None, f"ray start ended with {process.returncode}"
        assert time.monotonic() < give_up, f"nothing answers at {url}"
        time.sleep(0.5)
    return status


def _status(url: str) -> int | None:
    """The status that a URL answers with; None if nothing answers there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def _wait_until_gone(pids: Sequence[int]) -> None:
    give_up = time.monotonic() + 60
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < give_up, f"processes {left} outlive their cluster"
        time.sleep(0.2)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a fresh clone holds of this tree, as it stands."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "raybert", "jobs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path / "checkout"
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_job_runs_on_a_cluster_that_asks_for_tokens(
    cluster: Cluster, checkout: Path, tiny: Path, tmp_path: Path
) -> None:
    corpus, output = tmp_path / "corpus", tmp_path / "vectors"
    corpus.mkdir()
    for number, text in enumerate(texts := stdlib_docstrings(TEXTS)):
        with (corpus / f"{number % 2}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"text": text}) + "\n")
    words = ["embed", "--model", str(tiny), "--input", str(corpus), "--output", str(output), "--split-rows", "100"]

    refused = cluster.submit(checkout, words)
    assert refused.returncode != 0
    assert "authentication is enabled" in refused.stderr  # Ray's words for the 401 that `cluster` waits for
    assert not output.exists()

    done = cluster.submit(checkout, words, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "500 rows, 0 quarantined, 6 parts" in done.stdout + done.stderr
    report = verify(output, full=True)
    assert report.ok, report.problems
    assert (report.files, report.parts, report.ok_rows) == (2, 6, len(texts))
    assert pq.read_table(output).num_rows == len(texts)
