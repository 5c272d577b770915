"""Options of embed: what they resolve to, and what is refused with place, value, limit and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raybert
from raybert.config import HeadSpec
from raybert.errors import CheckpointError, SettingsError
from raybert.tasks import TASKS, make_task
from raybert.tasks.arrays import Arrays
from raybert.tasks.embed import Embed
from tests.tiny import write_tiny_checkpoint
from tests.vectors import one_thread_a_module  # noqa: F401  a fixture

SENTENCE: dict[str, Any] = {
    "pooling": ["cls", "max"],
    "normalize": True,
    "dense": [{"out_features": 12}],
    "max_seq_length": 64,
    "prompts": {"query": "query: ", "passage": "passage: "},
    "default_prompt_name": "query",
}


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("sentence"), sentence=SENTENCE)


def embed_task(model: Path | str, **options: Any) -> Embed:
    task = make_task(HeadSpec(name="embed", task="embed", model=str(model), options=options))
    assert isinstance(task, Embed)
    return task


def test_options_of_a_plain_folder(tiny: Path) -> None:
    assert embed_task(tiny).options == {
        "aggregation": None,
        "dimensions": None,
        "include_prompt": True,
        "lower_case": False,
        "max_length": 128,
        "normalize": False,
        "output": "pooled",
        "pooling": "mean",
        "prompt": "",
        "stride": None,
        "windows": "truncate",
    }


def test_options_of_a_sentence_folder(sentence: Path) -> None:
    task = embed_task(sentence)
    assert task.width == 12
    assert task.options == {
        "aggregation": None,
        "dimensions": None,
        "include_prompt": True,
        "lower_case": False,
        "max_length": 64,
        "normalize": True,
        "output": "pooled",
        "pooling": "cls+max",
        "prompt": "query: ",
        "stride": None,
        "windows": "truncate",
    }


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({"prompt": "own "}, {"prompt": "own "}),
        ({"prompt": ""}, {"prompt": ""}),
        ({"prompt_name": "passage"}, {"prompt": "passage: "}),
        ({"prompt": None}, {"prompt": "query: "}),
        ({"max_length": 3}, {"max_length": 3}),
        ({"max_length": 128}, {"max_length": 128}),
        ({"dimensions": 12}, {"dimensions": 12}),
        ({"dimensions": 1}, {"dimensions": 1}),
        ({"normalize": False}, {"normalize": False}),
        ({"pooling": "mean+lasttoken"}, {"pooling": "mean+lasttoken"}),
    ],
    ids=str,
)
def test_options_that_are_given(sentence: Path, given: dict[str, Any], resolved: dict[str, Any]) -> None:
    options = embed_task(sentence, **given).options
    assert {name: options[name] for name in resolved} == resolved


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dimension": 3}, "embed: unknown option 'dimension'; did you mean 'dimensions'?"),
    ({"xyz": 3}, f"embed: unknown option 'xyz'; it has {', '.join(Embed.OPTIONS)}"),
    ({"windows": "slices"}, "embed: windows: 'slices' is none of truncate, slide; did you mean 'slide'?"),
    ({"dimensions": 0}, "embed: dimensions 0: takes a whole number from 1 to 12"),
    ({"dimensions": 13}, "embed: dimensions 13: takes a whole number from 1 to 12"),
    ({"dimensions": 2.0}, "embed: dimensions 2.0: takes a whole number from 1 to 12"),
    ({"dimensions": True}, "embed: dimensions True: takes a whole number from 1 to 12"),
    ({"dimensions": "3"}, "embed: dimensions '3': takes a whole number from 1 to 12"),
    ({"max_length": 2}, "embed: max_length 2: takes a whole number from 3 to 128"),
    ({"max_length": 129}, "embed: max_length 129: takes a whole number from 3 to 128"),
    ({"normalize": "yes"}, "embed: normalize 'yes': takes true or false"),
    ({"normalize": 1}, "embed: normalize 1: takes true or false"),
    ({"pooling": "means"}, "embed: pooling: 'means' is none of cls, mean, max, .*; did you mean 'mean'?"),
    ({"pooling": ""}, "embed: pooling: '' is none of"),
    ({"pooling": "mean+"}, "embed: pooling: '' is none of"),
    ({"pooling": "mean"}, "embed: pooling mean gives 32 numbers, the checkpoint's Dense module takes 64"),
    ({"prompt": "a", "prompt_name": "query"}, "embed: prompt and prompt_name are both given; pass one"),
    ({"prompt_name": "qery"}, "embed: prompt_name: 'qery' is none of passage, query; did you mean 'query'?"),
    ({"prompt": 7}, "embed: prompt 7: expected a text, got int; pass a text"),
    ({"prompt": "\ud800"}, "embed: prompt .*half of a surrogate pair; pass a text"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=ascii)
def test_options_that_are_refused(sentence: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        raybert.load(str(sentence), "embed", **given)
    assert "\n" not in str(caught.value)


def test_prompt_names_of_a_folder_without_prompts(tiny: Path) -> None:
    with pytest.raises(SettingsError, match="prompt_name 'query': this checkpoint names no prompts; pass prompt="):
        raybert.load(str(tiny), "embed", prompt_name="query")


def test_a_prompt_that_fills_the_window_is_refused_only_where_it_is_left_out(tmp_path: Path) -> None:
    left_out = write_tiny_checkpoint(tmp_path / "out", sentence={"include_prompt": False})
    pooled = write_tiny_checkpoint(tmp_path / "in", sentence={})
    with pytest.raises(SettingsError, match="embed: the prompt's 5 tokens leave no room in max_length 6"):
        raybert.load(str(left_out), "embed", prompt="a b c d ", max_length=6)
    with raybert.load(str(pooled), "embed", prompt="a b c d ", max_length=6, threads=1) as embed:
        found = embed(["one", "two"])
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("task", ["embed", "feature-extraction", "sentence-similarity"])
def test_the_tasks_names(tiny: Path, task: str) -> None:
    with raybert.load(str(tiny), task, threads=1) as embed:
        assert embed.columns == ["embed", "embed_tokens", "embed_truncated"]


def test_an_unknown_task(tiny: Path) -> None:
    with pytest.raises(SettingsError, match=r"task 'embd': unknown; .*; did you mean 'embed'\?"):
        raybert.load(str(tiny), "embd")


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="/no/such/folder: no such folder"):
        raybert.load("/no/such/folder", "embed")


def test_load_takes_a_path(tiny: Path) -> None:
    with raybert.load(tiny, "embed", threads=1) as embed:  # type: ignore[arg-type]
        assert embed(["a text"]).shape == (1, 32)


def test_info_tells_model_options_and_engine(sentence: Path) -> None:
    with raybert.load(str(sentence), "embed", dtype="float32", threads=1) as embed:
        info = embed.info()
    assert info["model"] == sentence.name
    assert info["task"] == "embed"
    assert info["options"]["prompt"] == "query: "
    assert info["fingerprint"] == embed.fingerprint
    assert info["columns"] == embed.columns
    assert (info["layers"], info["hidden_size"]) == (2, 32)
    assert info["engine"]["dtype"] == "float32"


@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_the_arrow_column_holds_the_vectors(tiny: Path, vector_type: str) -> None:
    task = embed_task(tiny, dimensions=7)
    windows = task.encode(["one", "two", ""])
    vectors = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    (field,) = task.columns("v", vector_type)
    assert field.name == "v"
    assert field.type == pa.list_({"float32": pa.float32(), "float16": pa.float16()}[vector_type], 7)
    (column,) = task.arrow([], windows, Arrays(values=vectors), vector_type)
    assert column.type == field.type
    found = column.flatten().to_numpy(zero_copy_only=False).reshape(3, 7)
    assert np.array_equal(found, vectors.astype(vector_type))


def test_every_task_of_the_table_has_its_own_name() -> None:
    assert all(task.name == name for name, task in TASKS.items())


def test_the_side_that_is_cut_off(tmp_path: Path) -> None:
    """As a checkpoint that says so itself, which the grid of tokenizers compares with transformers."""
    right = write_tiny_checkpoint(tmp_path / "right", heads=("classifier",))
    left = write_tiny_checkpoint(tmp_path / "left", heads=("classifier",), tokenizer={"truncation_side": "left"})
    texts = ["short", "word " * 300 + "the end", "the beginning " + "word " * 300]
    for task in ("embed", "classify", "ner"):
        cuts = {"windows": "truncate"} if task == "ner" else {}
        for says, asked, as_is in ((right, "left", left), (left, "right", right)):
            found = raybert.load(says, task, dtype="float32", device="cpu", truncation_side=asked, **cuts)
            expected = raybert.load(as_is, task, dtype="float32", device="cpu", **cuts)
            assert str(found(texts)) == str(expected(texts))
            assert found.fingerprint != expected.fingerprint
    with pytest.raises(SettingsError, match="texts are not cut here; pass windows='truncate' too"):
        raybert.load(right, "ner", truncation_side="left")
    with pytest.raises(SettingsError, match=r"truncation_side.*'up'"):
        raybert.load(right, "embed", truncation_side="up")
