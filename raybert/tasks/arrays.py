"""What `reduce` leaves of the hidden states: a few numbers a window, or a few a token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybert.text.encoding import Int32s, Windows


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """Numbers of W windows, window after window.

    Attributes:
        values: float32 [R, V].
        counts: int32 [W], rows of ``values`` that each window has; None: one each, so R is W.
    """

    values: np.ndarray
    counts: Int32s | None = None

    def rows(self) -> list[np.ndarray]:
        """The rows of each window, [counts[w], V]."""
        assert self.counts is not None
        return np.split(self.values, np.cumsum(self.counts)[:-1]) if len(self.counts) else []


def unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1, float32; one of length 0 stays."""
    lengths = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    scaled: np.ndarray = (vectors_ND / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


def per_item(windows: Windows, values: np.ndarray, how: str | None, *, left_out: int = 0) -> np.ndarray:
    """One row an item of one row a window.

    Args:
        windows: whose windows these are.
        values: float32 [W, V].
        how: "mean" weighs each window by its tokens, so that for mean pooling without overlap the mean of all
            tokens comes out; "max" takes the greatest of each number; None where every item has one window.
        left_out: leading tokens of each window that have no part in its row, and no weight.

    Returns:
        float32 [N, V].
    """
    if windows.n_windows == windows.n_items:
        return values
    begins = windows.first_windows
    if how == "max":
        return np.maximum.reduceat(values, begins, axis=0)
    assert how == "mean"
    weights = np.maximum(windows.lengths.astype(np.float64) - left_out, 1)
    sums = np.add.reduceat(values * weights[:, None], begins, axis=0)
    return (sums / np.add.reduceat(weights, begins)[:, None]).astype(np.float32)
