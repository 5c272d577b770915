"""Embed beyond one pooled window: token vectors, sparse vectors, long texts by sliding windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer, SparseEncoder

import raybert
from raybert import SparseVector
from raybert.errors import CheckpointError, SettingsError
from tests.jobs import some_texts
from tests.tiny import stdlib_docstrings, write_json, write_tiny_checkpoint

TEXTS = some_texts(40)


def load(folder: Path | str, task: str = "embed", **options: Any) -> Any:
    return raybert.load(str(folder), task, dtype="float32", device="cpu", **options)


def test_token_vectors_equal_sentence_transformers(tiny: Path) -> None:
    found = load(tiny, output="tokens")(TEXTS)
    expected = SentenceTransformer(str(tiny), device="cpu").encode(TEXTS, output_value="token_embeddings")
    assert len(found) == len(expected) == len(TEXTS)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-5)
    assert load(tiny, output="tokens")([]) == []


def splade(folder: Path, **pooling: Any) -> Path:
    """A checkpoint as sentence-transformers' SparseEncoder saves it."""
    plain = write_tiny_checkpoint(folder / "plain", heads=("masked-lm",), config={"architectures": ["BertForMaskedLM"]})
    SparseEncoder(str(plain), device="cpu").save_pretrained(str(folder / "saved"))
    write_json(folder / "saved" / "1_SpladePooling" / "config.json", pooling)
    return folder / "saved"


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("function", ["relu", "log1p_relu"])
def test_sparse_vectors_equal_sparse_encoders(tmp_path: Path, strategy: str, function: str) -> None:
    folder = splade(tmp_path, pooling_strategy=strategy, activation_function=function)
    found = load(folder)(TEXTS)  # the modules say that it is sparse
    expected = SparseEncoder(str(folder), device="cpu").encode(TEXTS, convert_to_sparse_tensor=False)
    assert len({len(vector.ids) for vector in found}) > 10
    for vector, row in zip(found, expected.numpy(), strict=True):
        assert isinstance(vector, SparseVector)
        dense = np.zeros_like(row)
        dense[vector.ids] = vector.weights
        assert (vector.weights > 0).all()
        assert (np.diff(vector.ids) > 0).all()
        np.testing.assert_allclose(dense, row, rtol=1e-5, atol=1e-5)


def test_any_checkpoint_with_the_head_can_be_asked(tmp_path: Path) -> None:
    plain = write_tiny_checkpoint(tmp_path / "plain", heads=("masked-lm",))
    same = load(splade(tmp_path / "made", pooling_strategy="max", activation_function="relu"))(TEXTS[:5])
    for ours, theirs in zip(load(plain, output="sparse")(TEXTS[:5]), same, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.weights, theirs.weights)
    assert load(plain)(TEXTS[:2]).shape == (2, 32)


def test_what_an_output_cannot_honour(tiny: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"output": "dense"}, "embed: output: 'dense' is none of pooled, tokens, sparse"),
        ({"output": "tokens", "pooling": "cls"}, "embed: pooling 'cls': goes with output='pooled' only"),
        ({"output": "tokens", "windows": "slide"}, "embed: windows: 'slide' is none of truncate"),
        ({"stride": 3}, "embed: stride 3: texts are cut here; pass windows='slide' too"),
        ({"aggregation": "max"}, "embed: aggregation 'max': texts have one window; pass windows='slide' too"),
        ({"windows": "slide", "aggregation": "first"}, "embed: aggregation: 'first' is none of mean, max"),
    ):
        with pytest.raises(SettingsError, match=message):
            load(tiny, **options)
    with pytest.raises(CheckpointError, match="has no masked-lm among its weights"):
        load(tiny, output="sparse")
    odd = splade(tmp_path, pooling_strategy="mean")
    with pytest.raises(CheckpointError, match="pooling_strategy 'mean' with activation_function 'relu' can't be"):
        load(odd)


