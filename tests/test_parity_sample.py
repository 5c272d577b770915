"""Parity's parts without a run: which rows are drawn, and what counts as equal."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.cli.parity import model_places
from raybert.data.compare import (
    EXACT,
    TOLERANCES,
    Comparison,
    Weights,
    answer_form,
    cosine_and_ratio,
    innermost,
    shown,
    stored_forms,
    told,
)
from raybert.data.sample import draw
from raybert.errors import SettingsError
from raybert.tasks.classify import Classification
from raybert.tasks.ner import Entity

SIZES = st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(0, 40), min_size=1, max_size=30)


@given(sizes=SIZES, rows=st.integers(1, 300), seed=st.integers(0, 5))
def test_a_draw_is_even_and_repeats(sizes: dict[str, int], rows: int, seed: int) -> None:
    drawn = draw(sizes, rows, seed)
    assert drawn == draw(dict(reversed(sizes.items())), rows, seed)
    assert list(drawn) == sorted(drawn)
    assert sum(map(len, drawn.values())) == min(rows, sum(sizes.values()))
    for name, positions in drawn.items():
        assert positions == sorted(set(positions))
        assert set(positions) <= set(range(sizes[name]))
    counts = {name: len(positions) for name, positions in drawn.items()}
    if rows >= sum(size > 0 for size in sizes.values()):
        assert set(counts) == {name for name, size in sizes.items() if size}
    # Even: who has fewer than another by two or more has no more to give.
    most = max(counts.values(), default=0)
    assert all(count >= most - 1 or count == sizes[name] for name, count in counts.items())


def test_another_seed_draws_other_rows_and_all_parts_get_their_turn() -> None:
    sizes = {f"part-{number}": 100 for number in range(50)}
    assert draw(sizes, 200, 0) != draw(sizes, 200, 1)
    turns = Counter(name for seed in range(40) for name in draw(sizes, 10, seed))
    assert len(turns) == 50


def test_scores_within_the_tolerance_are_equal_and_the_worst_is_known() -> None:
    comparison = Comparison(TOLERANCES["float32"])
    assert comparison.equal(0.5, 0.500004)
    assert comparison.equal([{"label": "a", "score": 0.25}], [{"label": "a", "score": 0.25}])
    assert comparison.largest_difference == pytest.approx(4e-6)
    assert not comparison.equal(0.5, 0.5001)
    assert comparison.equal(1000.0, 1000.005)  # a regression's number has no range: above 1 its own size counts
    assert not comparison.equal(1000.0, 1000.02)
    assert comparison.largest_difference == pytest.approx(1e-4)
    assert comparison.equal(float("nan"), float("nan"))
    assert not comparison.equal(float("inf"), 1.0)


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("a", "b"),
        (3, 4),
        (True, False),
        (None, "a"),
        ("a", None),
        ([1, 2], [1]),
        ([], None),
        ({"a": 0.5}, {"b": 0.5}),
        ({"a": 0.5}, None),
        (0.5, None),
        (np.ones(3, np.float32), np.ones(4, np.float32)),
        (np.ones(3, np.float32), None),
        (np.ones(3, np.float32), 2 * np.ones(3, np.float32)),  # the same direction, another length
        (np.ones(3, np.float32), np.zeros(3, np.float32)),
        (np.array([np.inf, 1.0], np.float16), np.ones(2, np.float16)),
        (np.ones((2, 3), np.float32), np.array([[1, 1, 1], [1, 1, 0.9]], np.float32)),
        (Weights({1: 0.5}), Weights({2: 0.5})),
    ],
    ids=str,
)
def test_what_differs_is_seen_from_both_sides(stored: object, computed: object) -> None:
    for tolerance in (*TOLERANCES.values(), EXACT):
        assert not Comparison(tolerance).equal(stored, computed)
        assert not Comparison(tolerance).equal(computed, stored)


def test_an_exact_comparison_takes_equal_values_alone() -> None:
    comparison = Comparison(EXACT)
    vector = np.random.default_rng(3).standard_normal(384).astype(np.float32)
    for value in ("a", 3, 0.1, [0.1, None], {"a": [1.5]}, vector, np.zeros(3, np.float32), Weights({1: 0.5})):
        assert comparison.equal(value, value)
    assert comparison.worst_cosine == 1.0
    assert not comparison.equal(0.1, np.nextafter(0.1, 1))


def test_a_word_that_weighs_next_to_nothing_may_be_missing() -> None:
    assert Comparison(TOLERANCES["float32"]).equal(Weights({1: 0.5, 2: 1e-7}), Weights({1: 0.5}))


def test_every_difference_is_looked_at_for_the_worst() -> None:
    comparison = Comparison(TOLERANCES["float32"])
    assert not comparison.equal([0.5, 0.5], [0.6, 0.9])
    assert comparison.largest_difference == pytest.approx(0.4)


def test_rounding_to_float16_stays_far_within_the_tolerance_of_float32() -> None:
    draws = np.random.default_rng(0)
    for width in (2, 32, 384, 1024):
        vectors = draws.standard_normal((100, width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        near = [cosine_and_ratio(one.astype(np.float16), one) for one in vectors]
        assert min(cosine for cosine, _ in near) > 1 - 2e-7
        assert max(abs(ratio - 1) for _, ratio in near) < 5e-4


def test_columns_and_answers_come_to_one_form() -> None:
    scores = pa.field("t_scores", pa.list_(pa.float32()), metadata={"labels": '["x", "y", "x"]'})
    schema = pa.schema([pa.field("t_label", pa.string()), pa.field("t_score", pa.float32()), scores])
    table = pa.table({"t_label": ["y"], "t_score": [0.5], "t_scores": [[0.25, 0.5, 0.125]]}, schema=schema)
    (form,) = stored_forms("t", list(schema), table, ["a text"])
    assert form == {"t_label": "y", "t_score": 0.5, "t_scores": {"x": 0.25, "y": 0.5}}  # of equal labels the higher
    answer = Classification("y", 0.5, {"y": 0.5, "x": 0.25})
    assert answer_form("t", list(schema), answer, "float32") == form
    choices = pa.schema([schema.field(0), schema.field(1), scores.remove_metadata()])
    (form,) = stored_forms("t", list(choices), table.cast(choices), [("q", ["b", "y", "c"])])
    assert form["t_scores"] == {"b": 0.25, "y": 0.5, "c": 0.125}
    number = [pa.field("t", pa.float32())]
    assert answer_form("t", number, Classification("LABEL_0", 2.5, {"LABEL_0": 2.5}), "float32") == {"t": 2.5}
    entity = Entity("X", 0.5, 0, 1, "a")
    expected = {"t": [{"label": "X", "score": 0.5, "start": 0, "end": 1, "text": "a"}]}
    assert answer_form("t", number, [entity], "float32") == expected
    assert answer_form("v", [], np.array([1 / 3], np.float32), "float16")["v"].dtype == np.float16


def test_vectors_come_out_of_both_kinds_of_columns() -> None:
    draws = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float16)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(draws.reshape(-1)), 4)
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 5], pa.int32()), flat)
    table = pa.table({"v": flat.slice(1, 3), "w": lists})
    forms = stored_forms("v", [table.schema.field("v")], table, [])
    assert [form["v"].tolist() for form in forms] == draws[1:4].tolist()
    forms = stored_forms("w", [table.schema.field("w")], table, [])
    assert [form["w"].tolist() for form in forms] == [draws[:2].tolist(), [], draws[2:].tolist()]


def test_values_are_shown_in_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown(["word"] * 100)) == 100
    assert shown(0.1234567891) == "0.1234568"
    assert shown(np.array([3.0, 4.0])) == "a vector of length 5"
    assert told(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == "a vector of length 5 (cosine 0.9600000)"
    assert shown(np.ones((2, 3))) == "2 vectors"


@pytest.mark.parametrize(
    ("stored", "computed", "expected"),
    [
        (0.5, 0.6, ("c", 0.5, 0.6)),
        ([{"s": 0.5}, {"s": 0.5}], [{"s": 0.5}, {"s": 0.7}], ("c[1]['s']", 0.5, 0.7)),
        ([1], [1, 2], ("c", [1], [1, 2])),
        ({"x": 1, "y": 2}, {"x": 1, "y": 3}, ("c['y']", 2, 3)),
        ({"x": 1}, {"y": 1}, ("c", {"x": 1}, {"y": 1})),
        (Weights({7: 0.5}), Weights({7: 0.5, 9: 0.25}), ("c[9]", 0.0, 0.25)),
        ([0.5, "a"], [0.5000001, "b"], ("c[1]", "a", "b")),  # what rounding explains is passed by
        ("a", None, ("c", "a", None)),
    ],
)
def test_the_innermost_difference_is_named(stored: object, computed: object, expected: tuple[object, ...]) -> None:
    assert innermost(TOLERANCES["float32"], "c", stored, computed) == expected


def test_places_of_models_are_read() -> None:
    assert model_places(["v=a/b", "w=x=y"]) == {"v": "a/b", "w": "x=y"}
    for words, message in [(["a/b"], "write NAME=PATH"), (["v="], "write NAME=PATH"), (["v=a", "v=b"], "named twice")]:
        with pytest.raises(SettingsError, match=message):
            model_places(words)
