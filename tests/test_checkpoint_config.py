"""`BertConfig` against the reference's, and its own checks."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig as ReferenceConfig

from raybert.checkpoint.config import ACTIVATIONS, BertConfig
from raybert.errors import CheckpointError
from tests.tiny import tiny_config, write_json

# Written by the reference but no setting of a BERT.
BOOKKEEPING = {"_name_or_path", "transformers_version"}

# What version 4.57 writes for BertConfig(num_labels=3).to_json_string(use_diff=False), generation settings cut short.
FULL_4_57: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "attention_probs_dropout_prob": 0.1,
    "bad_words_ids": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "classifier_dropout": None,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "dtype": None,
    "eos_token_id": None,
    "finetuning_task": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    "layer_norm_eps": 1e-12,
    "max_length": 20,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "return_dict": True,
    "sep_token_id": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
    "tokenizer_class": None,
    "torchscript": False,
    "transformers_version": "4.57.6",
    "type_vocab_size": 2,
    "use_bfloat16": False,
    "use_cache": True,
    "vocab_size": 30522,
}


def reference_values(config: ReferenceConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in BOOKKEEPING}


def assert_equal_fields(ours: BertConfig, theirs: ReferenceConfig) -> None:
    for name, value in reference_values(theirs).items():
        assert getattr(ours, name) == value, name


def test_defaults_are_the_references() -> None:
    assert_equal_fields(BertConfig(), ReferenceConfig())
    assert BertConfig().position_embedding_type == "absolute"


def test_a_full_4_57_file_reads_and_every_key_is_written_back() -> None:
    config = BertConfig.from_dict(FULL_4_57)
    assert json.loads(config.to_json_string()) == FULL_4_57
    assert config == BertConfig(num_labels=3, **config.extra)
    assert config.max_length == 20


SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_labels": 3, "foo": 1, "deep": {"a": [1, {"b": None}]}},
    {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "multi_label_classification"},
    {"is_decoder": True, "add_cross_attention": True, "use_cache": False, "eos_token_id": [1, 2], "bos_token_id": 1},
    {"hidden_size": 24, "num_attention_heads": 3, "classifier_dropout": 0.3, "hidden_act": "gelu_new"},
    {"dtype": "bfloat16", "architectures": ["BertForMaskedLM"], "tie_word_embeddings": False, "pad_token_id": None},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_files_are_exchanged_with_the_reference(settings: dict[str, Any], tmp_path: Path) -> None:
    ours = BertConfig(**settings)
    ours.save_pretrained(tmp_path / "ours")
    theirs = ReferenceConfig.from_pretrained(tmp_path / "ours")
    for name, value in ours.to_dict().items():
        if name == "dtype":
            assert str(theirs.dtype).removeprefix("torch.") == str(value)
        else:
            assert getattr(theirs, name) == value, name
    ReferenceConfig(**settings).save_pretrained(tmp_path / "theirs")
    back = BertConfig.from_pretrained(tmp_path / "theirs")
    assert back.replace(transformers_version=None) == ours.replace(transformers_version=None)
    assert BertConfig.from_pretrained(tmp_path / "ours" / "config.json") == ours


def test_extra_keys_are_attributes_and_fields_can_be_assigned() -> None:
    config = BertConfig(foo=1)
    assert config.foo == 1
    config.foo, config.is_decoder, config.num_labels = 2, True, 4
    assert (config.foo, config.extra, config.is_decoder, config.num_labels) == (2, {"foo": 2}, True, 4)
    assert config.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    config.id2label = {"0": "a"}  # type: ignore[dict-item]  # as JSON has it
    assert config.labels == ("a",)
    with pytest.raises(AttributeError, match="bar"):
        _ = config.bar
    with pytest.raises(CheckpointError, match=r"hidden_size 'x'"):
        config.hidden_size = "x"  # type: ignore[assignment]


def test_copies_pickles_and_equality() -> None:
    config = BertConfig(num_labels=3, foo=[1])
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.replace()):
        assert twin == config
        assert twin is not config
        twin.foo.append(2)
        assert config.foo == [1]
    assert config != config.replace(hidden_act="relu")
    assert config != config.replace(foo=[2])


def test_changes_over_a_file(tmp_path: Path) -> None:
    path = write_json(tmp_path / "config.json", tiny_config(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}))
    assert BertConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5
    assert BertConfig.from_pretrained(tmp_path, num_labels=2).labels == ("a", "b")
    renamed = BertConfig.from_json_file(path, id2label={0: "c"})
    assert (renamed.labels, renamed.label2id) == (("c",), None)
    assert BertConfig.from_dict({"hidden_size": 768, "torch_dtype": "float16"}).dtype == "float16"
    # The reference believes the names of a file that holds both.
    assert BertConfig.from_dict(tiny_config(num_labels=7, id2label={"0": "a"})).num_labels == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 10, "num_attention_heads": 3}, "hidden_size 10 is not a multiple of num_attention_heads 3"),
    ({"model_type": "roberta"}, "model_type 'roberta' is not supported"),
    ({"model_type": "distilbert"}, "model_type 'distilbert' is not supported"),
    ({"model_type": ["bert"]}, "is not supported"),
    ({"hidden_act": "geluu"}, "hidden_act 'geluu' is not one of elu, gelu"),
    ({"hidden_act": ["gelu"]}, "hidden_act"),
    ({"hidden_size": 32.0}, "hidden_size 32.0 is not a whole number of at least 1"),
    ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
    ({"vocab_size": True}, "vocab_size True"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob 1.5 is not a number from 0 to 1"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps nan"),
    ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'"),
    ({"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
    ({"is_decoder": 1}, "is_decoder 1 is not true or false"),
    ({"pad_token_id": 2000}, "pad_token_id 2000 exceeds the last token id, 1999"),
    ({"problem_type": "ranking"}, "problem_type 'ranking'"),
    ({"problem_type": "single_label_classification", "num_labels": 1}, "needs num_labels of at least 2"),
    ({"id2label": ["a", "b"]}, "id2label must map"),
    ({"id2label": {"first": "a"}}, "id2label must map"),
    ({"num_labels": "3"}, "num_labels '3'"),
    ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is set"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is set"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_values_are_one_clear_error(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "config.json", tiny_config(**change))
    with pytest.raises(CheckpointError) as caught:
        BertConfig.from_json_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_must_be_numbered_from_zero() -> None:
    with pytest.raises(CheckpointError, match=r"id2label has the numbers \[1, 2\]"):
        _ = BertConfig(id2label={1: "a", 2: "b"}).labels


def test_code_may_not_contradict_itself() -> None:
    with pytest.raises(CheckpointError, match="num_labels 3 contradicts the 2 labels"):
        BertConfig(num_labels=3, id2label={0: "a", 1: "b"})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3", b'{"vocab_size": 1e999}', b"{" * 100_000])
def test_damaged_files_are_one_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        BertConfig.from_json_file(path)


def test_missing_file_and_missing_model_type(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="can't be read"):
        BertConfig.from_pretrained(tmp_path)
    assert BertConfig.from_dict({"hidden_size": 24, "num_attention_heads": 3}).hidden_size == 24
    with pytest.raises(CheckpointError, match="no model_type"):
        BertConfig.from_dict({"n_embd": 24})


WORDS = st.text(alphabet="0a \u00e9\ud800", max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*FULL_4_57, "quantization_config", "num_labels", "torch_dtype", "foo", "extra"])


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_object_is_a_config_or_a_checkpoint_error(change: dict[str, Any]) -> None:
    try:
        config = BertConfig.from_dict(tiny_config() | change)
    except CheckpointError:
        return
    assert BertConfig.from_dict(json.loads(config.to_json_string())) == config


def test_activations_are_those_of_the_reference_or_torch() -> None:
    from transformers.activations import ACT2CLS

    assert ACTIVATIONS - set(ACT2CLS) == {"elu"}


def test_a_key_called_extra_is_an_extra_key() -> None:
    config = BertConfig.from_dict(tiny_config(extra=[1]))
    assert config.extra == {"extra": [1]}
    assert config.to_dict()["extra"] == [1]