class Windowed:
    """The windows of a text, each alone through transformers."""

    def __init__(self, folder: Path, max_length: int, stride: int) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
        self.arguments = {"max_length": max_length, "stride": stride, "truncation": True}

    def __call__(self, text: str) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
        """Mean vectors, scores and lengths of the windows."""
        windows = self.tokenizer(text, return_overflowing_tokens=True, **self.arguments)["input_ids"]
        vectors, scores = [], []
        for ids in windows:
            with torch.no_grad():
                output = self.model(torch.tensor([ids]), output_hidden_states=True)
            vectors.append(output.hidden_states[-1][0].mean(0).numpy())
            scores.append(output.logits[0].softmax(-1).numpy())
        return vectors, scores, [len(ids) for ids in windows]


@pytest.mark.parametrize("stride", [0, 9])
def test_long_texts_by_sliding_windows(tmp_path: Path, stride: int) -> None:
    folder = write_tiny_checkpoint(tmp_path, heads=("classifier",), config={"num_labels": 5})
    texts = [*stdlib_docstrings(40), "", "word " * 700]
    reference = Windowed(folder, 32, stride)
    options = {"windows": "slide", "max_length": 32, "stride": stride}
    found = {
        (task, how): load(folder, task, aggregation=how, **options)(texts)
        for task in ("embed", "classify")
        for how in ("mean", "max")
    }
    unit = load(folder, normalize=True, **options)(texts)
    many = 0
    for row, text in enumerate(texts):
        vectors, scores, lengths = reference(text)
        many += len(lengths) > 2
        mean = np.average(vectors, axis=0, weights=lengths)
        np.testing.assert_allclose(found["embed", "mean"][row], mean, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["embed", "max"][row], np.max(vectors, axis=0), rtol=0, atol=1e-5)
        for how, wanted in (("mean", np.average(scores, axis=0, weights=lengths)), ("max", np.max(scores, axis=0))):
            answer = found["classify", how][row]
            ours = [answer.scores[f"LABEL_{number}"] for number in range(5)]
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
        # Vectors at unit length go into the mean, and the mean is scaled again.
        each = [vector / np.linalg.norm(vector) for vector in vectors]
        whole = np.average(each, axis=0, weights=lengths)
        np.testing.assert_allclose(unit[row], whole / np.linalg.norm(whole), rtol=0, atol=1e-5)
    assert many >= 8


def test_a_text_of_one_window_answers_as_without_sliding(tiny: Path) -> None:
    short = [text for text in TEXTS if len(text) < 100]
    assert len(short) > 5
    np.testing.assert_allclose(load(tiny, windows="slide")(short), load(tiny)(short), rtol=0, atol=1e-6)


def test_a_prompt_stands_in_every_window(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, sentence={"include_prompt": False})
    prompt, text = "the query: ", "one two three of a long text that is read in more than one or two pieces"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    lead, pieces = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (prompt, text))
    room = 10 - 2 - len(lead)
    vectors, weights = [], []
    for begin in range(0, len(pieces), room):
        ids = [tokenizer.cls_token_id, *lead, *pieces[begin : begin + room], tokenizer.sep_token_id]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        kept = states[1 + len(lead) :]
        vectors.append(kept.mean(0).numpy())
        weights.append(len(kept))
    assert len(vectors) > 3
    (found,) = load(folder, prompt=prompt, windows="slide", max_length=10)([text])
    np.testing.assert_allclose(found, np.average(vectors, axis=0, weights=weights), rtol=0, atol=1e-5)
    # One window is what it is without sliding.
    np.testing.assert_allclose(
        load(folder, prompt=prompt, windows="slide")(["short"]), load(folder, prompt=prompt)(["short"]), atol=1e-6
    )
    with pytest.raises(SettingsError, match=r"prompt: its 5 tokens leave no room in max_length 5"):
        load(folder, prompt=prompt, windows="slide", max_length=5)


def test_pairs_are_cut_and_never_slid_over(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, heads=("classifier",))
    with pytest.raises(SettingsError, match="classify: windows 'slide': a pair has one window; leave it out"):
        load(folder, "classify", windows="slide")([("a", "b")])
