"""Room for more words, or fewer: what was known stays, heads and ties follow, transformers loads the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import raybert
from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from tests.oracle import assert_close, one_thread, random_parameters, random_settings  # noqa: F401  one_thread is a fixture

IDS = torch.tensor([[1, 5, 3], [4, 2, 2]])


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("words", [40, 50, 8])
@pytest.mark.parametrize(
    "name", ["BertModel", "BertForTokenClassification", "BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel"]
)
def test_known_words_answer_as_before(name: str, words: int, tie: bool, tmp_path: Path) -> None:
    settings = random_settings(3, vocab_size=40, pad_token_id=0, tie_word_embeddings=tie)
    model = getattr(raybert, name)(BertConfig(**settings | {"is_decoder": name == "BertLMHeadModel"})).eval()
    random_parameters(model, 3)
    before = model(IDS)
    rows = model.get_input_embeddings().weight.detach().clone()
    embeddings = model.resize_token_embeddings(words)
    assert embeddings is model.get_input_embeddings()
    assert embeddings.weight.shape[0] == model.config.vocab_size == words
    kept = min(words, 40)
    assert torch.equal(embeddings.weight[:kept], rows[:kept])
    if words > 40:
        assert float(embeddings.weight[40:].detach().std()) == pytest.approx(model.config.initializer_range, rel=0.5)
    after = model(IDS)
    for key in before:
        if key in {"logits", "prediction_logits"} and name != "BertForTokenClassification":
            assert after[key].shape[-1] == words
            assert_close(after[key][..., :kept], before[key][..., :kept], key)
        elif torch.is_tensor(before[key]):
            assert_close(after[key], before[key], key)
    if hasattr(model, "get_output_embeddings"):
        assert (model.get_output_embeddings().weight is embeddings.weight) == tie
    model.save_pretrained(tmp_path)
    theirs = getattr(transformers, name).from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert_close(theirs(IDS)[0], after[0], "transformers")


def test_less_than_a_word_is_refused() -> None:
    with pytest.raises(UsageError, match="words: 0; takes a whole number from 1"):
        raybert.BertModel(BertConfig(**random_settings(0))).resize_token_embeddings(0)
