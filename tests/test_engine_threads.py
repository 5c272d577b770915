"""The engine's threads: the caller's own are left alone, none is left behind, errors and Ctrl-C pass through."""

from __future__ import annotations

import _thread
import dataclasses
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raybert
from raybert import predict
from raybert.engine import Trunk
from raybert.errors import RowError, SettingsError, UsageError
from raybert.predict import Predictor
from raybert.text.encoding import Windows
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint
from tests.vectors import assert_same, one_thread_a_module  # noqa: F401  a fixture

TEXTS = stdlib_docstrings(60)
STRANGERS: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def strangers() -> None:
    """What other tests' predictors left running is not this test's."""
    STRANGERS.clear()
    STRANGERS.update(threading.enumerate())


def our_threads() -> list[threading.Thread]:
    return [thread for thread in set(threading.enumerate()) - STRANGERS if thread.name.startswith("raybert-")]


def no_threads_after(seconds: float) -> bool:
    until = time.monotonic() + seconds
    while our_threads() and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    return not our_threads()


@pytest.fixture
def predictor(tiny: Path, strangers: None) -> Iterator[Predictor]:
    with raybert.load(str(tiny), "embed", dtype="float32", threads=2) as made:
        yield made
    assert no_threads_after(0)


@pytest.fixture
def windows(predictor: Predictor) -> Windows:
    return predictor.task.encode(TEXTS)


