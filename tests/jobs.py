"""Running batch jobs in tests: the command line in a process of its own, or `raybert.data.run` on one small Ray.

Every Ray here is private, keeps its files in a folder of its own, and passes that folder's name on to each of its
processes in the environment: that is how a test finds them, wherever they are in the tree of processes, and proves
that none is left.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.tiny import stdlib_docstrings

ROOT = Path(__file__).resolve().parent.parent
TRAP = ROOT / "tests" / "crash" / "trap"
PATIENCE_S = 240.0  # a machine may be busy with other things; nothing here waits as long when all is well

_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_MAIN = "from raybert.cli import main; main()"


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """What it said on stderr, progress left out."""
        return [line for line in self.err.splitlines() if not line.startswith("raybert: ")]


def wait_for(condition: Callable[[], Any], what: str, *, within_s: float = PATIENCE_S) -> Any:
    """The first true answer of ``condition``; it is asked until then."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
        time.sleep(0.02)
    return answer


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Path below ``folder`` -> content, of all files; a folder without one counts with its name and nothing.

    A run's history is left out: it holds times, and nothing depends on it.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "history.json" and path.parent.name == "_raybert":
            continue
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif not any(path.iterdir()):
            found[f"{path.relative_to(folder).as_posix()}/"] = b""
    return found


def left_in(folder: Path) -> list[str]:
    """Names in a run's own folder beside its history: the manifest alone, when nobody writes."""
    return sorted(path.name for path in (folder / "_raybert").iterdir() if path.name != "history.json")


def parts(folder: Path) -> list[str]:
    """Names of the committed parts, in order."""
    return sorted(path.name for path in folder.glob("part-*"))


def assert_same_tree(found: Path, expected: Path) -> None:
    """Equal names and equal bytes; the message says which files differ, not how."""
    one, other = tree_bytes(found), tree_bytes(expected)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


def begin_as(clean: Path, output: Path) -> Path:
    """A run that begins with the manifest of another one, and so with the operators that it chose.

    Which operators are faster is measured at a run's very start, and on a busy machine two measurements may differ.
    Afterwards the manifest imposes them: that is what the tests of equal bytes are about.
    """
    (output / "_raybert").mkdir(parents=True)
    shutil.copy(clean / "_raybert" / "manifest.json", output / "_raybert")
    return output


@contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for one private Ray. Its name is short: Ray puts sockets below it, and those allow 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def family(folder: Path) -> dict[int, str]:
    """Process id -> command line of everything that was started for the Ray of that folder, and lives."""
    marker = f"RAY_TMPDIR={folder}\0".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker in (entry / "environ").read_bytes():
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                if title:  # a zombie has none
                    found[int(entry.name)] = title
        except OSError:
            continue
    return found


def at_work(folder: Path) -> dict[int, str]:
    """The same without Ray's two agents: they outlive a killed driver by a minute, for which they try to report it."""
    return {pid: title for pid, title in family(folder).items() if not title.startswith(_AGENTS)}


def assert_no_family(folder: Path) -> None:
    """Everything that was started for that Ray ends by itself; what does not is killed, and the test fails."""
    try:
        wait_for(lambda: not family(folder), f"the end of all processes of {folder}", within_s=120)
    except AssertionError as error:
        left = family(folder)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"{error}: {left}") from None


