"""What a user asks for, read from words and from Python: heads, tasks, options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.config import (
    TASK_NAMES,
    HeadSpec,
    heads_from,
    known_options,
    nearest,
    one_of,
    parse_head,
    task_name,
)
from raybert.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "name", "model"),
    [
        ("embed", "embed", "default"),
        ("feature-extraction", "embed", "default"),
        ("embed=demo", "embed", "demo"),
        ("v:embed", "v", "default"),
        ("v:embed=demo", "v", "demo"),
        ("_v2:sentence-similarity=org/model", "_v2", "org/model"),
        ("v:embed=/a path/with:colon=and equals", "v", "/a path/with:colon=and equals"),
        ("embed=s3://bucket/model", "embed", "s3://bucket/model"),
    ],
)
def test_heads_as_words(text: str, name: str, model: str) -> None:
    head = parse_head(text, default_model="default", options={"dimensions": 3})
    assert head == HeadSpec(name=name, task="embed", model=model, options={"dimensions": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "head '': write TASK, TASK=MODEL or NAME:TASK=MODEL"),
        ("=demo", "write TASK, TASK=MODEL or NAME:TASK=MODEL"),
        ("embed=", "write TASK, TASK=MODEL or NAME:TASK=MODEL"),
        (":embed", "write TASK, TASK=MODEL or NAME:TASK=MODEL"),
        ("v:", "write TASK, TASK=MODEL or NAME:TASK=MODEL"),
        ("a:b:embed", "write TASK, TASK=MODEL or NAME:TASK=MODEL"),
        ("embd=demo", "task 'embd': unknown; there is classify, embed, .*; did you mean 'embed'\\?"),
        ("embed", "head 'embed': no model; write embed=MODEL or pass --model"),
        ("2v:embed=demo", "head name '2v': letters, digits and _ only, not beginning with a digit"),
        ("a b:embed=demo", "head name 'a b': letters"),
        ("é:embed=demo", "head name 'é': letters"),
    ],
)
def test_words_that_are_no_heads(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_head(text)


@given(st.text(max_size=30))
def test_any_words_are_a_head_or_an_error(text: str) -> None:
    try:
        head = parse_head(text, default_model="demo")
    except SettingsError:
        return
    assert head.task in TASK_NAMES.values()
    assert head.model


def test_heads_from_python() -> None:
    own = HeadSpec(name="own", task="embed", model="m", revision="main")
    heads = heads_from(
        {"v": ("demo", "embed"), "w": ["org/m", "feature-extraction", {"normalize": False}], "other": own}
    )
    assert heads == (
        HeadSpec(name="v", task="embed", model="demo"),
        HeadSpec(name="w", task="embed", model="org/m", options={"normalize": False}),
        own,
    )


@pytest.mark.parametrize(
    ("given_heads", "message"),
    [
        ({}, r"heads: none given; pass at least one, as \{'v': \('demo', 'embed'\)\}"),
        ({"v": "demo"}, r"head 'v': 'demo'; write \(model, task\) or \(model, task, options\)"),
        ({"v": ("demo",)}, "head 'v': "),
        ({"v": ("demo", "embed", {}, 1)}, "head 'v': "),
        ({"v": ("demo", "nothing")}, "task 'nothing': unknown"),
        ({"a-b": ("demo", "embed")}, "head name 'a-b'"),
    ],
    ids=str,
)
def test_heads_from_python_that_cannot_be(given_heads: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        heads_from(given_heads)


def test_heads_are_frozen_and_refuse_unknown_keys() -> None:
    head = HeadSpec(name="v", task="embed", model="demo")
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.name = "w"  # type: ignore[misc]
    with pytest.raises(TypeError):
        HeadSpec(name="v", task="embed", model="demo", device="cpu")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        HeadSpec("v", "embed", "demo")  # type: ignore[misc]


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_name_leads_to_a_name_of_its_own(name: str) -> None:
    assert task_name(task_name(name)) == task_name(name)


def test_one_of() -> None:
    assert one_of("dtype", "float32", ("auto", "float32")) == "float32"
    with pytest.raises(SettingsError, match="dtype: 'float23' is none of auto, float32; did you mean 'float32'\\?"):
        one_of("dtype", "float23", ("auto", "float32"))
    with pytest.raises(SettingsError, match=r"dtype: None is none of auto, float32$"):
        one_of("dtype", None, ("auto", "float32"))  # type: ignore[arg-type]


def test_known_options() -> None:
    known_options("embed", {"a": 1}, ["a", "b"])
    with pytest.raises(SettingsError, match="embed: unknown option 'dimention'; did you mean 'dimensions'\\?"):
        known_options("embed", {"dimention": 1}, ["prompt", "dimensions"])
    with pytest.raises(SettingsError, match="embed: unknown option 'zzz'; it has dimensions, prompt"):
        known_options("embed", {"zzz": 1}, ["prompt", "dimensions"])


def test_nearest() -> None:
    assert nearest("pooing", ["pooling", "prompt"]) == "; did you mean 'pooling'?"
    assert nearest("zzz", ["pooling"]) == ""
    assert nearest("a", []) == ""
