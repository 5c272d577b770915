"""Python imports this module at its start where this folder is in PYTHONPATH: its models take a stated time.

``RAYBERT_STANDIN`` holds the seconds that a token batch takes, whatever is in it. Windows are packed as ever; the
encoder is left out, and the head's ``reduce`` gives vectors that tell what came to it: the number of tokens, the sum of
their ids, then zeros.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_ENGINE, _EMBED = "raybert.engine", "raybert.tasks.embed"


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (_ENGINE, _EMBED):
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Replacing(spec.loader)
        return spec


class _Replacing(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        if module.__name__ == _ENGINE:
            module.make_encoder = lambda *_, **__: _no_states
        else:
            module.Embed.reduce = _reduce


def _no_states(batch: Any, *, first_only: bool) -> Any:
    import torch

    return torch.zeros((len(batch.ids_T), 1))


def _reduce(task: Any, hidden: Any, module: Any, batch: Any) -> tuple[Any, None]:
    """Constant time, and vectors that tell which window is which."""
    import numpy as np
    import torch

    begun = time.perf_counter()
    lengths = batch.layout.lengths.numpy()
    values = np.zeros((len(lengths), task.width), np.float32)
    values[:, 0] = lengths
    values[:, 1] = np.add.reduceat(batch.ids_T.numpy(), np.cumsum(lengths) - lengths)
    if (left := float(os.environ["RAYBERT_STANDIN"]) - (time.perf_counter() - begun)) > 0:
        time.sleep(left)
    return torch.from_numpy(values), None


if "RAYBERT_STANDIN" in os.environ:
    sys.meta_path.insert(0, _Finder())
