"""Packing is a pure function of lengths: laws over random lengths, and its speed."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raybert.errors import SettingsError
from raybert.text.batching import FULL_ENOUGH, plan_batches

lengths_lists = st.one_of(
    st.lists(st.integers(1, 512), max_size=300),
    st.lists(st.integers(1, 6), max_size=300),  # many equal ones
).map(lambda values: np.array(values, np.int32))


@given(lengths=lengths_lists, budget=st.integers(1, 2000))
@example(lengths=np.array([], np.int32), budget=1)
@example(lengths=np.array([900], np.int32), budget=1)
@example(lengths=np.array([3, 3, 3], np.int64), budget=9)
def test_every_window_once_longest_first_within_the_budget(lengths: np.ndarray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    order = [index for batch in batches for index in batch.tolist()]
    # Longest first, equal ones in the order they came in: exactly a stable sort, hence each index once.
    assert order == sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for batch in batches:
        assert batch.dtype == np.int64
        assert len(batch) == 1 or lengths[batch].sum() <= budget


@given(lengths=lengths_lists, budget=st.integers(1, 2000))
def test_a_batch_ends_full_or_at_a_change_of_length(lengths: np.ndarray, budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        tokens, longest_next = lengths[batch].sum(), lengths[following[0]]
        run_ends = lengths[batch[-1]] != longest_next
        full = tokens + longest_next > budget
        assert full or (run_ends and tokens >= FULL_ENOUGH * budget)
        if full and not run_ends:  # it cut a run in two: without its part of the run it would be too empty
            assert lengths[batch][lengths[batch] != longest_next].sum() < FULL_ENOUGH * budget


@given(lengths=lengths_lists, budget=st.integers(1, 2000))
def test_it_is_a_function(lengths: np.ndarray, budget: int) -> None:
    again = plan_batches(lengths.copy(), budget)
    assert [batch.tolist() for batch in plan_batches(lengths, budget)] == [batch.tolist() for batch in again]


def test_fewer_groups_for_few_more_batches() -> None:
    """The documented trade, on lengths like those of a split of news and of long texts."""
    draw = np.random.default_rng(7)
    for lengths in (draw.normal(54, 15, 7600).clip(8, 256), draw.lognormal(4.5, 0.8, 16384).clip(4, 512)):
        whole = lengths.astype(np.int32)
        batches = plan_batches(whole, 4096)
        n_groups = sum(len(np.unique(whole[batch])) for batch in batches)
        ordered = np.sort(whole)[::-1]
        greedy, begin = [], 0
        while begin < len(ordered):
            end = begin + max(1, int(np.searchsorted(np.cumsum(ordered[begin:]), 4096, side="right")))
            greedy.append(ordered[begin:end])
            begin = end
        assert n_groups < 0.95 * sum(len(np.unique(batch)) for batch in greedy)
        assert len(batches) < 1.05 * len(greedy)


def test_a_hundred_thousand_windows_take_no_time() -> None:
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 100_000).clip(4, 512).astype(np.int32)
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        plan_batches(lengths, 4096)
        best = min(best, time.process_time() - begin)
    assert best < 0.05


def test_a_budget_that_holds_nothing() -> None:
    with pytest.raises(SettingsError, match="budget: 0 tokens hold nothing"):
        plan_batches(np.array([1]), 0)