def trunk_of(predictor: Predictor, *, budget: int = 100) -> Trunk:
    """A trunk of two streams and many batches."""
    settings = dataclasses.replace(predictor.settings, budget=budget)
    return Trunk({"embed": predictor.task}, settings, threads=2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_callers_number_of_threads_stays(tiny: Path, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with raybert.load(str(tiny), "embed", dtype="float32", threads=2) as predictor:
            assert torch.get_num_threads() == threads
            for texts in (TEXTS, TEXTS[:1], []):
                predictor(texts)
                assert torch.get_num_threads() == threads
            with pytest.raises(RowError):
                predictor(["fine", None])  # type: ignore[list-item]
            assert torch.get_num_threads() == threads
            # A thread of the caller's that begins later starts from the same number.
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_stream_computes_with_one_thread(predictor: Predictor, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    trunk = Trunk({"embed": predictor.task}, predictor.settings, threads=threads)
    try:
        together = threading.Barrier(threads)

        def own_threads() -> int:
            together.wait(30)  # so that each stream answers once
            torch.ones(100, 100) @ torch.ones(100, 100)
            return torch.get_num_threads()

        found = [trunk.streams.submit(own_threads) for _ in range(threads)]
        assert [future.result() for future in found] == [1] * threads
    finally:
        torch.set_num_threads(before)
        trunk.close()


def test_a_stream_computes_what_it_is_asked_for_itself(predictor: Predictor) -> None:
    """Two streams that each waited for a stream would wait for ever."""
    trunk = Trunk({"embed": predictor.task}, predictor.settings, threads=2)
    try:
        windows = predictor.task.encode(TEXTS)
        expected = trunk.run(windows, {"embed": None})["embed"].values
        together = threading.Barrier(2)

        def compute() -> np.ndarray:
            together.wait(30)
            return trunk.run(windows, {"embed": None}, here=True)["embed"].values

        for found in [trunk.streams.submit(compute) for _ in range(2)]:
            np.testing.assert_array_equal(found.result(30), expected)
    finally:
        trunk.close()


def test_streams_start_when_they_are_needed(predictor: Predictor) -> None:
    before = set(our_threads())
    trunk = Trunk({"embed": predictor.task}, predictor.settings, threads=2)
    assert set(our_threads()) == before, "a process could no longer fork"
    assert trunk.streams is trunk.streams
    assert len(set(our_threads()) - before) == 2
    trunk.close()


def test_close_ends_the_threads(tiny: Path) -> None:
    predictor = raybert.load(str(tiny), "embed", dtype="float32", threads=3)
    predictor(TEXTS)
    assert len(our_threads()) == 3
    predictor.close()
    predictor.close()
    assert not our_threads()
    for texts in ([], TEXTS[:1], TEXTS):
        with pytest.raises(UsageError, match="closed; load it again"):
            predictor(texts)


def test_a_deleted_predictor_leaves_no_thread(tiny: Path) -> None:
    predictor = raybert.load(str(tiny), "embed", dtype="float32", threads=2)
    predictor(TEXTS)
    assert our_threads()
    del predictor
    assert no_threads_after(10)


def test_a_failed_load_leaves_no_thread(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, sentence={"include_prompt": False})
    with pytest.raises(SettingsError, match=r"prompt's .* tokens leave no room in max_length 5"):
        raybert.load(str(folder), "embed", prompt="word " * 200, max_length=5)
    assert not our_threads()


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_numbers_of_threads_that_cannot_be(tiny: Path, threads: object) -> None:
    with pytest.raises(SettingsError, match=r"threads .*: takes a whole number from 1"):
        raybert.load(str(tiny), "embed", threads=threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, 30, 59])
def test_an_error_in_a_stream_reaches_the_caller_and_passes(predictor: Predictor, windows: Windows, bad: int) -> None:
    trunk = trunk_of(predictor)
    expected = trunk.run(windows, {"embed": None})["embed"].values
    ids = windows.ids.copy()
    ids[windows.starts[bad]] = 10**6  # no such word: the embedding of this window's batch fails
    broken = dataclasses.replace(windows, ids=ids)
    for spread in (False, True):
        with pytest.raises(IndexError):
            trunk.run(broken, {"embed": None}, spread=spread)
        assert trunk.streams._work_queue.empty()
        assert np.array_equal(trunk.run(windows, {"embed": None})["embed"].values, expected)
    trunk.close()


def test_an_error_of_a_row_ends_the_encoder_and_passes(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ITEMS", 10)
    expected = predictor(TEXTS)
    with pytest.raises(RowError, match="row 35: "):
        predictor([*TEXTS[:35], "\ud800", *TEXTS])
    assert {thread.name.rpartition("_")[0] for thread in our_threads()} == {"raybert-stream"}
    assert_same(predictor(TEXTS), expected)


def test_ctrl_c_passes_and_the_predictor_answers_on(predictor: Predictor) -> None:
    expected = predictor(TEXTS)
    many = TEXTS * 200

    def answer_on() -> None:
        while True:
            predictor(many)

    for _ in range(3):
        timer = threading.Timer(0.3, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            answer_on()
        timer.join()
        # Nothing goes on computing for a caller that left.
        assert predictor._heads._trunks[0].streams._work_queue.empty()
        assert_same(predictor(TEXTS), expected)


def test_many_threads_may_call_one_predictor(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_CHUNK_ITEMS", 17)
    expected = predictor(TEXTS)

    def call(caller: int) -> None:
        for turn in range(4):
            begin = (7 * caller + 13 * turn) % len(TEXTS)
            assert_same(predictor(TEXTS[begin:]), expected[begin:])
            assert_same(predictor(TEXTS[begin : begin + 1]), expected[begin : begin + 1])

    with ThreadPoolExecutor(4) as callers:
        for future in [callers.submit(call, caller) for caller in range(4)]:
            future.result()


def test_calls_that_take_turns_are_computed_one_after_the_other(predictor: Predictor, windows: Windows) -> None:
    trunk, turn, together = trunk_of(predictor), threading.Lock(), threading.Barrier(2)
    expected = trunk.run(windows, {"embed": None})["embed"].values
    begun: list[int] = []
    compute = trunk._compute

    def noted(sequences: Windows, *rest: Any) -> Any:
        begun.append(id(sequences))
        return compute(sequences, *rest)

    def call(own: Windows) -> np.ndarray:
        together.wait(30)
        return trunk.run(own, {"embed": None}, turn=turn)["embed"].values

    trunk._compute = noted  # type: ignore[method-assign]
    calls = [dataclasses.replace(windows) for _ in range(2)]
    with ThreadPoolExecutor(2) as callers:
        for found in callers.map(call, calls):
            assert np.array_equal(found, expected)
    assert len(begun) > 12
    # Two streams may begin a call's last batch and the next one's first in either order.
    assert begun.index(next(other for other in begun if other != begun[0])) >= len(begun) // 2 - 1
    trunk.close()


def test_predictors_live_side_by_side(tiny: Path) -> None:
    with (
        raybert.load(str(tiny), "embed", dtype="float32", threads=1) as one,
        raybert.load(str(tiny), "embed", dtype="float32", threads=2) as two,
    ):
        assert_same(one(TEXTS), two(TEXTS))
        one.close()
        two(TEXTS)


def test_a_gpu_is_fed_by_one_stream(tiny: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with raybert.load(str(tiny), "embed", device="cuda") as predictor:
        predictor(TEXTS)
        assert len(our_threads()) == 1
