"""raybert: distributed batch inference and embedding for BERT on Ray.

    embed = raybert.load("demo", task="embed")
    vectors = embed(["a text", "another"])

Names are loaded when they are first used: ``import raybert`` imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raybert.version import VERSION

if TYPE_CHECKING:
    from raybert import data
    from raybert.checkpoint.config import BertConfig
    from raybert.errors import RaybertError
    from raybert.model.architecture import BertModel
    from raybert.predict import Predictor, load

__version__ = VERSION

_HOME = {
    "BertConfig": "raybert.checkpoint.config",
    "BertModel": "raybert.model.architecture",
    "Predictor": "raybert.predict",
    "RaybertError": "raybert.errors",
    "load": "raybert.predict",
}

__all__ = ["BertConfig", "BertModel", "Predictor", "RaybertError", "__version__", "data", "load"]


def __getattr__(name: str) -> Any:
    if name == "data":
        return importlib.import_module("raybert.data")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'raybert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
