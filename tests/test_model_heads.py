"""Law 2 for every class with a head: outputs, losses and gradients equal to transformers; the padded and the saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import raybert
from raybert.checkpoint.config import BertConfig
from raybert.errors import UsageError
from tests.oracle import MASKS, assert_close, one_thread, random_inputs, random_mask, random_parameters, random_settings  # noqa: F401  one_thread is a fixture

CONFIGS = 30
CLASSES = (
    "BertForPreTraining",
    "BertLMHeadModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
LOGITS = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits")
PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")


def settings_of(name: str, seed: int, **fixed: Any) -> dict[str, Any]:
    settings = random_settings(seed, **fixed)
    if name in {"BertForSequenceClassification", "BertForTokenClassification"}:
        settings["num_labels"] = 1 + seed % 5 if name == "BertForSequenceClassification" else 2 + seed % 5
    if name == "BertForSequenceClassification":
        problem = PROBLEMS[seed // 2 % len(PROBLEMS)]
        settings["problem_type"] = None if settings["num_labels"] == 1 and problem != "regression" else problem
    if name == "BertLMHeadModel":
        settings |= {"is_decoder": True, "add_cross_attention": seed % 3 == 0}
    if name in {"BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel"}:
        settings["tie_word_embeddings"] = seed % 4 != 0
    return settings


def headed_pair(name: str, settings: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """Ours and transformers' of one class, with equal parameters, in eval mode."""
    ours = getattr(raybert, name)(BertConfig(**settings))
    random_parameters(ours, seed)
    theirs = getattr(transformers, name)(transformers.BertConfig(**settings, attn_implementation="eager"))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return ours.eval(), theirs.eval()


