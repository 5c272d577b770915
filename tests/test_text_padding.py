"""`BertTokenizer.pad`: equal to transformers for what collators give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from raybert.errors import UsageError
from tests.test_text_faces import OPTIONS, tokenizers_of


def lists(value: Any) -> Any:
    if isinstance(value, np.ndarray | list):
        return [lists(item) for item in value]
    return int(value)


@pytest.mark.parametrize("given", ["rows", "batch", "one", "tensors"])
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"padding": "max_length", "max_length": 30},
        {"padding": "max_length"},
        {"padding": False},
        {"pad_to_multiple_of": 8, "padding_side": "left"},
        {"return_attention_mask": False},
    ],
    ids=str,
)
def test_padding_what_calls_gave_equals_transformers(given: str, call: dict[str, Any]) -> None:
    ours, theirs = tokenizers_of(OPTIONS[0], model_max_length=40)

    def encoded(tokenizer: Any) -> Any:
        # Told to return no mask, transformers leaves one that is there as short as it was: give none.
        masked = given != "rows" and "return_attention_mask" not in call
        parts = {"return_special_tokens_mask": True, "return_attention_mask": masked}
        if given == "one":
            return tokenizer("a b c", **parts)
        batch = ["a b c d", "a", "a b c"]
        if given == "tensors":
            return [tokenizer(text, return_tensors="np", **parts)["input_ids"][0] for text in batch]
        return [tokenizer(text, **parts) for text in batch] if given == "rows" else tokenizer(batch, **parts)

    wrap = (lambda rows: {"input_ids": rows}) if given == "tensors" else (lambda rows: rows)
    found, expected = ours.pad(wrap(encoded(ours)), **call), theirs.pad(wrap(encoded(theirs)), **call)
    assert found.keys() == expected.keys()
    for name in expected:
        assert lists(found[name]) == lists(expected[name]), name
    if call != {"padding": False}:
        assert ours.pad(wrap(encoded(ours)), return_tensors="pt", **call)["input_ids"].dtype == torch.int64


def test_padding_that_can_not_be_meant() -> None:
    ours, _ = tokenizers_of(OPTIONS[0])
    with pytest.raises(UsageError, match="encoded_inputs: no input_ids among labels"):
        ours.pad({"labels": [1]})
    with pytest.raises(UsageError, match="encoded_inputs: rows differ in number"):
        ours.pad({"input_ids": [[1], [2]], "labels": [[1]]})
    assert dict(ours.encode_plus("a b")) == dict(ours("a b"))
    assert dict(ours.batch_encode_plus(["a", "b"])) == dict(ours(["a", "b"]))


def test_the_references_enumerations_are_taken() -> None:
    ours, _ = tokenizers_of(OPTIONS[0])
    longest = transformers.utils.PaddingStrategy.MAX_LENGTH
    cut = transformers.tokenization_utils_base.TruncationStrategy.LONGEST_FIRST
    assert len(ours("a b", padding=longest, truncation=cut, max_length=9)["input_ids"]) == 9
