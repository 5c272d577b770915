"""The batcher: each request gets what it would get alone, whoever shares its batches, fails or leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raybert
from raybert.serve.batcher import Batcher
from raybert.serve.pieces import Asked, Found, Together
from raybert.serve.process import EngineProcess
from raybert.tasks.arrays import Arrays
from raybert.tasks.program import group_heads
from raybert.text.encoding import Sequences, ranges
from tests.tiny import stdlib_docstrings

POISON = 13


class Echo:
    """Stands in for a trunk: of each window the sum of its ids (head ``sum``), and its ids (head ``ids``).

    A window that begins with `POISON` raises; ``gate``, while it is closed, holds every call.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, pieces: Sequence[Asked]) -> Sequence[Found]:
        await asyncio.wait_for(self.gate.wait(), 10)
        together = Together(pieces)
        return together.parted(self.compute(*together.asked))

    def compute(self, sequences: Sequences, parts: Mapping[str, Any]) -> dict[str, Arrays]:
        self.batches.append(sequences.lengths.tolist())
        starts = sequences.starts
        if POISON in sequences.ids[starts].tolist():
            raise ValueError("poison")
        sums = np.add.reduceat(sequences.ids, starts).astype(np.float32)
        found = {}
        for name, part in parts.items():
            index = np.arange(sequences.n_windows) if part is None else part
            if name == "sum":
                found[name] = Arrays(values=sums[index][:, None])
            else:
                lengths = sequences.lengths[index]
                ids = sequences.ids[ranges(starts[index], lengths)]
                found[name] = Arrays(values=ids.astype(np.float32)[:, None], counts=lengths)
        return found


def windows(*lengths: int, first: int = 100) -> Sequences:
    """So many windows, whose ids are consecutive numbers."""
    total = sum(lengths)
    return Sequences(ids=np.arange(first, first + total, dtype=np.int32), lengths=np.array(lengths, np.int32))


def assert_same(found: Mapping[str, Arrays], expected: Mapping[str, Arrays]) -> None:
    assert found.keys() == expected.keys()
    for name, arrays in expected.items():
        np.testing.assert_array_equal(found[name].values, arrays.values)
        assert (found[name].counts is None) == (arrays.counts is None)
        if arrays.counts is not None:
            np.testing.assert_array_equal(found[name].counts, arrays.counts)


calls = st.lists(
    st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.booleans(), st.randoms(use_true_random=False)),
    min_size=1,
    max_size=12,
)


def parts_of(lengths: list[int], rng: Any) -> dict[str, Any]:
    """One head reads all windows, the other some of them in an order of its own."""
    some = rng.sample(range(len(lengths)), rng.randint(0, len(lengths)))
    return {"sum": None, "ids": np.array(some, np.int32)}


@settings(max_examples=30)
@given(calls, st.integers(1, 3))
def test_each_request_gets_what_it_would_get_alone(calls, workers):
    async def all_at_once() -> None:
        batcher = Batcher(Echo(), budget=50, workers=workers)
        asked = [
            (windows(*lengths, first=1000 * (at + 1)), parts_of(lengths, rng))
            for at, (lengths, _, rng) in enumerate(calls)
        ]
        bulk = [each[1] for each in calls]
        answers = await asyncio.gather(
            *(batcher.compute(*each, bulk=is_bulk) for each, is_bulk in zip(asked, bulk, strict=True))
        )
        for answer, (sequences, parts) in zip(answers, asked, strict=True):
            assert_same(answer.arrays, Echo().compute(sequences, parts))
        assert (batcher.requests, batcher.tokens_waiting) == (0, 0)
        await batcher.close()

    asyncio.run(all_at_once())