def inputs_of(name: str, config: BertConfig, seed: int) -> dict[str, Any]:
    inputs = random_inputs(config, seed, mask=MASKS[seed % len(MASKS)], embeds=seed % 5 == 3)
    rng = np.random.default_rng([seed, 7])
    given = inputs.get("input_ids", inputs.get("inputs_embeds"))
    rows, positions = given.shape[:2]
    if config.add_cross_attention:
        memory = int(rng.integers(1, 9))
        states = rng.standard_normal((rows, memory, config.hidden_size)).astype(np.float32)
        inputs["encoder_hidden_states"] = torch.from_numpy(states)
        inputs["encoder_attention_mask"] = random_mask(MASKS[seed // 5 % len(MASKS)], rows, memory, rng)
    if name == "BertForMultipleChoice":
        choices = next(number for number in (3, 2, 1) if rows % number == 0)
        for key, value in inputs.items():
            if value is not None:
                inputs[key] = value.unflatten(0, (rows // choices, choices))
    return inputs | labels_of(name, config, rows, positions, inputs, rng)


def labels_of(
    name: str, config: BertConfig, rows: int, positions: int, inputs: dict[str, Any], rng: np.random.Generator
) -> dict[str, Tensor]:
    def whole(limit: int, *shape: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, limit, size=shape))

    def holed(labels: Tensor) -> Tensor:
        holes = torch.from_numpy(rng.random(labels.shape) < 0.3)
        holes.view(-1)[-1] = False
        return labels.masked_fill(holes, -100)

    if name == "BertForPreTraining":
        return {"labels": holed(whole(config.vocab_size, rows, positions)), "next_sentence_label": whole(2, rows)}
    if name == "BertForQuestionAnswering":
        starts, ends = whole(positions + 2, rows), whole(positions + 2, rows)
        starts[0] = ends[0] = 0  # one place at least is a token's
        return {"start_positions": starts, "end_positions": ends}
    if name in {"BertLMHeadModel", "BertForMaskedLM"}:
        labels = holed(whole(config.vocab_size, rows, positions))
    elif name == "BertForTokenClassification":
        labels = holed(whole(config.num_labels, rows, positions))
    elif name == "BertForMultipleChoice":
        given = next(value for value in inputs.values() if value is not None)
        labels = whole(given.shape[1], given.shape[0])
    elif name == "BertForNextSentencePrediction":
        labels = whole(2, rows)
    else:
        labels = sequence_labels(config, rows, whole, rng)
    return {"labels": labels}


def sequence_labels(config: BertConfig, rows: int, whole: Any, rng: np.random.Generator) -> Tensor:
    classes = config.num_labels
    if config.problem_type == "regression" or classes == 1:
        numbers = rng.standard_normal((rows, classes)).astype(np.float32)
        return torch.from_numpy(numbers[:, 0] if classes == 1 else numbers)
    if config.problem_type == "multi_label_classification":
        return whole(2, rows, classes).float()
    return whole(classes, rows)


@pytest.mark.parametrize("seed", range(CONFIGS))
@pytest.mark.parametrize("name", CLASSES)
def test_outputs_losses_and_gradients_equal_transformers(name: str, seed: int) -> None:
    ours, theirs = headed_pair(name, settings_of(name, seed), seed)
    inputs = inputs_of(name, ours.config, seed)
    found = ours(**inputs, output_hidden_states=True, output_attentions=True)
    expected = theirs(**inputs, output_hidden_states=True, output_attentions=True)
    assert set(found) == {
        key for key, value in expected.items() if value is not None and not isinstance(value, tuple)
    } | {key for key, value in expected.items() if isinstance(value, tuple) and value}
    for key in (*LOGITS, "loss"):
        assert_close(found.get(key), expected.get(key), key)
    for key in ("hidden_states", "attentions", "cross_attentions"):
        for number, (part, wanted) in enumerate(zip(found.get(key, ()), expected.get(key) or (), strict=True)):
            assert_close(part, wanted, f"{key}[{number}]")
    fused = ours(**inputs)
    fused.loss.backward()
    expected.loss.backward()
    assert_close(fused.loss, expected.loss, "loss, fused")
    wanted = dict(theirs.named_parameters())
    # Untied, transformers has two biases and uses the decoder's; here they are one.
    wanted["cls.predictions.bias"] = wanted.pop("cls.predictions.decoder.bias", wanted.get("cls.predictions.bias"))
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, wanted.pop(key).grad, f"gradient of {key}")
    assert all(parameter is None for parameter in wanted.values()), wanted.keys()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_loads_what_raybert_saves_and_the_other_way_round(name: str, seed: int, tmp_path: Path) -> None:
    ours, theirs = headed_pair(name, settings_of(name, seed), seed)
    ours.save_pretrained(tmp_path / "ours")
    loaded, info = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], problem
    theirs.save_pretrained(tmp_path / "theirs")
    back = getattr(raybert, name).from_pretrained(tmp_path / "theirs")
    inputs = inputs_of(name, ours.config, seed)
    with torch.no_grad():
        outputs = [model(**inputs) for model in (ours, loaded.eval(), back)]
    for key in (*LOGITS, "loss"):
        for output in outputs[1:]:
            assert_close(output.get(key), outputs[0].get(key), key)
    if "tie_word_embeddings" in settings_of(name, seed):
        head, words = back.get_output_embeddings(), back.get_input_embeddings()
        assert (head.weight is words.weight) == back.config.tie_word_embeddings


@pytest.mark.parametrize("name", CLASSES)
def test_a_tuple_holds_the_fields_in_order(name: str) -> None:
    ours, _ = headed_pair(name, settings_of(name, 1), 1)
    inputs = inputs_of(name, ours.config, 1)
    output = ours(**inputs)
    plain = ours(**inputs, return_dict=False)
    assert isinstance(plain, tuple)
    assert plain[0].shape == ()
    for found, wanted in zip(plain, output.to_tuple(), strict=True):
        assert torch.equal(found, wanted)


def test_dropout_is_where_the_reference_has_it() -> None:
    for name in CLASSES:
        settings = settings_of(name, 2) | {"hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.5}
        ours = getattr(raybert, name)(BertConfig(**settings, classifier_dropout=0.75))
        theirs = getattr(transformers, name)(transformers.BertConfig(**settings, classifier_dropout=0.75))
        found, expected = (
            {path: part.p for path, part in model.named_modules() if isinstance(part, nn.Dropout)}
            for model in (ours, theirs)
        )
        assert found == expected, name


def test_the_first_labels_decide_the_problem_for_good() -> None:
    for labels, expected in (
        (torch.tensor([1, 0]), "single_label_classification"),
        (torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), "multi_label_classification"),
    ):
        model = raybert.BertForSequenceClassification(BertConfig(**random_settings(0), num_labels=3))
        ids = torch.ones(2, 4, dtype=torch.long)
        assert model(ids).loss is None
        assert model.config.problem_type is None
        model(ids, labels=labels)
        assert model.config.problem_type == expected


def test_labels_of_another_shape_are_refused() -> None:
    ids = torch.ones(2, 4, dtype=torch.long)
    cases = {
        "BertForTokenClassification": ({"labels": torch.zeros(2, 3)}, r"labels: shape \(2, 3\); expected \(2, 4\)"),
        "BertForMaskedLM": ({"labels": torch.zeros(8)}, r"labels: shape \(8,\); expected \(2, 4\)"),
        "BertForSequenceClassification": ({"labels": torch.zeros(3)}, r"labels: shape \(3,\)"),
        "BertForQuestionAnswering": (
            {"start_positions": torch.zeros(3), "end_positions": torch.zeros(2)},
            r"start_positions: shape \(3,\); expected \(2,\) or \(2, 1\)",
        ),
        "BertForMultipleChoice": ({}, r"expected \(rows, choices, positions\)"),
    }
    for name, (labels, message) in cases.items():
        model = getattr(raybert, name)(BertConfig(**random_settings(0), num_labels=3))
        with pytest.raises(UsageError, match=message):
            model(ids, **labels)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 2])])
def test_logits_to_keep(keep: int | Tensor) -> None:
    ours, theirs = headed_pair("BertLMHeadModel", settings_of("BertLMHeadModel", 1), 1)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        assert_close(ours(ids, logits_to_keep=keep).logits, theirs(ids, logits_to_keep=keep).logits, "logits")
    with pytest.raises(UsageError, match=r"labels \(with logits at every position\)"):
        ours(ids, logits_to_keep=keep, labels=ids)
