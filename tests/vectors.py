"""How near vectors are to those that were expected; and one thread for tests that compute little at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

SAME = 0.999999
"""The least cosine of two fp32 vectors of one text (law 1 of the design)."""


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row with its own, in fp64; equal rows have 1, zero vectors too."""
    assert found.shape == expected.shape
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    both_zero = ~found.any(axis=1) & ~expected.any(axis=1)
    products = (found * expected).sum(axis=1)
    return np.where(both_zero, 1.0, products / np.where(lengths == 0, 1.0, lengths))


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal as fp32 vectors of one text are: in direction and in length."""
    near = cosines(found, expected)
    assert (near >= SAME).all(), f"row {near.argmin()} has cosine {near.min()}"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module", autouse=True)
def one_thread_a_module() -> Iterator[None]:
    """As `tests.oracle.one_thread`, for fixtures of a module too: holds in every module that imports it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
