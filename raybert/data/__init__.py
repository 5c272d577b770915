"""Batch jobs: `run` writes a folder of Parquet parts, `apply` adds columns to any Ray dataset."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybert.data.dataset import apply
    from raybert.data.job import run
    from raybert.data.runreport import RunReport

_HOME = {"RunReport": "raybert.data.runreport", "apply": "raybert.data.dataset", "run": "raybert.data.job"}

__all__ = ["RunReport", "apply", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raybert.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
