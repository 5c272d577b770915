"""Fault points: a process of a run kills itself at a step of its work, once; see ``points`` in sitecustomize.py.

A folder says which point is armed, so that the workers of one Ray serve many runs:

- ``armed.json``: ``{"step": "place", "kind": "part", "when": "after", "nth": 2, "fault": "kill"}``; another fault than
  ``kill`` is the number of an OSError that is raised there;
- ``passes`` grows by a byte each time the point is passed, in whichever process;
- ``fired`` appears when it kills: never a second time.

Steps are ``read``, ``encode``, ``compute``, those of a commit (``fill``, ``place``, ``drop``: the temporary, its final
name, its end), ``delete`` of a file and ``sweep``. What is committed or deleted is of a kind: see `kind_of`.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_committing = threading.local()


def kind_of(name: str) -> str:
    """What a file of OUTPUT is: part, quarantine, manifest, driver, history, claims."""
    folder, _, base = name.rpartition("/")
    if folder in ("", "_quarantine"):
        return "quarantine" if folder else "part"
    return folder.rpartition("/")[2] if folder != "_raybert" else base.partition(".")[0]


def passing(folder: Path, step: str, kind: str, when: str) -> None:
    """Die here if this point is armed and its turn has come."""
    try:
        armed = json.loads((folder / "armed.json").read_bytes())
    except FileNotFoundError:
        return
    if (armed["step"], armed["kind"], armed["when"]) != (step, kind, when):
        return
    passes = os.open(folder / "passes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(passes, b".")
    if os.fstat(passes).st_size >= armed["nth"]:
        try:
            os.close(os.open(folder / "fired", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            if armed["fault"] != "kill":
                raise OSError(armed["fault"], os.strerror(armed["fault"]))
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(passes)


def _wrapped(work: Callable[..., Any], folder: Path, step: str, kind: Callable[..., str]) -> Callable[..., Any]:
    @functools.wraps(work)
    def trapped(*args: Any, **kwargs: Any) -> Any:
        which = kind(*args)
        passing(folder, step, which, "before")
        result = work(*args, **kwargs)
        passing(folder, step, which, "after")
        return result

    return trapped


def arm_stages(stages: Any, folder: Path) -> None:
    """Wrap what workers do before they commit."""
    read = stages.read_stage

    def read_stage(*args: Any) -> Iterator[Any]:
        passing(folder, "read", "", "before")
        for row in read(*args):
            passing(folder, "read", "", "after")
            yield row

    def nothing(*_: Any) -> str:
        return ""

    stages.read_stage = read_stage
    stages.encode_stage = _wrapped(stages.encode_stage, folder, "encode", nothing)
    stages.ModelStage.__call__ = _wrapped(stages.ModelStage.__call__, folder, "compute", nothing)


def arm_store(store: Any, folder: Path) -> None:
    """Wrap the steps of `Store`."""
    of_class = store.Store
    commit = of_class._commit

    def _commit(self: Any, name: str, data: Any) -> None:
        _committing.kind = kind_of(name)
        commit(self, name, data)

    def committed(*_: Any) -> str:
        return str(_committing.kind)

    of_class._commit = _commit
    for step in ("fill", "place", "drop"):
        setattr(of_class, f"_{step}", _wrapped(getattr(of_class, f"_{step}"), folder, step, committed))
    of_class.delete = _wrapped(of_class.delete, folder, "delete", lambda _, name: kind_of(name))
    of_class.sweep = _wrapped(of_class.sweep, folder, "sweep", lambda _: "")
