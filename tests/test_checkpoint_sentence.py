"""sentence-transformers folders: what is read from the files of every version, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense as ReferenceDense
from sentence_transformers.sentence_transformer.modules import Normalize as ReferenceNormalize
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling
from sentence_transformers.sentence_transformer.modules import Transformer

from raybert.checkpoint.config import ACTIVATIONS
from raybert.checkpoint.folder import open_checkpoint
from raybert.checkpoint.sentence import (
    POOLING_MODES,
    Dense,
    Normalize,
    Pooling,
    SentenceModules,
    read_modules,
    read_sentence_modules,
)
from raybert.checkpoint.weights import find_weights, index, read_bytes
from raybert.errors import CheckpointError
from tests.tiny import write_json, write_tiny_checkpoint

WIDTH = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with Pooling, Dense and Normalize, for tests that then break it."""
    return write_tiny_checkpoint(tmp_path / "m", sentence={"dense": [{"out_features": 8}], "normalize": True})


def change(path: Path, **values: Any) -> None:
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | values)


def modules_of(folder: Path) -> SentenceModules:
    modules = read_sentence_modules(folder, WIDTH)
    assert modules is not None
    return modules


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_sentence_modules(folder, WIDTH)
    return str(caught.value)


# -- what is read --------------------------------------------------------------------------------------------------


def test_a_plain_bert_folder_has_none(tiny: Path) -> None:
    assert read_sentence_modules(tiny, WIDTH) is None
    assert open_checkpoint(tiny).sentence is None


def test_everything_of_an_old_folder(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(
        tmp_path / "m",
        sentence={
            "pooling": ["mean", "cls"],
            "include_prompt": False,
            "dense": [
                {"out_features": 16},
                {"out_features": 8, "bias": False, "activation": "torch.nn.modules.linear.Identity"},
            ],
            "normalize": True,
            "max_seq_length": 40,
            "do_lower_case": True,
            "prompts": {"query": "q: ", "passage": ""},
            "default_prompt_name": "query",
        },
    )
    modules = modules_of(folder)
    assert modules == SentenceModules(
        pooling=Pooling(modes=("cls", "mean"), include_prompt=False),
        after=(
            Dense(folder=folder / "2_Dense", in_features=64, out_features=16, bias=True, activation="tanh"),
            Dense(folder=folder / "3_Dense", in_features=16, out_features=8, bias=False, activation="linear"),
            Normalize(),
        ),
        max_seq_length=40,
        do_lower_case=True,
        prompts={"query": "q: ", "passage": ""},
        default_prompt="query",
    )
    assert modules.width(WIDTH) == 8
    checkpoint = open_checkpoint(folder)
    assert checkpoint.sentence == modules
    assert (checkpoint.transformer.max_seq_length, checkpoint.transformer.do_lower_case) == (40, True)


@pytest.mark.parametrize("modes", [m for n in (1, 2) for m in itertools.permutations(POOLING_MODES, n)])
def test_pooling_modes_in_the_order_that_the_library_concatenates(modes: tuple[str, ...], tmp_path: Path) -> None:
    """Old booleans have a fixed order, new lists their own; the reference loads both files."""
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    ReferencePooling(WIDTH, pooling_mode=list(modes)).save(str(new))
    keys = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}
    write_json(
        old / "config.json",
        {"word_embedding_dimension": WIDTH} | {f"pooling_mode_{keys.get(m, m)}": m in modes for m in POOLING_MODES},
    )
    rows = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for place in (old, new):
        pooling = {"path": place.name, "type": "sentence_transformers.models.Pooling"}
        write_json(tmp_path / "modules.json", [*rows, pooling])
        theirs = ReferencePooling.load(str(place)).pooling_mode
        modules = modules_of(tmp_path)
        assert modules.pooling.modes == ((theirs,) if isinstance(theirs, str) else theirs)
        assert modules.width(WIDTH) == WIDTH * len(modes)


