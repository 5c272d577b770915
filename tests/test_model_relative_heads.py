"""Law 2 for classes with a head and relative positions: as transformers 4.57, the last release that has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import raybert
from raybert.checkpoint.config import BertConfig
from tests.fixtures import record_relative_heads as heads
from tests.fixtures.record_relative_heads import GRID, KINDS
from tests.oracle import MASKS, one_thread  # noqa: F401  one_thread is a fixture
from tests.test_model_heads import CLASSES

LONE_EMPTY_ROW = 14
"""The seed of a batch whose one row attends to nothing: distances have no part in its answer."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return heads.recorded()


def test_the_record_is_of_these_inputs(recorded: dict[str, Any]) -> None:
    assert recorded["transformers"].startswith("4.57.")
    assert recorded["inputs_sha256"] == heads.digest_of_inputs(), "record again; see record_relative_heads.py"
    assert {MASKS[seed % len(MASKS)] for seed in heads.SEEDS} == set(MASKS)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradient_equal_the_record(kind: str, name: str, recorded: dict[str, Any]) -> None:
    cases = [(case, answer) for case, answer in zip(GRID, recorded["answers"], strict=True) if case[:2] == (kind, name)]
    assert len(cases) == len(heads.SEEDS)
    for case, expected in cases:
        found = heads.answers(case, raybert, BertConfig)
        assert found.keys() == expected.keys(), case
        for key, numbers in expected.items():
            worst = np.abs(np.subtract(found[key], numbers)).max() / max(1.0, np.abs(numbers).max())
            assert worst <= 1e-5, f"{case}, {key}: off by {worst}"


@pytest.mark.parametrize("name", CLASSES)
def test_the_record_tells_the_kinds_apart(name: str, recorded: dict[str, Any]) -> None:
    answers = dict(zip(GRID, recorded["answers"], strict=True))
    for seed in heads.SEEDS:
        if seed == LONE_EMPTY_ROW:
            continue
        first, second = (answers[heads.Case(kind, name, seed)] for kind in KINDS)
        gaps = [np.abs(np.subtract(first[key], second[key])).max() for key in first if key != "gradient"]
        assert max(gaps) > 1e-3, seed