def test_a_lone_request_leaves_at_once_and_others_gather_meanwhile():
    async def main() -> None:
        trunk = Echo()
        batcher = Batcher(trunk, budget=100, workers=1)
        trunk.gate.clear()
        first = asyncio.create_task(batcher.compute(windows(10), {"sum": None}))
        await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.compute(windows(20), {"sum": None})) for _ in range(7)]
        await asyncio.sleep(0)
        assert (batcher.requests, batcher.tokens_waiting) == (8, 140)
        trunk.gate.set()
        await asyncio.gather(first, *others)
        assert trunk.batches == [[10], [20] * 5, [20] * 2]
        await batcher.close()

    asyncio.run(main())


def test_a_request_that_fails_fails_alone():
    async def main() -> None:
        trunk = Echo()
        batcher = Batcher(trunk, budget=1000, workers=1)
        trunk.gate.clear()
        await_first = asyncio.create_task(batcher.compute(windows(1), {"sum": None}))
        await asyncio.sleep(0)
        asked = [windows(5, 5, first=POISON if at == 2 else 100 * (at + 1)) for at in range(5)]
        tasks = [asyncio.create_task(batcher.compute(each, {"sum": None})) for each in asked]
        await asyncio.sleep(0)
        trunk.gate.set()
        await await_first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for at, answer in enumerate(answers):
            if at == 2:
                assert isinstance(answer, ValueError)
            else:
                assert_same(answer.arrays, Echo().compute(asked[at], {"sum": None}))
        assert (batcher.requests, batcher.tokens_waiting) == (0, 0)
        await batcher.compute(windows(3), {"sum": None})
        await batcher.close()

    asyncio.run(main())


def test_what_a_cancelled_request_still_wanted_is_not_computed():
    async def main() -> None:
        trunk = Echo()
        batcher = Batcher(trunk, budget=10, workers=1)
        trunk.gate.clear()
        leaves = asyncio.create_task(batcher.compute(windows(10, 10, 10), {"sum": None}))
        stays = asyncio.create_task(batcher.compute(windows(7), {"sum": None}))
        await asyncio.sleep(0)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert batcher.tokens_waiting == 7
        trunk.gate.set()
        await stays
        assert trunk.batches == [[10], [7]]
        await batcher.close()

    asyncio.run(main())


def test_a_request_that_waits_knows_how_long():
    async def main() -> None:
        trunk = Echo()
        batcher = Batcher(trunk, budget=10, workers=1)
        trunk.gate.clear()
        asyncio.get_running_loop().call_later(0.2, trunk.gate.set)
        first, second = await asyncio.gather(*(batcher.compute(windows(10), {"sum": None}) for _ in range(2)))
        assert first.queue_s < 0.1 < first.compute_s
        assert second.queue_s > 0.1 > second.compute_s
        await batcher.close()

    asyncio.run(main())


def test_a_real_trunk_gives_its_own_answers(tiny):
    """Heads of one BERT, texts of all lengths, many at once: what `load_heads` gives for each alone."""
    texts = [text[:600] for text in stdlib_docstrings(40)]
    heads = {"v": (tiny, "embed"), "first": (tiny, "embed", {"pooling": "cls", "max_length": 16})}
    with raybert.load_heads(heads, dtype="float32", device="cpu", threads=2) as alone:
        expected = [alone([text]) for text in texts]
        program = group_heads(alone.tasks)
        process = EngineProcess([alone.tasks], alone.settings, workers=2)

    async def answered(batcher: Batcher, text: str) -> dict[str, Any]:
        encoded = program.encode([text])
        sequences, parts = program.shared(0, encoded)
        wanted = {name: parts[program.encoding_of(name)] for name in program.trunks[0]}
        answer = await batcher.compute(sequences, wanted)
        return {
            name: task.decode([text], encoded[program.encoding_of(name)], answer.arrays[name])
            for name, task in program.tasks.items()
        }

    async def main() -> list[dict[str, Any]]:
        batcher = Batcher(process.trunk(0), budget=256, workers=2)
        try:
            found = await asyncio.gather(*(answered(batcher, text) for text in texts))
            await batcher.close()
            return found
        finally:
            await process.close()

    found = asyncio.run(main())
    for one, other in zip(found, expected, strict=True):
        for name in heads:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)