def test_no_pooling_mode_switched_on_is_mean(folder: Path) -> None:
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": False}
    )
    assert modules_of(folder).pooling == Pooling(modes=("mean",))


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (torch.nn.Tanh(), "tanh"),
        (torch.nn.Identity(), "linear"),
        (None, "linear"),
        (torch.nn.GELU(), "gelu"),
        (torch.nn.ReLU(), "relu"),
        (torch.nn.SiLU(), "silu"),
        (torch.nn.Sigmoid(), "sigmoid"),
        (torch.nn.LeakyReLU(), "leaky_relu"),
        (torch.nn.ELU(), "elu"),
        (torch.nn.Mish(), "mish"),
        (torch.nn.ReLU6(), "relu6"),
        (torch.nn.Hardswish(), "hardswish"),
    ],
)
@pytest.mark.parametrize("safe", [True, False])
def test_what_the_installed_library_saves(
    activation: Any, name: str, tmp_path: Path, tiny: Path, *, safe: bool
) -> None:
    assert name in ACTIVATIONS
    dense = ReferenceDense(2 * WIDTH, 8, bias=safe, activation_function=activation)
    parts = [
        Transformer(str(tiny)),
        ReferencePooling(WIDTH, pooling_mode=["mean", "cls"], include_prompt=False),
        dense,
        ReferenceNormalize(),
    ]
    model = SentenceTransformer(modules=parts, device="cpu", prompts={"a": "A: "}, default_prompt_name="a")
    model.save_pretrained(str(tmp_path / "m"), safe_serialization=safe, create_model_card=False)
    modules = modules_of(tmp_path / "m")
    assert modules.pooling == Pooling(modes=("mean", "cls"), include_prompt=False)
    ours = modules.after[0]
    assert isinstance(ours, Dense)
    assert (ours.in_features, ours.out_features, ours.bias, ours.activation) == (64, 8, safe, name)
    assert modules.after[1:] == (Normalize(),)
    # This version writes prompts as they are, "query" and "document" among them.
    assert modules.prompts["a"] == "A: "
    assert modules.default_prompt == "a"
    weight = read_bytes(index(find_weights(ours.folder))["linear.weight"])
    assert np.array_equal(np.frombuffer(weight, np.float32).reshape(8, 64), dense.linear.weight.detach().numpy())


def test_dropout_is_nothing_at_inference_and_a_null_activation_none(folder: Path) -> None:
    rows = json.loads((folder / "modules.json").read_text())
    dropout = {"idx": 2, "name": "2", "path": "2_Dropout", "type": "sentence_transformers.models.Dropout"}
    write_json(folder / "modules.json", [*rows[:2], dropout, *rows[2:]])
    assert len(modules_of(folder).after) == 2
    change(folder / "2_Dense" / "config.json", activation_function=None)
    dense = modules_of(folder).after[0]
    assert isinstance(dense, Dense)
    assert dense.activation == "linear"


def test_the_default_prompts_of_the_library_are_empty_ones(folder: Path) -> None:
    change(folder / "config_sentence_transformers.json", default_prompt_name="query", prompts={"x": None})
    modules = modules_of(folder)
    assert (modules.prompts, modules.default_prompt) == ({"x": "", "query": ""}, "query")
    (folder / "config_sentence_transformers.json").unlink()
    assert (modules_of(folder).prompts, modules_of(folder).default_prompt) == ({}, None)


def test_a_transformer_in_its_own_folder(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"):
        (folder / name).rename(inner / name)
    rows = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [rows[0] | {"path": "0_Transformer"}, *rows[1:]])
    change(inner / "sentence_bert_config.json", max_seq_length=20)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.path == inner
    assert checkpoint.name == "m"
    assert checkpoint.max_length == 20
    assert checkpoint.sentence is not None
    assert checkpoint.sentence.width(WIDTH) == 8


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["CNN", "LSTM", "WordWeights", "LayerNorm", "WeightedLayerPooling", "Asym", "Router", "BoW", "Pooling"]
)
def test_a_module_that_cant_be_honoured_is_named(folder: Path, kind: str) -> None:
    rows = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*rows, {"path": "4_X", "type": f"sentence_transformers.models.{kind}"}])
    assert f"modules.json: module 'sentence_transformers.models.{kind}' can't be honoured" in refusal(folder)


