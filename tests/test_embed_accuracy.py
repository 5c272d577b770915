"""The bar for accuracy: the real MiniLM on real texts of all lengths, against sentence-transformers in fp32."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import raybert
from raybert.checkpoint.hub import resolve
from raybert.engine import choose_settings
from tests.tiny import stdlib_docstrings
from tests.vectors import SAME, cosines, one_thread_a_module  # noqa: F401  a fixture

BARS = {"float32": SAME, "bfloat16": 0.9998}
NATIVE_BFLOAT16 = choose_settings(device="cpu").dtype == "bfloat16"


def texts_of_all_lengths(count: int) -> list[str]:
    """Evenly over the lengths of all docstrings, the shortest and the longest one included, shuffled."""
    found = sorted(set(stdlib_docstrings()), key=lambda text: (len(text), text))
    texts = [found[place] for place in np.linspace(0, len(found) - 1, count).astype(int)]
    random.Random(0).shuffle(texts)
    return texts


def compare(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    texts = texts_of_all_lengths(count)
    theirs = SentenceTransformer(str(resolve("demo")), device="cpu")
    expected = theirs.encode(texts, show_progress_bar=False)
    assert expected.dtype == np.float32
    for dtype, bar in BARS.items():
        if dtype == "bfloat16" and not NATIVE_BFLOAT16:
            continue
        with raybert.load("demo", "embed", dtype=dtype) as embed:
            near = cosines(embed(texts), expected)
        with capsys.disabled():
            sys.stdout.write(f"\n{count:,} texts, {dtype}: least cosine {near.min():.8f}, mean {near.mean():.8f}\n")
        assert near.min() >= bar, (dtype, texts[near.argmin()])


def test_two_hundred_texts(capsys: pytest.CaptureFixture[str]) -> None:
    compare(200, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_thousand_texts(capsys: pytest.CaptureFixture[str]) -> None:
    compare(2000, capsys)
