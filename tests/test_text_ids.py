"""Ids in place of a text: the same windows as of the text itself."""

from __future__ import annotations

import numpy as np
import pytest

from raybert.errors import RowError
from raybert.text.ids import take_ids
from raybert.text.tokenizer import Tokenizer
from tests.tiny import stdlib_docstrings


@pytest.fixture(scope="module", name="tokenizer")
def tokenizer_fixture(tiny):
    return Tokenizer.from_files(tiny, max_length=16)


@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize(("windows", "stride"), [("truncate", 0), ("slide", 3)])
@pytest.mark.parametrize("special", [True, False])
def test_windows_are_those_of_the_texts(tokenizer, prompt, windows, stride, special):
    texts = ["", "a", *stdlib_docstrings(30)]
    backend = tokenizer.backend
    rows = [backend.encode(text, add_special_tokens=special).ids for text in texts]
    found = tokenizer.windows(take_ids(tokenizer, rows, prompt=prompt), prompt=prompt, windows=windows, stride=stride)
    expected = tokenizer.encode(texts, prompt=prompt, windows=windows, stride=stride)
    for name in ("ids", "lengths", "row_of_window", "tokens", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("wrong", [-1, "vocab_size", 10**30])
def test_an_id_of_another_tokenizer_is_refused_with_its_place(tokenizer, wrong):
    wrong = tokenizer.vocab_size if wrong == "vocab_size" else wrong
    with pytest.raises(RowError, match=rf"token 2 has id {wrong}, and this model's ids end at ") as caught:
        take_ids(tokenizer, [[1], [1, 2, wrong]])
    assert (caught.value.row, caught.value.reason) == (1, "unknown_id")
