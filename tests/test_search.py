"""The search for rows that fail: pure, against every pattern of failing rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.search import DIED, Failure, TooMany, failing_rows


@given(st.integers(0, 1000), st.integers(1, 300), st.data())
def test_every_row_that_fails_alone_is_found(begin: int, count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(begin, begin + count - 1), min_size=1, max_size=5))
    probes = []

    def fails(low: int, high: int) -> Failure | None:
        assert begin <= low < high <= begin + count
        probes.append((low, high))
        worst = min((row for row in bad if low <= row < high), default=None)
        return None if worst is None else ("failed", f"row {worst}")

    found = failing_rows(begin, begin + count, fails)
    assert found == {row: ("failed", f"row {row}") for row in bad}
    assert len(probes) <= len(bad) * 2 * (count - 1).bit_length() + 1


def test_rows_that_fail_only_together_are_not_blamed() -> None:
    def fails(low: int, high: int) -> Failure | None:
        return DIED if high - low > 3 else None

    assert failing_rows(0, 100, fails) == {}


def test_a_split_in_which_everything_fails_is_not_searched_to_its_end() -> None:
    probes = []

    def fails(low: int, high: int) -> Failure | None:
        probes.append((low, high))
        return DIED

    with pytest.raises(TooMany):
        failing_rows(0, 16_384, fails, most=16)
    assert len(probes) < 80
