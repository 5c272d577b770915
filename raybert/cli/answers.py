"""Answers as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def plain(answer: Any) -> Any:
    """An answer in lists, objects, texts and numbers; fields that are None are left out.

    Numbers are float32 inside: each gets its shortest decimal form, since a double's would show digits that it
    doesn't have.
    """
    if isinstance(answer, np.ndarray):
        return _numbers(answer)
    if is_dataclass(answer):
        given = {field.name: getattr(answer, field.name) for field in fields(answer)}
        return {name: plain(value) for name, value in given.items() if value is not None}
    if isinstance(answer, Mapping):
        return {key: plain(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [plain(value) for value in answer]
    return float(str(np.float32(answer))) if isinstance(answer, float) else answer


def _numbers(array: np.ndarray) -> list[Any]:
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return array.tolist() if array.dtype.kind == "i" else [float(str(number)) for number in array]