def end_agents(folder: Path) -> None:
    """Once all else has ended behind a killed driver, end Ray's agents too: nothing of ours waits for that minute."""
    wait_for(lambda: not at_work(folder), "the end of a killed driver's workers", within_s=60)
    for pid in family(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Cli:
    """``raybert ...`` in a process group and with a Ray of its own; leaving the block proves that nothing is left.

    Args:
        *words: the command line without the program.
        env: variables beside the usual ones; None takes one away.
    """

    def __init__(self, *words: object, env: dict[str, str | None] | None = None) -> None:
        self.words = [str(word) for word in words]
        self._env = env or {}
        self._folder = ray_folder()

    def __enter__(self) -> Cli:
        self.folder = self._folder.__enter__()
        with (self.folder / "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, *self.words],
                env=environment(self.folder, self._env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            if self.process.poll() is None:
                self.process.kill()
            self.process.communicate()
            if self.process.returncode < 0:  # a signal ended it, at once
                end_agents(self.folder)
            assert_no_family(self.folder)
        finally:
            self._folder.__exit__(None, None, None)

    def finish(self, patience_s: float = PATIENCE_S) -> Finished:
        """Wait for its end."""
        out, _ = self.process.communicate(timeout=patience_s)
        return Finished(self.process.returncode, out, self.told())

    def told(self) -> str:
        """What it wrote to stderr so far."""
        return (self.folder / "stderr").read_text("utf-8")

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true answer of ``condition``, while the command goes on."""

        def asked() -> Any:
            if (answer := condition()) or self.process.poll() is None:
                return answer
            raise AssertionError(f"it ended before {what}: {self.finish()}")

        return wait_for(asked, what)

    def workers(self, word: str) -> list[int]:
        """Processes of Ray's workers that run ``word`` right now; Ray names a worker after what it runs."""
        return [pid for pid, title in family(self.folder).items() if title.startswith("ray::") and word in title]

    def engines(self) -> list[int]:
        """Processes that compute for a service's replicas."""
        return [pid for pid, title in family(self.folder).items() if "-m raybert.serve.computing" in title]


def run_cli(*words: object, env: dict[str, str | None] | None = None, patience_s: float = PATIENCE_S) -> Finished:
    """One command line from start to end."""
    with Cli(*words, env=env) as cli:
        return cli.finish(patience_s)


def armed(**trap: Any) -> dict[str, str | None]:
    """Variables that arm a run's workers, see `tests/crash/trap/sitecustomize.py`."""
    return {"PYTHONPATH": f"{TRAP}{os.pathsep}{ROOT}", "RAYBERT_TRAP": json.dumps(trap)}


def environment(folder: Path, changes: dict[str, str | None]) -> dict[str, str]:
    """This process's environment for a child with a Ray of its own, without what would lead it to another one."""
    settings: dict[str, str | None] = {
        "RAY_ADDRESS": None,
        "RAY_AUTH_MODE": "disabled",  # a token would be left in the home folder
        "RAY_TMPDIR": str(folder),
        "PYTHONPATH": str(ROOT),
        **changes,
    }
    merged: dict[str, str | None] = {**os.environ, **settings}
    return {name: value for name, value in merged.items() if value is not None}


@contextmanager
def small_ray(cpus: int = 2, *, env: dict[str, str | None] | None = None) -> Iterator[None]:
    """A Ray of this process, which `raybert.data` then uses; ``env`` is set meanwhile, here and in its workers."""
    end_shared_ray()
    import ray
    import ray.data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray's context warns about its own fields
        ray.data.DataContext.get_current()
    with ray_folder() as folder:
        before = dict(os.environ)
        os.environ.update(environment(folder, {"RAY_BACKEND_LOG_LEVEL": "fatal", **(env or {})}))
        os.environ.pop("RAY_ADDRESS", None)
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=256 << 20,
            )
            yield
        finally:
            ray.shutdown()
            os.environ.clear()
            os.environ.update(before)
            assert_no_family(folder)


_shared = ExitStack()
_shared_environment: dict[str, str] = {}


@contextmanager
def shared_ray() -> Iterator[None]:
    """The `small_ray` of all modules that need no other one: it starts once; its variables hold inside the block."""
    import ray

    before = dict(os.environ)
    if ray.is_initialized():
        os.environ.update(_shared_environment)
    else:
        _shared.enter_context(small_ray())
        _shared_environment.update(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def end_shared_ray() -> None:
    """End it, if it was ever started."""
    _shared.close()


def joining(env: dict[str, str | None]) -> dict[str, str | None]:
    """The same variables for a command that joins the Ray of `small_ray`."""
    import ray

    return env | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def some_texts(count: int) -> list[str]:
    """Real texts of all lengths, among them an empty one, one of many windows' length, and other scripts."""
    special = ["", " ", "word " * 400, "naïve café 東京 \U0001f600", "tabs\tand\nlines"]
    return (special + [text[:400] for text in stdlib_docstrings(count)])[:count]


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """JSON lines (gzipped where the name says so); a row of bytes is a line as it stands."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """The same vectors as far as another batch and other operators allow: law 1's bar."""
    assert found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found.astype(np.float64) * expected).sum(axis=1) / lengths
    assert cosines.min() >= 0.999999
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def vectors(table: pa.Table, name: str = "embed") -> np.ndarray:
    """A column of vectors as [N, D]."""
    column = table[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)