def row(kind: str, path: str = "") -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("Transformer")], "module 1 is nothing; raybert can honour only Pooling there"),
        ([row("Transformer"), row("Normalize", "x")], "module 1 is Normalize"),
        ([row("Transformer"), row("CLIPModel", "x")], "module 1 is CLIPModel"),
        (
            [row("Transformer"), row("SpladePooling", "1_Pooling"), row("Normalize", "x")],
            "module 'sentence_transformers.models.Normalize' behind SpladePooling can't be honoured",
        ),
        ([row("StaticEmbedding")], "module 0 is StaticEmbedding"),
        ([row("Transformer"), {"type": "custom_st.Mine", "path": "x"}], "module 'custom_st.Mine' is code of its own"),
        ([row("Transformer"), row("Pooling", "../1_Pooling")], "leads out of the checkpoint's folder"),
        ([row("Transformer"), row("Pooling", "/tmp")], "leads out of the checkpoint's folder"),
        ([{"path": ""}], "lacks type or path"),
        (["Transformer"], "lacks type or path"),
        ([], "expected a list of modules"),
        ({}, "expected a list of modules"),
    ],
)
def test_bad_lists_of_modules(folder: Path, rows: Any, message: str) -> None:
    write_json(folder / "modules.json", rows)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "unknown pooling 'median'; known are cls, max"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "neither a mode nor a list"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "neither a mode nor a list"),
        ("1_Pooling/config.json", {"pooling_mode": [["cls"]]}, "unknown pooling ['cls']"),
        ("1_Pooling/config.json", {"pooling_mode_median": True}, "unknown pooling 'pooling_mode_median'"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 64}, "pools vectors of 64 numbers, the BERT gives 32"),
        ("1_Pooling/config.json", {"include_prompt": "yes"}, "include_prompt 'yes'"),
        ("2_Dense/config.json", {"in_features": 7}, "in_features is 7, but vectors of 32 numbers reach it"),
        ("2_Dense/config.json", {"out_features": 0}, "out_features 0"),
        ("2_Dense/config.json", {"out_features": None}, "out_features None"),
        ("2_Dense/config.json", {"bias": 1}, "bias 1"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.PReLU"}, "PReLU"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, "'os.system' can't be honoured"),
        ("2_Dense/config.json", {"activation_function": ["x"]}, "can't be honoured"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual True can't be honoured"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings'"),
        ("2_Dense/config.json", {"temperature": 3}, "unknown setting 'temperature' of Dense"),
        ("3_Normalize/config.json", {"module_output_name": "other"}, "module_output_name 'other'"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length 0"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, "max_seq_length '256'"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case 1"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
        ("sentence_bert_config.json", {"model_args": {"hidden_act": "relu"}}, "model_args 'hidden_act'"),
        ("sentence_bert_config.json", {"tokenizer_args": {"do_lower_case": True}}, "tokenizer_args"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "default_prompt_name 'q' is not among"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["q"]}, "default_prompt_name ['q']"),
        ("config_sentence_transformers.json", {"prompts": ["q"]}, "prompts must map names to texts"),
        ("config_sentence_transformers.json", {"prompts": {"q": 3}}, "prompts must map names to texts"),
    ],
)
def test_settings_that_cant_be_honoured_name_file_and_value(
    folder: Path, file: str, values: dict[str, Any], message: str
) -> None:
    change(folder / file, **values)
    text = refusal(folder)
    assert text.startswith(f"{folder / file}: ")
    assert message in text
    assert "\n" not in text


def test_harmless_model_arguments_are_accepted(folder: Path) -> None:
    change(folder / "sentence_bert_config.json", model_args={"torch_dtype": "float16"}, model_kwargs=None)
    modules_of(folder)


def test_damaged_and_missing_files(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text("{")
    assert "1_Pooling/config.json: no valid JSON" in refusal(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling/config.json: can't be read" in refusal(folder)
    (folder / "modules.json").write_text("3")
    with pytest.raises(CheckpointError, match="expected a list"):
        read_modules(folder)


def test_only_who_needs_the_modules_meets_their_error(folder: Path) -> None:
    rows = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [rows[0], row("WordWeights", "1_Pooling")])
    checkpoint = open_checkpoint(folder)
    assert checkpoint.max_length == 128
    with pytest.raises(CheckpointError, match="module 1 is WordWeights"):
        _ = checkpoint.sentence
