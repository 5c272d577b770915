"""What users write on a command line: sizes, ranges, lists, options of heads; tables of right and wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.cli import words
from raybert.config import HeadSpec
from raybert.errors import SettingsError

SIZES = {
    "1": 1,
    "1000": 1000,
    "7b": 7,
    "32MiB": 32 * 2**20,
    "32 MiB": 32 * 2**20,
    "32mib": 32 * 2**20,
    "500kB": 500_000,
    "500k": 500_000,
    "1.5M": 1_500_000,
    "0.5KiB": 512,
    " 2GB ": 2 * 10**9,
    "2g": 2 * 10**9,
    "1GiB": 2**30,
    "0.001kB": 1,
}


@pytest.mark.parametrize("text", SIZES)
def test_sizes(text: str) -> None:
    assert words.size("split-bytes", text) == SIZES[text]


NO_SIZES = [
    "",
    "MiB",
    "x",
    "-1",
    "0",
    "0.0",
    "0.4",
    "0MiB",
    "1.2.3",
    "1e6",
    "1,000",
    "3TB",
    "nan",
    "inf",
    "9" * 400,
    "1 2",
]


@pytest.mark.parametrize("text", NO_SIZES)
def test_no_sizes(text: str) -> None:
    with pytest.raises(SettingsError, match=r"split-bytes .*: takes a size such as 32MiB, 500kB or 1000000"):
        words.size("split-bytes", text)


@pytest.mark.parametrize(("text", "least", "most"), [("1", 1, 1), ("4", 4, 4), ("1:8", 1, 8), (" 2:2 ", 2, 2)])
def test_actor_ranges(text: str, least: int, most: int) -> None:
    assert words.actor_range(text) == (least, most)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "takes N or MIN:MAX"),
        ("a", "takes N or MIN:MAX"),
        ("1:", "takes N or MIN:MAX"),
        (":3", "takes N or MIN:MAX"),
        ("1:2:3", "takes N or MIN:MAX"),
        ("-1", "takes N or MIN:MAX"),
        ("1.5", "takes N or MIN:MAX"),
        ("9" * 5000, "takes N or MIN:MAX"),
        ("0", "at least 1, and MIN at most MAX"),
        ("0:3", "at least 1, and MIN at most MAX"),
        ("3:2", "at least 1, and MIN at most MAX"),
    ],
    ids=lambda text: text[:20],
)
def test_no_actor_ranges(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"actors .*{message}"):
        words.actor_range(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, None),
        ("all", "all"),
        ("", ()),
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b c ,", ("a", "b c")),
        ("ALL", ("ALL",)),
    ],
)
def test_columns(text: str | None, names: Any) -> None:
    assert words.columns(text) == names


VALUES: list[tuple[str, Any]] = [
    ("3", 3),
    ("-3", -3),
    ("0.5", 0.5),
    ("1e3", 1000.0),
    ("true", True),
    ("false", False),
    ("null", None),
    ("", ""),
    ("mean", "mean"),
    ("True", "True"),
    ("007", "007"),
    ("3 apples", "3 apples"),
    ('"quoted"', '"quoted"'),
    ("[1]", "[1]"),
    ('{"a": 1}', '{"a": 1}'),
    ("query: ", "query: "),
    ("a=b", "a=b"),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_option_values(text: str, value: Any) -> None:
    found = words.option_value(text)
    assert found == value
    assert type(found) is type(value)


@given(st.text())
def test_any_option_value_is_a_plain_one(text: str) -> None:
    assert isinstance(words.option_value(text), str | int | float | bool | None)


def specs(*heads: str, options: tuple[str, ...] = (), **short: Any) -> tuple[HeadSpec, ...]:
    return words.head_specs(heads, model="demo", options=options, short=short)


HEADS: list[tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], list[dict[str, Any]]]] = [
    (("embed",), (), {}, [{}]),
    (("embed",), (), {"prompt": None, "dimensions": 3}, [{"dimensions": 3}]),
    (("embed",), ("max-length=5", "normalize=false"), {}, [{"max_length": 5, "normalize": False}]),
    (("embed",), ("embed.dimensions=7",), {"dimensions": 3}, [{"dimensions": 7}]),
    (("embed",), ("dimensions=7",), {"dimensions": 3}, [{"dimensions": 7}]),
    (
        ("v:embed", "w:embed=m"),
        ("dimensions=7", "w.dimensions=9", "v.prompt-name=q"),
        {"max_length": 4},
        [{"max_length": 4, "dimensions": 7, "prompt_name": "q"}, {"max_length": 4, "dimensions": 9}],
    ),
    (("embed",), ("prompt=a=b",), {}, [{"prompt": "a=b"}]),
    (("embed",), ("prompt=",), {}, [{"prompt": ""}]),
    (("embed",), ("prompt=two\nlines",), {}, [{"prompt": "two\nlines"}]),
    (("embed",), ("prompt=1.50", "embed.prompt_name=true"), {}, [{"prompt": "1.50", "prompt_name": "true"}]),
    (("embed",), ("prompt=v1.2=x",), {}, [{"prompt": "v1.2=x"}]),
]


@pytest.mark.parametrize(("heads", "options", "short", "expected"), HEADS, ids=str)
def test_options_of_heads(
    heads: tuple[str, ...], options: tuple[str, ...], short: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    assert [dict(spec.options) for spec in specs(*heads, options=options, **short)] == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dimensions", "option 'dimensions': write KEY=VALUE or NAME.KEY=VALUE"),
        ("=3", "write KEY=VALUE or NAME.KEY=VALUE"),
        ("", "write KEY=VALUE or NAME.KEY=VALUE"),
        ("a b=3", "write KEY=VALUE or NAME.KEY=VALUE"),
        ("a.b.c=3", "write KEY=VALUE or NAME.KEY=VALUE"),
        ("vv.dimensions=3", "option vv.…: no head is called 'vv'; did you mean 'v'\\?"),
    ],
)
def test_options_that_are_refused(option: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        specs("v:embed", options=(option,))


def test_models_and_revisions() -> None:
    found = words.head_specs(["a:embed", "b:embed=own"], model="shared", revision="v1", short={})
    assert [(spec.name, spec.model, spec.revision) for spec in found] == [("a", "shared", "v1"), ("b", "own", "v1")]


def test_a_head_without_a_model() -> None:
    with pytest.raises(SettingsError, match="no model; write embed=MODEL or pass --model"):
        words.head_specs(["embed"], model=None, short={})


def test_counts_agree_with_their_nouns() -> None:
    expected = {0: "0 parts", 1: "1 part", 2: "2 parts", 1000: "1,000 parts"}
    assert {number: words.counted(number, "part") for number in expected} == expected


def test_options_for_all_of_several_heads_reach_those_that_can_use_them() -> None:
    heads = ["v:embed=m", "t:classify=m", "n:ner=m", "r:rerank=m"]

    def given(*own: str, **short: object) -> dict[str, dict[str, object]]:
        specs = words.head_specs(heads, model=None, options=own, short=short)
        return {spec.name: dict(spec.options) for spec in specs}

    assert given(aggregation="first") == {"v": {}, "t": {}, "n": {"aggregation": "first"}, "r": {}}
    assert given(stride=8) == {"v": {}, "t": {}, "n": {"stride": 8}, "r": {}}
    slide = {"windows": "slide"}
    assert given(windows="slide") == {"v": slide, "t": slide, "n": slide, "r": {}}
    both = {"windows": "slide", "aggregation": "max"}
    assert given("v.windows=slide", aggregation="max")["v"] == both
    assert given("v.windows=slide", aggregation="max")["t"] == {}
    assert given(threshold=0.3) == {"v": {}, "t": {"threshold": 0.3}, "n": {}, "r": {}}
    # What none can use goes to those that have it: they say what is wrong.
    assert given(aggregation="most")["v"] == {"aggregation": "most"}
    with pytest.raises(SettingsError, match="v, t, n, r: unknown option 'top'"):
        given(top=3)
    lists = given("n.ignore_labels=O,MISC", "n.max_length=12")["n"]
    assert lists == {"ignore_labels": "O,MISC", "max_length": 12}
