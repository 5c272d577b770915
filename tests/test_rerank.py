"""Rerank equals sentence-transformers' CrossEncoder, and ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

import raybert
from raybert import Ranked
from raybert.errors import CheckpointError, RowError, SettingsError, UsageError
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

PAIRS = [
    ("how to open a file", "Open a file and return a stream."),
    ("", "an empty query"),
    ("an empty document", ""),
    ("naïve café", "東京 \U0001f600"),
    *((text[:60], other) for text, other in zip(stdlib_docstrings(60), stdlib_docstrings(120)[60:], strict=True)),
    ("long " * 200, "longer " * 400),
]


def reranker(folder: Path, **config: Any) -> Path:
    return write_tiny_checkpoint(folder, heads=("classifier",), config={"num_labels": 1, **config})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
    ],
    ids=["default", "identity", "old identity", "old sigmoid"],
)
def test_scores_equal_cross_encoders(config: dict[str, Any], tmp_path: Path) -> None:
    folder = reranker(tmp_path, **config)
    ours = raybert.load(folder, "rerank", dtype="float32", device="cpu")
    peer = CrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(ours.scores(PAIRS), peer.predict(PAIRS, show_progress_bar=False), rtol=0, atol=1e-5)
    asked = raybert.load(folder, "text-ranking", dtype="float32", device="cpu", activation="none")
    raw = peer.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(asked.scores(PAIRS), raw, rtol=0, atol=1e-5)


def test_documents_come_best_first(tmp_path: Path) -> None:
    folder = reranker(tmp_path)
    ours = raybert.load(folder, "rerank", dtype="float32", device="cpu")
    documents = [*stdlib_docstrings(30), stdlib_docstrings(1)[0]]
    expected = CrossEncoder(str(folder), device="cpu").rank("a query", documents, show_progress_bar=False)
    found = ours("a query", documents)
    assert [each.index for each in found] == [each["corpus_id"] for each in expected]
    assert sorted(each.index for each in found) == list(range(len(documents)))
    assert isinstance(found[0], Ranked)
    # Two equal documents have equal scores, and the first goes before.
    assert [each.index for each in found].index(0) + 1 == [each.index for each in found].index(30)
    assert ours("a query", []) == []


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    folder = reranker(tmp_path / "one")
    ours = raybert.load(folder, "rerank")
    with pytest.raises(UsageError, match=r"a bare str where a list of texts is meant; pass \[text\]"):
        ours("a query", "a document")
    with pytest.raises(RowError, match="row 1: expected a text, got int"):
        ours("a query", ["a", 3])
    three = write_tiny_checkpoint(tmp_path / "three", heads=("classifier",), config={"num_labels": 3})
    with pytest.raises(SettingsError, match="its classifier has 3 labels, a reranker's has one; use the task classify"):
        raybert.load(three, "rerank")
    odd = reranker(tmp_path / "odd", sentence_transformers={"activation_fn": "my.code.Function"})
    with pytest.raises(CheckpointError, match=r"activation 'my.code.Function' of the reranker can't be honoured"):
        raybert.load(odd, "rerank")
    assert json.loads((odd / "config.json").read_text())["num_labels"] == 1
    assert raybert.load(odd, "rerank", activation="sigmoid")("a", ["b"])[0].index == 0
    with pytest.raises(SettingsError, match="rerank: windows: 'slide' is none of truncate"):
        raybert.load(folder, "rerank", windows="slide")
