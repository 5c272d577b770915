"""Folders that sentence-transformers itself wrote: raybert gives the vectors that its `encode` gives."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Pooling, Transformer
from torch import nn

import raybert
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint
from tests.vectors import assert_same, one_thread_a_module  # noqa: F401  a fixture

WIDTH = 32
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = [
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Identity,
    nn.LeakyReLU,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.SiLU,
    nn.Tanh,
]


def some_texts() -> list[str]:
    texts = sorted(stdlib_docstrings(500), key=len)[::60]
    random.Random(3).shuffle(texts)
    return [*texts, "", "A", "mixed Case ÀÉ", "  ", "x" * 300]


TEXTS = some_texts()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("bert"), tokenizer_json=True)


@functools.cache
def transformer_of(bert: Path) -> Transformer:
    return Transformer(str(bert))


SAVED: dict[Path, SentenceTransformer] = {}


def write(folder: Path, bert: Path, after: Sequence[nn.Module], *, transformer: Any = None, **model: Any) -> Path:
    """Have sentence-transformers save a model of `bert` and the modules behind it."""
    modules = [transformer or transformer_of(bert), *after]
    SAVED[folder] = SentenceTransformer(modules=modules, device="cpu", **model)
    SAVED[folder].save(str(folder), create_model_card=False)
    return folder


def theirs(folder: Path, texts: Sequence[str] = TEXTS, *, max_seq_length: int | None = None, **options: Any) -> Any:
    """What the model that wrote the folder gives; of a folder that it did not write, what it reads there."""
    model = SAVED.get(folder) or SentenceTransformer(str(folder), device="cpu")
    before = model.max_seq_length
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    try:
        return model.encode(list(texts), show_progress_bar=False, batch_size=7, **options)
    finally:
        model.max_seq_length = before


def ours(folder: Path, texts: Sequence[str] = TEXTS, **options: Any) -> np.ndarray:
    with raybert.load(str(folder), "embed", dtype="float32", threads=1, **options) as embed:
        found: np.ndarray = embed(list(texts))
        return found


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(expected).all()
    assert_same(found, expected)
    largest = max(1.0, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() <= 1e-5 * largest


def dense(inputs: int, outputs: int, activation: type[nn.Module] = nn.Tanh, *, bias: bool = True) -> Dense:
    generator = torch.Generator().manual_seed(inputs + outputs)
    return Dense(
        inputs,
        outputs,
        bias=bias,
        activation_function=activation(),
        init_weight=torch.randn((outputs, inputs), generator=generator) / inputs**0.5,
        init_bias=torch.randn((outputs,), generator=generator) if bias else None,
    )


@pytest.mark.parametrize("modes", [*MODES, *itertools.permutations(MODES, 2), MODES], ids=str)
def test_pooling(tmp_path: Path, bert: Path, modes: Any) -> None:
    folder = write(tmp_path, bert, [Pooling(WIDTH, modes)])
    found = ours(folder)
    assert found.shape == (len(TEXTS), WIDTH * (1 if isinstance(modes, str) else len(modes)))
    assert_equal(found, theirs(folder))


@pytest.mark.parametrize("mode", MODES)
def test_pooling_of_files_in_the_old_form(tmp_path: Path, mode: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, sentence={"pooling": [mode, "mean"], "normalize": True})
    assert_equal(ours(folder), theirs(folder))


UNIT = {"normalize", "dense, normalize", "normalize, dense, normalize", "two denses", "normalize twice", "dropout"}
UNIT |= {"normalize, dropout"}
AFTER: dict[str, list[Any]] = {
    "normalize": [Normalize],
    "dense": [(32, 24)],
    "dense, normalize": [(32, 24), Normalize],
    "normalize, dense": [Normalize, (32, 24)],
    "normalize, dense, normalize": [Normalize, (32, 48), Normalize],
    "two denses": [(32, 40), (40, 16), Normalize],
    "normalize twice": [Normalize, Normalize],
    "dropout": [Dropout, (32, 24), Dropout, Normalize],
    "normalize, dropout": [Normalize, Dropout],
}


@pytest.mark.parametrize("name", AFTER)
def test_modules_after_pooling(tmp_path: Path, bert: Path, name: str) -> None:
    after = [dense(*entry) if isinstance(entry, tuple) else entry() for entry in AFTER[name]]
    folder = write(tmp_path, bert, [Pooling(WIDTH, "mean"), *after])
    found = ours(folder)
    assert_equal(found, theirs(folder))
    unit = bool(np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5))
    assert unit == (name in UNIT)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_dense(tmp_path: Path, bert: Path, activation: type[nn.Module], bias: bool) -> None:
    folder = write(tmp_path, bert, [Pooling(WIDTH, "mean"), dense(WIDTH, 20, activation, bias=bias)])
    assert_equal(ours(folder), theirs(folder))


def test_dense_behind_concatenated_pooling(tmp_path: Path, bert: Path) -> None:
    folder = write(tmp_path, bert, [Pooling(WIDTH, ("cls", "max")), dense(2 * WIDTH, 10), Normalize()])
    assert_equal(ours(folder), theirs(folder))


PROMPTS = {"query": "search query: ", "passage": "Passage: ", "empty": ""}


@pytest.mark.parametrize("include_prompt", [True, False], ids=["pooled", "left out"])
@pytest.mark.parametrize("mode", MODES)
def test_prompts(tmp_path: Path, bert: Path, mode: str, include_prompt: bool) -> None:
    pooling = Pooling(WIDTH, mode, include_prompt=include_prompt)
    folder = write(tmp_path, bert, [pooling], prompts=PROMPTS, default_prompt_name="passage")
    by_name = {name: theirs(folder, prompt_name=name) for name in PROMPTS}
    assert_equal(ours(folder, prompt_name="query"), by_name["query"])
    assert_equal(ours(folder, prompt=""), by_name["empty"])
    assert_equal(ours(folder), by_name["passage"])  # the default
    assert_equal(theirs(folder), by_name["passage"])
    if include_prompt or mode != "lasttoken":  # the last token is never the prompt's, but it has seen the prompt
        assert np.abs(by_name["query"] - by_name["empty"]).max() > 1e-3


def test_prompts_that_leave_little_room(tmp_path: Path, bert: Path) -> None:
    folder = write(tmp_path, bert, [Pooling(WIDTH, "mean", include_prompt=False)])
    prompt = "a rather long prompt that fills nearly all of it "
    with raybert.load(str(folder), "embed", threads=1) as embed:
        tokens = embed.task.tokenizer().prompt_tokens(prompt)
    for room in (1, 2, 5):
        expected = theirs(folder, prompt=prompt, max_seq_length=tokens + 1 + room)
        assert_equal(ours(folder, prompt=prompt, max_length=tokens + 1 + room), expected)


def test_a_prompt_whose_tokens_merge_with_the_texts(tmp_path: Path, bert: Path) -> None:
    """A corner: "ar" is two pieces, "ar" + "gument" one word, so no token is left to pool.

    sentence-transformers then gives minus infinity, or zeros; raybert pools the last token.
    """
    folder = write(tmp_path, bert, [Pooling(WIDTH, "max", include_prompt=False)])
    with raybert.load(str(folder), "embed", dtype="float32", threads=1, prompt="ar") as embed:
        tokenizer = embed.task.tokenizer()
        assert tokenizer.prompt_tokens("ar") == tokenizer.encode(["argument"]).lengths[0] == 3
        found = embed(["gument"])
    assert np.isneginf(theirs(folder, ["gument"], prompt="ar")).all()
    assert_equal(found, ours(folder, ["argument"], prompt="", pooling="lasttoken"))


@pytest.mark.parametrize("max_seq_length", [3, 20, 128])
def test_max_seq_length(tmp_path: Path, bert: Path, max_seq_length: int) -> None:
    folder = write(
        tmp_path, bert, [Pooling(WIDTH, "mean")], transformer=Transformer(str(bert), max_seq_length=max_seq_length)
    )
    expected = theirs(folder)
    assert_equal(ours(folder), expected)
    with raybert.load(str(folder), "embed", threads=1) as embed:
        assert embed.info()["options"]["max_length"] == max_seq_length
    if max_seq_length == 20:
        assert_equal(ours(folder, max_length=7), theirs(folder, max_seq_length=7))


@pytest.mark.parametrize("do_lower_case", [True, False])
def test_do_lower_case(tmp_path: Path, do_lower_case: bool) -> None:
    # In sentence_bert_config.json, where every version reads it and all before 6 write it.
    folder = write_tiny_checkpoint(
        tmp_path, tokenizer={"do_lower_case": False}, tokenizer_json=True, sentence={"do_lower_case": do_lower_case}
    )
    texts = ["Mixed CASE Words", "ÀÉ Straße İstanbul ẞ", *TEXTS]
    found = ours(folder, texts)
    assert_equal(found, theirs(folder, texts))
    same_as_lower = np.abs(found[0] - ours(folder, ["mixed case words"])[0]).max() < 1e-4
    assert same_as_lower == do_lower_case


def test_do_lower_case_that_a_saved_folder_forgets(tmp_path: Path) -> None:
    """A corner: version 6.2 saves do_lower_case into tokenizer.json only, where it doesn't read it again.

    The model that was saved lowers its texts, the one that is loaded does not; raybert follows the folder.
    """
    cased = write_tiny_checkpoint(tmp_path / "cased", tokenizer={"do_lower_case": False}, tokenizer_json=True)
    transformer = Transformer(str(cased), do_lower_case=True)
    folder = write(tmp_path / "saved", cased, [Pooling(WIDTH, "mean")], transformer=transformer)
    texts = ["Mixed CASE Words"]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    assert_equal(ours(folder, texts), expected)


@pytest.mark.parametrize("dimensions", [1, 5, 31, 32])
@pytest.mark.parametrize("normalize", [True, False])
def test_dimensions(tmp_path: Path, bert: Path, dimensions: int, normalize: bool) -> None:
    folder = write(tmp_path, bert, [Pooling(WIDTH, "mean")])
    expected = theirs(folder, truncate_dim=dimensions, normalize_embeddings=normalize)
    found = ours(folder, dimensions=dimensions, normalize=normalize)
    assert found.shape == (len(TEXTS), dimensions)
    assert_equal(found, expected)


def test_dimensions_of_a_model_that_normalizes(tmp_path: Path, bert: Path) -> None:
    # sentence-transformers cuts behind its Normalize and scales again only if told to; raybert does both at once.
    folder = write(tmp_path, bert, [Pooling(WIDTH, "mean"), Normalize()])
    assert_equal(ours(folder, dimensions=9), theirs(folder, truncate_dim=9, normalize_embeddings=True))


def test_normalize_may_be_left_out_or_asked_for(tmp_path: Path, bert: Path) -> None:
    plain = write(tmp_path / "plain", bert, [Pooling(WIDTH, "mean")])
    unit = write(tmp_path / "unit", bert, [Pooling(WIDTH, "mean"), Normalize()])
    assert_equal(ours(unit, normalize=False), theirs(plain))
    assert_equal(ours(plain, normalize=True), theirs(unit))


def test_another_pooling_than_the_checkpoints(tmp_path: Path, bert: Path) -> None:
    mean = write(tmp_path / "mean", bert, [Pooling(WIDTH, "mean"), Normalize()])
    both = write(tmp_path / "both", bert, [Pooling(WIDTH, ("lasttoken", "cls")), Normalize()])
    assert_equal(ours(mean, pooling="lasttoken+cls"), theirs(both))
    assert_equal(ours(both, pooling="mean"), theirs(mean))


def test_a_plain_folder_is_pooled_by_mean_and_not_normalized(bert: Path) -> None:
    found = ours(bert)
    assert_equal(found, theirs(bert))  # which makes the same choice
    assert (np.abs(np.linalg.norm(found, axis=1) - 1) > 0.1).all()
