"""What a report counts: the same in whatever pieces it comes; speed, stages and plan of a made-up history."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.data.reporting import times
from raybert.data.reporting.blocks import number, seconds, share, size
from raybert.data.reporting.tallies import Counts, Drawn, Spread, draw_keys, grouped

FLOATS = st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([float("nan"), float("inf")]), max_size=40)


def spread(pieces: list[list[float]]) -> dict[str, Any]:
    whole = Spread()
    for piece in pieces:
        part = Spread()
        for value in piece:
            part.add(np.array([value], np.float32))
        whole.merge(part)
    return whole.facts()


@given(FLOATS, st.randoms(use_true_random=False))
def test_a_histogram_does_not_depend_on_the_order(values: list[float], chance: random.Random) -> None:
    found = spread([values])
    shuffled = chance.sample(values, len(values))
    cut = chance.randint(0, len(values))
    other = spread([shuffled[:cut], shuffled[cut:]])
    assert (found["edges"], found["counts"]) == (other["edges"], other["counts"])
    finite = [value for value in values if np.isfinite(value)]
    assert sum(found["counts"]) == len(finite)
    assert found["non_finite"] == len(values) - len(finite)
    if finite:
        assert len(found["counts"]) <= 40
        assert found["counts"][0] > 0
        assert found["counts"][-1] > 0
        assert found["edges"][0] <= min(finite)
        assert max(finite) < found["edges"][-1]


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=60), st.integers(1, 9))
def test_drawn_rows_do_not_depend_on_the_order(numbers: list[int], most: int) -> None:
    rows = np.array(sorted(numbers), np.int64)
    keys = draw_keys(3, rows)
    whole, pieces = Drawn(most), Drawn(most)
    whole.add(keys, 3, rows)
    for at in reversed(range(len(rows))):
        piece = Drawn(most)
        piece.add(keys[at : at + 1], 3, rows[at : at + 1])
        pieces.merge(piece)
    assert whole.places == pieces.places
    assert whole.places == [(3, int(row)) for row in rows[np.argsort(keys)][:most]]


def test_drawn_rows_are_spread_over_the_run() -> None:
    drawn = Drawn(1000)
    for file in range(4):
        rows = np.arange(25_000)
        drawn.add(draw_keys(file, rows), file, rows)
    by_file = np.bincount([file for file, _ in drawn.places])
    assert by_file.min() > 200
    assert 11_000 < np.mean([row for _, row in drawn.places]) < 14_000


def test_the_smallest_of_each_group() -> None:
    codes, keys = np.array([1, 0, 1, 1, 0, 2]), np.array([5, 9, 1, 3, 2, 7])
    assert grouped(codes, keys, 2).tolist() == [4, 1, 2, 3, 5]
    assert grouped(codes[:0], keys[:0], 2).tolist() == []


def test_counts_stay_bounded_and_the_frequent_ones_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counts, "MOST", 100)
    counts = Counts()
    for block in range(50):
        part = Counts()
        part.add([f"rare {block} {at}" for at in range(90)] + ["often", "too"], [1] * 90 + [40, 20])
        counts.merge(part)
        assert len(counts.counts) <= 200
    (first, often), (second, too), *_ = counts.ranked()
    assert (first, second) == ("often", "too")
    assert counts.least > 0
    assert 2000 - counts.least <= often <= 2000
    assert 1000 - counts.least <= too <= 1000


def session(commits: list[float], **changes: Any) -> dict[str, Any]:
    """A session that began at 1000 and committed splits of 100 rows at these seconds."""
    many = len(commits)
    splits = {
        "file": [0] * many,
        "begin": [100 * at for at in range(many)],
        "rows": [100] * many,
        "quarantined": [1] * many,
        "filtered": [0] * many,
        "tokens": [2000] * many,
        "forwarded": [1500] * many,
        "committed": [1000.0 + each for each in commits],
        **{f"{stage}_s": [value] * many for stage, value in zip(times.STAGES, (0.1, 0.2, 1.9, 0.1), strict=True)},
    }
    resources = {"least": 1, "most": 2, "cpus": 1, "gpus": 0, "streams": 1, "readers": 1, "encoders": 1, "writers": 1}
    whole = {"started": 1000.0, "ended": 1000.0 + max(commits, default=0.0) + 1, "outcome": "complete"}
    return {**whole, "resources": resources, "plan": None, "splits": splits, "searches": [], **changes}


def test_a_session_in_figures() -> None:
    (found,) = times.sessions([session([float(at) for at in range(10, 40)])])
    assert found["started"] == "1970-01-01 00:16:40 UTC"
    assert (found["rows"], found["tokens"], found["quarantined"], found["parts"]) == (3000, 60_000, 30, 30)
    assert (found["seconds"], found["first_commit"], found["whole_seconds"]) == (39.0, 10.0, 40.0)
    assert found["rows_per_second"] == pytest.approx(3000 / 39)
    pace = found["pace"]
    assert sum(pace["rows_per_second"]) * pace["bin_seconds"] == pytest.approx(3000)
    assert sum(pace["tokens_per_second"]) * pace["bin_seconds"] == pytest.approx(60_000)
    assert pace["rows_per_second"][:3] == [0, 0, 0]


def test_stages_and_what_held_the_run_up() -> None:
    history = [session([float(at) for at in range(10, 40)])]
    found = times.stages(history)
    model = found[2]
    assert model["seconds"] == pytest.approx(57)
    assert model["share"] == pytest.approx(1.9 / 2.3)
    assert model["busy"] == pytest.approx(57 / (39 * 2))
    assert model["busy_running"] == pytest.approx(29 * 1.9 / (29 * 2))
    verdict = times.bottleneck(found, 30)
    assert verdict is not None
    assert (verdict["stage"], verdict["verdict"]) == ("model", "The model held the run up")
    assert "--actors" in verdict["advice"]
    short = times.bottleneck(times.stages([session([10.0, 11.0])]), 2)
    assert short is not None
    assert (short["stage"], short["verdict"]) == (None, "The run was too short for a bottleneck")
    history[0]["splits"]["model_s"] = [0.4] * 30
    idle = times.bottleneck(times.stages(history), 30)
    assert idle is not None
    assert idle["verdict"].startswith("No stage was busy all the time")


def test_nothing_committed_is_no_fault() -> None:
    history = [session([], ended=None, outcome="running")]
    (found,) = times.sessions(history)
    assert (found["seconds"], found["ended"], found["pace"], found["rows_per_second"]) == (None, None, None, None)
    assert times.stages(history) == []
    assert times.bottleneck([], 0) is None
    assert times.plans(history, 0) == []


def test_plan_and_what_came() -> None:
    plan = {"seconds": 52.0, "low": 40.0, "high": 60.0, "rows": 3300, "tokens": 60_000, "bytes": 900}
    done = session([float(at) for at in range(10, 40)], plan=plan)
    stopped = session([1.0], plan=plan, outcome="stopped")
    (found,) = times.plans([done], 1000)
    assert (found["session"], found["inside"]) == (1, False)
    by_what = {each["what"]: each for each in found["rows"]}
    assert by_what["seconds"]["error"] == pytest.approx(52 / 39 - 1)
    assert by_what["rows"]["error"] == pytest.approx(0.1)
    assert by_what["tokens"]["error"] == 0
    assert by_what["bytes"] == {"what": "bytes", "planned": 900, "measured": 1000, "error": pytest.approx(-0.1)}
    (found,) = times.plans([stopped, done], 1000)
    assert found["session"] == 2
    assert "bytes" not in {each["what"] for each in found["rows"]}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (share(1), "100 %"),
        (share(0.999999), "99.9999 %"),
        (share(0), "0 %"),
        (share(0.00002), "0.002 %"),
        (share(0.855), "85.5 %"),
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(1024), "1.0 KiB"),
        (size(3 << 40), "3.0 TiB"),
        (seconds(119.96), "120.0 s"),
        (seconds(300), "5.0 min"),
        (seconds(9000), "2.5 h"),
        (number(0.41859), "0.4186"),
        (number(123_456.7), "123,457"),
    ],
)
def test_figures_read_well(shown: str, expected: str) -> None:
    assert shown == expected
