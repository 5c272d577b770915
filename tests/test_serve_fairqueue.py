"""The queue of windows: every window once, within the budget, in order, and nobody held off."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.errors import SettingsError
from raybert.serve.fairqueue import BULK_SHARE, LEAST_SHARED, LOOK_AHEAD, FairQueue, Piece

BUDGET = 100

requests = st.lists(st.integers(1, 130), min_size=1, max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), requests, st.booleans()),
        st.tuples(st.just("take")),
        st.tuples(st.just("remove"), st.integers(0, 30)),
    ),
    max_size=40,
)


def tokens_of(pieces: list[Piece], asked: dict[int, list[int]]) -> int:
    return sum(sum(asked[piece.ticket][piece.begin : piece.end]) for piece in pieces)


def drained(queue: FairQueue) -> list[list[Piece]]:
    batches = []
    while batch := queue.take():
        batches.append(batch)
    return batches


@given(steps)
def test_every_window_is_handed_out_once_in_its_order_and_within_the_budget(steps):
    queue, asked, got, removed = FairQueue(budget=BUDGET), {}, {}, set()

    def take() -> list[Piece]:
        batch = queue.take()
        assert len({piece.ticket for piece in batch}) == len(batch)
        windows = sum(piece.end - piece.begin for piece in batch)
        assert tokens_of(batch, asked) <= BUDGET or windows == 1
        for piece in batch:
            assert piece.ticket not in removed
            assert piece.begin == got[piece.ticket]
            assert piece.begin < piece.end <= len(asked[piece.ticket])
            got[piece.ticket] = piece.end
        return batch

    for word, *rest in steps:
        if word == "add":
            ticket = len(asked)
            asked[ticket], got[ticket] = rest[0], 0
            queue.add(ticket, rest[0], bulk=rest[1])
        elif word == "take":
            waits = len(queue)
            assert bool(take()) == bool(waits)
        else:
            queue.remove(rest[0])
            if rest[0] in asked:
                removed.add(rest[0])
        left = {ticket: asked[ticket][got[ticket] :] for ticket in asked.keys() - removed}
        assert len(queue) == sum(map(bool, left.values()))
        assert queue.tokens == sum(map(sum, left.values()))
    while take():
        pass
    assert all(got[ticket] == len(asked[ticket]) for ticket in asked.keys() - removed)
    assert (len(queue), queue.tokens) == (0, 0)


@given(st.lists(st.lists(st.integers(1, BUDGET), max_size=6), min_size=1, max_size=20))
def test_of_short_requests_the_one_that_came_first_is_in_the_next_batch(arrivals):
    """Some come, a batch leaves, and so on: nobody waits longer than those before it, whoever fills the gaps."""
    queue, tickets, waiting = FairQueue(budget=BUDGET), count(), []
    for lengths in [*arrivals, *[[]] * sum(map(len, arrivals))]:
        for length in lengths:
            waiting.append(next(tickets))
            queue.add(waiting[-1], [length])
        gone = {piece.ticket for piece in queue.take()}
        assert not waiting or waiting[0] in gone
        waiting = [ticket for ticket in waiting if ticket not in gone]
    assert not waiting


def test_the_window_that_is_next_always_goes():
    queue = FairQueue(budget=BUDGET)
    queue.add(0, [60])
    queue.add(1, [50])
    queue.add(2, [40])
    queue.add(3, [500])
    assert [[piece.ticket for piece in batch] for batch in drained(queue)] == [[0, 2], [1], [3]]


def test_a_long_request_and_short_ones_share():
    """Fifty batches' worth from one client: a request that comes later goes with the next batch."""
    queue, tickets = FairQueue(budget=BUDGET), count()
    long = next(tickets)
    queue.add(long, [20] * 250)
    queue.take()
    for _ in range(10):
        short = next(tickets)
        queue.add(short, [20])
        batch = queue.take()
        assert short in {piece.ticket for piece in batch}
        assert long in {piece.ticket for piece in batch}


def test_new_requests_hold_nobody_off():
    """With always four new short ones a batch, a long one still gets its share, a fifth at least."""
    queue, tickets = FairQueue(budget=BUDGET), count()
    long = next(tickets)
    queue.add(long, [20] * 40)
    handed_out, batches = 0, 0
    while handed_out < 40 * 20:
        for _ in range(4):
            queue.add(next(tickets), [20])
        batches += 1
        handed_out += sum(20 * (piece.end - piece.begin) for piece in queue.take() if piece.ticket == long)
        assert batches <= 50


def test_bulk_yields_but_goes_on():
    """Both sides wait at all times: an interactive request gets its share, eight times that of a bulk one."""
    queue = FairQueue(budget=BUDGET)
    queue.add(0, [10] * 900, bulk=True)
    queue.add(1, [10] * 900)
    got = {0: 0, 1: 0}
    for _ in range(45):
        for piece in queue.take():
            got[piece.ticket] += piece.end - piece.begin
    assert got[1] / got[0] == pytest.approx(1 / BULK_SHARE, rel=0.1)
    queue.add(2, [10])
    assert 2 in {piece.ticket for piece in queue.take()}


def test_fillers_are_looked_for_among_so_many_requests():
    queue = FairQueue(budget=BUDGET)
    queue.add(0, [50])
    for ticket in range(1, LOOK_AHEAD + 1):
        queue.add(ticket, [60])
    queue.add(LOOK_AHEAD + 1, [50])
    assert [piece.ticket for piece in queue.take()] == [0]
    assert [piece.ticket for piece in queue.take()] == [1]
    queue.add(LOOK_AHEAD + 2, [40])
    assert [piece.ticket for piece in queue.take()] == [2, LOOK_AHEAD + 2]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 4))
def test_streams_share_what_waits(lengths, streams):
    """No batch is more than one stream's part of what waits, but for what is not worth dividing; nothing is left."""
    queue, waiting = FairQueue(budget=512, streams=streams), dict(enumerate(lengths))
    for ticket, length in waiting.items():
        queue.add(ticket, [length])
    while waiting:
        total = sum(waiting.values())
        taken = [waiting.pop(piece.ticket) for piece in queue.take()]
        part = min(512, max(LEAST_SHARED, -(-total // streams)))
        assert sum(taken) <= part
        assert not waiting or sum(taken) > part - 60  # 60: the longest that could not be fitted in
    assert queue.take() == []


def test_a_burst_is_computed_by_all_streams():
    queue = FairQueue(budget=512, streams=2)
    for ticket in range(10):
        queue.add(ticket, [50])
    assert [len(queue.take()) for _ in range(3)] == [5, 3, 2]


def test_a_budget_that_holds_nothing_is_refused():
    with pytest.raises(SettingsError, match="budget: 0 tokens hold nothing"):
        FairQueue(budget=0)
