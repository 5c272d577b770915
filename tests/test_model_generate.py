"""`generate`: greedy texts equal to transformers', draws of the right probabilities, ends, padding and limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from raybert import BertLMHeadModel
from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from raybert.model.generation import keep_top_k, keep_top_p
from tests.oracle import one_thread, random_parameters, random_settings  # noqa: F401  one_thread is a fixture


def decoder(seed: int, **fixed: Any) -> BertLMHeadModel:
    settings = random_settings(seed, is_decoder=True, pad_token_id=0, max_position_embeddings=40, **fixed)
    model = BertLMHeadModel(BertConfig(**settings))
    random_parameters(model, seed)
    return model.eval()


def their_words(
    ours: BertLMHeadModel, ids: torch.Tensor, mask: torch.Tensor | None, more: dict[str, Any], **settings: Any
) -> torch.Tensor:
    config = transformers.BertConfig(**ours.config.to_dict(), attn_implementation="eager")
    theirs = transformers.BertLMHeadModel(config).eval()
    theirs.load_state_dict(ours.state_dict())
    generation = transformers.GenerationConfig(
        do_sample=False, pad_token_id=0, bos_token_id=None, eos_token_id=ours.config.eos_token_id, **settings
    )
    return theirs.generate(ids, attention_mask=mask, generation_config=generation, **more)


@pytest.mark.parametrize("seed", range(12))
def test_greedy_words_equal_transformers(seed: int) -> None:
    cross = seed % 3 == 0
    model = decoder(seed, add_cross_attention=cross, eos_token_id=seed % 10 if seed % 2 else [3, 4])
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, model.config.vocab_size, (3, 6), generator=generator)
    mask = torch.ones_like(ids)
    if seed % 4 >= 2:  # texts of unequal lengths, padded on the left
        mask[0, :3] = 0
        mask[2, :5] = 0
        ids = ids * mask
    memory = {}
    if cross:
        memory["encoder_hidden_states"] = torch.randn(3, 4, model.config.hidden_size, generator=generator)
    if seed % 2:
        memory["token_type_ids"] = torch.randint(0, model.config.type_vocab_size, ids.shape, generator=generator)
    found = model.generate(ids, mask, max_new_tokens=15, **memory)
    if not cross:  # transformers' generate takes no states of an encoder beside a lone decoder
        expected = their_words(model, ids, mask, memory, max_new_tokens=15)
        assert torch.equal(found, expected)
    assert torch.equal(model.generate(ids, mask, max_new_tokens=15, use_cache=False, **memory), found)


def test_padding_on_the_left_changes_no_word() -> None:
    model = decoder(1)
    ids = torch.tensor([[5, 6, 7]])
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    alone = model.generate(ids, max_new_tokens=10)
    beside = model.generate(padded, (padded != 0).long(), max_new_tokens=10)
    assert torch.equal(beside[:, 7:], alone[:, 3:])


def test_an_ended_text_is_padded_and_all_ended_texts_stop() -> None:
    model = decoder(2)
    ids = torch.tensor([[5, 6, 7], [8, 9, 1]])
    words = model.generate(ids, max_new_tokens=8, eos_token_id=-1)
    end = int(words[0, 4])
    found = model.generate(ids, max_new_tokens=8, eos_token_id=end, pad_token_id=9)
    for row in range(2):
        new = words[row, 3:].tolist()
        stop = new.index(end) + 1 if end in new else len(new)
        expected = new[:stop] + [9] * (found.shape[1] - 3 - stop)
        assert found[row, 3:].tolist() == expected
    both = sorted({int(words[0, 3]), int(words[1, 3])})
    assert model.generate(ids, max_new_tokens=8, eos_token_id=both).shape == (2, 4)


def test_drawn_words_have_the_model_s_probabilities() -> None:
    model = decoder(3)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = (model(ids).logits[0, -1] / 2.0).softmax(-1)
    draws = 20_000
    words = model.generate(
        ids.expand(draws, -1),
        max_new_tokens=1,
        do_sample=True,
        temperature=2.0,
        top_k=0,
        generator=torch.Generator().manual_seed(0),
        eos_token_id=-1,
    )[:, -1]
    found = torch.bincount(words, minlength=model.config.vocab_size) / draws
    assert float((found - expected).abs().sum()) / 2 < 0.02


def test_draws_repeat_with_a_seed_and_the_likeliest_alone_is_greedy() -> None:
    model = decoder(4)
    ids = torch.tensor([[5, 6, 7], [1, 2, 3]])

    def draw(seed: int, **settings: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(ids, max_new_tokens=12, do_sample=True, generator=generator, **settings)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1, temperature=5.0), draw(2, temperature=5.0))
    greedy = model.generate(ids, max_new_tokens=12)
    assert torch.equal(draw(1, top_k=1), greedy)
    assert torch.equal(draw(1, top_p=1e-6), greedy)


@pytest.mark.parametrize("seed", range(5))
def test_limits_on_draws_equal_transformers(seed: int) -> None:
    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed)) * 3
    scores[0, 3] = scores[0, 7]
    for top_k in (1, 2, 7, 29, 30, 50):
        assert torch.equal(keep_top_k(scores, top_k), TopKLogitsWarper(top_k)(None, scores))
    assert torch.equal(keep_top_k(scores, 0), scores)
    for top_p in (1e-6, 0.3, 0.9, 0.999):
        assert torch.equal(keep_top_p(scores, top_p), TopPLogitsWarper(top_p)(None, scores))
    assert torch.equal(keep_top_p(scores, 1.0), scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 38}, "max_new_tokens: 38; only 37 more positions fit max_position_embeddings 40"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; takes a whole number from 1"),
        ({"temperature": 0.0}, "temperature: 0.0; takes a number above 0"),
        ({"top_k": -1}, "top_k: -1"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"attention_mask": torch.ones(1, 4)}, r"attention_mask: shape \(1, 4\); expected \(1, 3\)"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decoder(5).generate(torch.tensor([[5, 6, 7]]), **settings)


def test_an_encoder_does_not_generate() -> None:
    model = BertLMHeadModel(BertConfig(**random_settings(0)))
    with pytest.raises(UsageError, match="generate: this model is an encoder, which sees later words"):
        model.generate(torch.tensor([[1]]))
