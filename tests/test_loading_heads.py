"""Law 8 for heads: a head is loaded, or its absence is an error that says what is there, or it is begun anew."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import raybert
from raybert.checkpoint.folder import open_checkpoint
from raybert.checkpoint.names import HEADS
from raybert.errors import CheckpointError, UsageError
from tests.oracle import assert_close, one_thread  # noqa: F401  one_thread is a fixture
from tests.tiny import tiny_config, tiny_tensors, write_json, write_safetensors

SIZES = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SETTINGS = tiny_config(**SIZES, intermediate_size=12, max_position_embeddings=16)
CLASSES = {
    "BertForPreTraining": ("masked-lm", "next-sentence"),
    "BertLMHeadModel": ("masked-lm",),
    "BertForMaskedLM": ("masked-lm",),
    "BertForNextSentencePrediction": ("next-sentence",),
    "BertForSequenceClassification": ("classifier",),
    "BertForMultipleChoice": ("classifier",),
    "BertForTokenClassification": ("classifier",),
    "BertForQuestionAnswering": ("qa",),
}
IDS = torch.tensor([[2, 5, 3], [4, 1, 1]])


def write(
    folder: Path, *, heads: tuple[str, ...] = (), pooler: bool = True, more: dict[str, Any] | None = None, **config: Any
) -> Path:
    settings = SETTINGS | config
    write_json(folder / "config.json", settings)
    write_safetensors(folder, tiny_tensors(settings, heads=heads, pooler=pooler) | (more or {}))
    return folder


def settings_for(name: str) -> dict[str, Any]:
    return {"is_decoder": True} if name == "BertLMHeadModel" else {}


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_loads_its_head_from_a_checkpoint_with_all_of_them(name: str, tmp_path: Path) -> None:
    labels = 1 if name == "BertForMultipleChoice" else 5
    folder = write(tmp_path, heads=tuple(HEADS), num_labels=labels, **settings_for(name))
    model, report = getattr(raybert, name).from_checkpoint(open_checkpoint(str(folder)))
    tensors = tiny_tensors(SETTINGS | {"num_labels": labels}, heads=tuple(HEADS))
    assert not model.training
    for path, value in model.state_dict().items():
        source = {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        }.get(path, path)
        assert torch.equal(value, torch.from_numpy(tensors[source])), path
    others = set(HEADS) - set(CLASSES[name])
    assert set(report.unused_heads) - {"pooler"} == others
    assert ("pooler" in report.unused_heads) != model.needs_pooler


@pytest.mark.parametrize("name", CLASSES)
def test_a_missing_head_is_an_error_that_says_which_there_are(name: str, tmp_path: Path) -> None:
    there = tuple(family for family in HEADS if family not in CLASSES[name])
    folder = write(tmp_path, heads=there, **settings_for(name))
    absent = " and no ".join(sorted(CLASSES[name]))
    with pytest.raises(
        CheckpointError,
        match=f"has no {absent} among its weights; heads it has: {', '.join(there)}, pooler; .*new_head",
    ):
        getattr(raybert, name).from_pretrained(folder)


def test_a_missing_pooler_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path, heads=("classifier",), pooler=False)
    with pytest.raises(CheckpointError, match=r"has no pooler among its weights; heads it has: classifier; "):
        raybert.BertForSequenceClassification.from_pretrained(folder)
    raybert.BertForTokenClassification.from_pretrained(folder)


def test_half_a_head_is_a_missing_weight(tmp_path: Path) -> None:
    tensors = tiny_tensors(SETTINGS, heads=("classifier",))
    del tensors["classifier.bias"]
    write_json(tmp_path / "config.json", SETTINGS)
    write_safetensors(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"weight 'classifier\.bias' is missing"):
        raybert.BertForTokenClassification.from_pretrained(tmp_path)


def test_unknown_weights_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, heads=("qa",), more={"qa_outputs.extra": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"'qa_outputs\.extra' is in no place of this model"):
        raybert.BertForQuestionAnswering.from_pretrained(folder)


def test_labels_that_do_not_fit_the_head(tmp_path: Path) -> None:
    folder = write(tmp_path, heads=("classifier",), num_labels=5)
    with pytest.raises(
        CheckpointError, match=r"classifier.bias' has shape \(5,\); expected \(3,\); config.json's num_labels"
    ):
        raybert.BertForTokenClassification.from_pretrained(folder, num_labels=3)
    with pytest.raises(CheckpointError, match=r"classifier.bias' has shape \(5,\); expected \(1,\)"):
        raybert.BertForMultipleChoice.from_pretrained(folder)


@pytest.mark.parametrize("name", CLASSES)
def test_a_new_head_is_begun_on_the_old_trunk(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, pooler=False, **settings_for(name))
    load = getattr(raybert, name).from_pretrained
    caplog.set_level(logging.INFO, logger="raybert")
    random_state = torch.random.get_rng_state()
    first, again, other = (load(folder, new_head=True, seed=seed, num_labels=4) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert "new weights from seed 1 for" in caplog.text
    tensors = tiny_tensors(SETTINGS, pooler=False)
    differ = set()
    for path, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[path]), path
        if path in tensors:
            assert torch.equal(value, torch.from_numpy(tensors[path])), path
        elif not torch.equal(value, other.state_dict()[path]):
            differ.add(path)
    assert differ
    if "masked-lm" in CLASSES[name]:
        assert first.get_output_embeddings().weight is first.get_input_embeddings().weight
    if name == "BertForTokenClassification":
        assert first.classifier.weight.shape == (4, 8)
        assert first.config.num_labels == 4


def test_loading_draws_no_number(tmp_path: Path) -> None:
    folder = write(tmp_path, heads=("classifier",), num_labels=5)
    before = torch.random.get_rng_state()
    model = raybert.BertForTokenClassification.from_pretrained(folder, dtype="bfloat16")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    with pytest.raises(UsageError, match="dtype: int8 is not a floating dtype"):
        raybert.BertForTokenClassification.from_pretrained(folder, dtype="int8")


def test_a_new_head_replaces_one_and_keeps_the_pooler(tmp_path: Path) -> None:
    folder = write(tmp_path, heads=("classifier",), num_labels=5)
    model, report = raybert.BertForSequenceClassification.from_checkpoint(
        open_checkpoint(str(folder)), new_head=True, config=open_checkpoint(str(folder)).config.replace(num_labels=2)
    )
    tensors = tiny_tensors(SETTINGS | {"num_labels": 5}, heads=("classifier",))
    assert torch.equal(model.bert.pooler.dense.weight, torch.from_numpy(tensors["bert.pooler.dense.weight"]))
    assert model.classifier.weight.shape == (2, 8)
    assert {family: set(names) for family, names in report.unused_heads.items()} == {
        "classifier": {"classifier.weight", "classifier.bias"}
    }
    with pytest.raises(UsageError, match="num_label: no setting of a BERT config; did you mean num_labels"):
        raybert.BertForSequenceClassification.from_pretrained(folder, new_head=True, num_label=2)


def copies(tensors: dict[str, np.ndarray], *, other: bool) -> dict[str, np.ndarray]:
    words, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
    change = 0.5 if other else 0.0
    return {"cls.predictions.decoder.weight": words + change, "cls.predictions.decoder.bias": bias + change}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("lacks", ["nothing", "cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_tied_words_as_the_reference_ties_them(tie: bool, other: bool, lacks: str, tmp_path: Path) -> None:
    settings = SETTINGS | {"tie_word_embeddings": tie}
    tensors = tiny_tensors(settings, heads=("masked-lm",), pooler=False)
    tensors |= copies(tensors, other=other)
    tensors.pop(lacks, None)
    write_json(tmp_path / "config.json", settings)
    write_safetensors(tmp_path, tensors)
    ours = raybert.BertForMaskedLM.from_pretrained(tmp_path)
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    head, words = ours.get_output_embeddings(), ours.get_input_embeddings()
    assert (head.weight is words.weight) == (tie and not other)
    if not tie and lacks == "cls.predictions.decoder.bias":
        # The reference draws this one anew; files of its versions before 5 lack it, where it was always tied.
        theirs.cls.predictions.decoder.bias.data = theirs.cls.predictions.bias.data
    with torch.no_grad():
        assert_close(ours(IDS).logits, theirs(IDS).logits, "logits")
    ours.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert_close(raybert.BertForMaskedLM.from_pretrained(tmp_path / "again")(IDS).logits, ours(IDS).logits, "again")


def test_a_masked_lm_without_its_copies_needs_untied_ones(tmp_path: Path) -> None:
    folder = write(tmp_path, heads=("masked-lm",), pooler=False, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"weight 'cls.predictions.decoder.weight' is missing"):
        raybert.BertForMaskedLM.from_pretrained(folder)
    raybert.BertForMaskedLM.from_pretrained(folder, tie_word_embeddings=True)
