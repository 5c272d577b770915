"""Python imports this module at its start where this folder is in PYTHONPATH: it arms the processes of one test's run.

``RAYBERT_TRAP`` holds JSON:

- ``{"commit_s": 0.2}``: a write worker takes that long between a part's bytes on disk and its final name.
- ``{"kill": ["encode", "b.jsonl", 20]}``: the stage kills its own worker when it meets that row of that file among the
  rows to process; the stages are read, encode, compute, write.
- ``{"fail": ["encode", "b.jsonl", 20]}``: the stage raises there what raybert raises nowhere.
- ``{"starve": ["encode", "b.jsonl", 20]}``: the stage finds no memory there. All three take a list of rows, too.
- ``{"full_after": 3}``: a write worker's disk is full after so many commits of it.
- ``{"points": "/folder"}``: every process of the run kills itself where the folder says, see faultpoints.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_STAGES, _STORE = "raybert.data.stages", "raybert.data.store"


class _Finder(MetaPathFinder):
    """Finds the modules that are armed, as Python would, and arms each once it is loaded."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (_STAGES, _STORE):
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Armed(spec.loader)
        return spec


class _Armed(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        trap = json.loads(os.environ["RAYBERT_TRAP"])
        if "points" in trap:
            import faultpoints

            arm = faultpoints.arm_stages if module.__name__ == _STAGES else faultpoints.arm_store
            arm(module, Path(trap["points"]))
        elif module.__name__ == _STAGES:
            _arm(module, trap)


def _arm(stages: Any, trap: dict[str, Any]) -> None:
    """Wrap the stages; ``raybert.data.pipeline`` takes them from this module afterwards."""
    stages.write_stage = _with_disk(stages.write_stage, trap)
    for kind, spring in (("kill", _die), ("fail", _fail), ("starve", _starve)):
        if kind in trap:
            stage, path, rows = trap[kind]
            _arm_stage(stages, stage, path, {rows} if isinstance(rows, int) else set(rows), spring)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise ValueError("the trap\nwas sprung")


def _starve() -> None:
    raise MemoryError


def _arm_stage(stages: Any, stage: str, path: str, numbers: set[int], spring: Callable[[], None]) -> None:
    def spring_at(note: Any, tables: Any) -> None:
        if note["file"]["path"] == path and "rows" in tables and numbers & set(tables["rows"]["_row"].to_pylist()):
            spring()

    def spring_over(row: Any) -> None:
        spring_at(*stages.from_row(row))

    if stage == "read":
        stages.read_stage = _on_the_way_out(stages.read_stage, spring_over)
    elif stage == "encode":
        stages.encode_stage = _on_the_way_in(stages.encode_stage, spring_over)
    elif stage == "compute":
        stages.ModelStage.__call__ = _on_the_way_in(stages.ModelStage.__call__, spring_over)
    elif stage == "write":
        make = stages.make_files

        def make_files(note: Any, tables: Any, job: Any) -> Any:
            spring_at(note, tables)
            return make(note, tables, job)

        stages.make_files = make_files


def _on_the_way_in(work: Callable[..., Any], spring: Callable[[Any], None]) -> Callable[..., Any]:
    def trapped(*args: Any) -> Any:
        spring(next(arg for arg in args if hasattr(arg, "num_rows")))
        return work(*args)

    return trapped


def _on_the_way_out(read: Callable[..., Iterator[Any]], spring: Callable[[Any], None]) -> Callable[..., Any]:
    def trapped(*args: Any) -> Iterator[Any]:
        for row in read(*args):
            spring(row)
            yield row

    return trapped


def _with_disk(write: Callable[..., Any], trap: dict[str, Any]) -> Callable[..., Any]:
    """Write on a slow disk, or on one that fills up."""
    commits = 0
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal commits
        sync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().parts[-3:-1] == ("_raybert", "tmp"):
            time.sleep(trap.get("commit_s", 0.0))
            commits += 1
            if commits > trap.get("full_after", sys.maxsize):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def armed(row: Any, job: Any) -> Any:
        os.fsync = fsync  # in this worker alone: the driver never comes here
        return write(row, job)

    return armed


if "RAYBERT_TRAP" in os.environ:
    sys.meta_path.insert(0, _Finder())
