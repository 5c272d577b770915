"""Law 8: every name of a checkpoint is loaded, known and reported, or an error that names it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.folder import open_checkpoint
from raybert.checkpoint.names import HEADS, POOLER, bare, canonical, trunk_names
from raybert.errors import CheckpointError, UsageError
from raybert.model.architecture import BertModel
from raybert.model.loading import LoadReport, load_linear, load_trunk
from tests.oracle import one_thread  # noqa: F401  a fixture
from tests.tiny import random_tensor, tiny_config, tiny_tensors, write_json, write_safetensors, write_tiny_checkpoint

Tensors = dict[str, np.ndarray]
SIZES = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SETTINGS = tiny_config(**SIZES, intermediate_size=12, max_position_embeddings=16)
ALL_HEADS = tuple(HEADS)


def write(folder: Path, tensors: Tensors, settings: dict[str, Any] = SETTINGS, *, shards: int = 1) -> Path:
    write_json(folder / "config.json", settings)
    write_safetensors(folder, tensors, shards=shards)
    return folder


def write_bin(folder: Path, tensors: Tensors, *, legacy: bool = False) -> Path:
    write_json(folder / "config.json", SETTINGS)
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    return folder


def assert_holds(model: BertModel, tensors: Tensors) -> None:
    """The model's parameters are these tensors, by canonical names."""
    for name, value in model.state_dict().items():
        assert torch.equal(value, torch.from_numpy(tensors[canonical(name)])), name


def without_prefix(tensors: Tensors) -> Tensors:
    return {bare(name): value for name, value in tensors.items()}


def old_names(tensors: Tensors) -> Tensors:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): value for name, value in tensors.items()}


WRITERS: dict[str, Callable[[Path, Tensors], Path]] = {
    "safetensors": write,
    "without prefix": lambda folder, tensors: write(folder, without_prefix(tensors)),
    "gamma and beta": lambda folder, tensors: write(folder, old_names(tensors)),
    "old and without prefix": lambda folder, tensors: write(folder, without_prefix(old_names(tensors))),
    "parallel": lambda folder, tensors: write(folder, {f"module.{n}": t for n, t in tensors.items()}),
    "shards": lambda folder, tensors: write(folder, tensors, shards=3),
    "bin": write_bin,
    "old bin": lambda folder, tensors: write_bin(folder, tensors, legacy=True),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_model(layout: str, tmp_path: Path) -> None:
    tensors = tiny_tensors(SETTINGS)
    model = BertModel.from_pretrained(WRITERS[layout](tmp_path, tensors))
    assert_holds(model, tensors)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    ids = torch.tensor([[2, 5, 3]])
    reference = BertModel(BertConfig.from_dict(SETTINGS)).eval()
    reference.load_state_dict({bare(name): torch.from_numpy(value) for name, value in tensors.items()})
    assert torch.equal(model(ids).pooler_output, reference(ids).pooler_output)


def test_heads_pooler_and_buffers_are_reported_not_loaded(tmp_path: Path) -> None:
    tensors = tiny_tensors(SETTINGS, heads=ALL_HEADS)
    extra = {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].copy(),
        "bert.embeddings.position_ids": np.arange(16)[None],
    }
    checkpoint = open_checkpoint(str(write(tmp_path, tensors | extra)))
    model, report = load_trunk(checkpoint)
    assert model.pooler is None
    assert model(torch.tensor([[1]])).pooler_output is None
    assert_holds(model, tensors)
    assert isinstance(report, LoadReport)
    assert set(report.loaded) == set(trunk_names(model.config))
    assert report.buffers == ("bert.embeddings.position_ids",)
    assert {family: set(names) for family, names in report.unused_heads.items()} == {
        "pooler": set(POOLER),
        "masked-lm": set(HEADS["masked-lm"]) & set(tensors | extra),
        "next-sentence": set(HEADS["next-sentence"]),
        "classifier": set(HEADS["classifier"]),
        "qa": set(HEADS["qa"]),
    }
    accounted = [*report.loaded, *report.buffers, *chain.from_iterable(report.unused_heads.values())]
    assert sorted(accounted) == sorted(tensors | extra), "each name once"

    with_pooler, report = load_trunk(checkpoint, pooler=True)
    assert set(POOLER) <= set(report.loaded)
    assert "pooler" not in report.unused_heads
    assert with_pooler(torch.tensor([[1]])).pooler_output.shape == (1, 8)


def test_a_pooler_that_is_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_tensors(SETTINGS, pooler=False))
    model = BertModel.from_pretrained(folder)
    assert model.pooler is None
    assert model(torch.tensor([[1]])).pooler_output is None
    with pytest.raises(CheckpointError, match=r"has no pooler among its weights; heads it has: none; load another"):
        BertModel.from_pretrained(folder, add_pooling_layer=True)
    with pytest.raises(CheckpointError, match="pooler"):
        load_trunk(open_checkpoint(str(folder)), pooler=True)


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new if name == old else name: value for name, value in tensors.items()}


def removed(*suffixes: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if not name.endswith(suffixes)}


def added(name: str, shape: tuple[int, ...] = (8,)) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: random_tensor(name, shape, 0)}


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
DAMAGES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "an unknown name": (added("bert.adapter.down.weight"), r"model.safetensors: weight 'bert.adapter.down"),
    "many unknown names": (
        lambda tensors: tensors | added("aaa.weight")({}) | added("bbb.weight")({}),
        r"weights 'aaa.weight' and 1 more are in no place of this model",
    ),
    "a layer too many": (
        added("bert.encoder.layer.2.output.dense.bias"),
        r"'bert.encoder.layer.2.output.dense.bias' is in no place",
    ),
    "cross-attention in an encoder": (
        added("bert.encoder.layer.0.crossattention.self.key.bias"),
        r"'bert.encoder.layer.0.crossattention.self.key.bias' is in no place",
    ),
    "relative positions that the config lacks": (
        added("bert.encoder.layer.0.attention.self.distance_embedding.weight", (31, 4)),
        "distance_embedding.weight' is in no place",
    ),
    "a misspelt name": (renamed(QUERY, QUERY + "s"), f"'{QUERY}s' is in no place"),
    "a missing name": (removed("layer.1.attention.self.query.weight"), f"weight '{QUERY}' is missing"),
    "a missing layer": (
        lambda tensors: {name: value for name, value in tensors.items() if ".layer.1." not in name},
        r"weights 'bert.encoder.layer.1.attention.self.query.weight' and 15 more are missing",
    ),
    "a wrong shape": (added(QUERY, (8, 9)), rf"'{QUERY}' has shape \(8, 9\); expected \(8, 8\)"),
    "a wrong number of axes": (added(QUERY, (64,)), r"has shape \(64,\); expected \(8, 8\)"),
    "whole numbers": (
        lambda tensors: tensors | {QUERY: np.zeros((8, 8), dtype=np.int8)},
        f"'{QUERY}' has dtype int8; expected one of float32",
    ),
    "one tensor twice": (added("encoder.layer.0.output.dense.bias"), "both mean"),
    "half a pooler": (removed("pooler.dense.bias"), "weight 'bert.pooler.dense.bias' is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_anything_else_is_an_error_that_names_it(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    folder = write(tmp_path, change(tiny_tensors(SETTINGS)))
    with pytest.raises(CheckpointError, match=message) as caught:
        BertModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    tensors = tiny_tensors(SETTINGS)
    write(tmp_path / "s", tensors)
    write_bin((tmp_path / "b"), tensors)
    write_bin((tmp_path / "l"), tensors, legacy=True)
    for path in (*tmp_path.glob("*/*.safetensors"), *tmp_path.glob("*/*.bin")):
        whole = path.read_bytes()
        for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CheckpointError, match=str(path)) as caught:
                BertModel.from_pretrained(path.parent)
            assert "\n" not in str(caught.value)


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_tensors(SETTINGS), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors"):
        BertModel.from_pretrained(folder)


class _Runs:
    """A pickle that would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (_touch, (str(self.path),))


def _touch(path: str) -> None:
    Path(path).touch()


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", SETTINGS)
    torch.save({"bert.x": _Runs(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        BertModel.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_become_float32_unless_asked(stored: torch.dtype, file: str, tmp_path: Path) -> None:
    state = {name: torch.from_numpy(value).to(stored) for name, value in tiny_tensors(SETTINGS).items()}
    write_json(tmp_path / "config.json", SETTINGS)
    if file == "pytorch_model.bin":
        torch.save(state, tmp_path / file)
    else:
        save_torch(state, tmp_path / file)
    for asked in (None, torch.float32, torch.bfloat16):
        model = BertModel.from_pretrained(tmp_path, dtype=asked)
        for name, value in model.state_dict().items():
            assert value.dtype == (asked or torch.float32)
            assert torch.equal(value, state[canonical(name)].to(value.dtype))
    with pytest.raises(UsageError, match=r"torch\.int64 is not a floating dtype"):
        BertModel.from_pretrained(tmp_path, dtype=torch.int64)


def test_tensors_that_share_memory_or_have_strides(tmp_path: Path) -> None:
    state = {name: torch.from_numpy(value) for name, value in tiny_tensors(SETTINGS, heads=ALL_HEADS).items()}
    expected = {name: value.clone().numpy() for name, value in state.items()}
    key = QUERY.replace("query", "key")
    both = torch.cat([state[QUERY], state[key]])
    state |= {QUERY: both[:8], key: both[8:]}
    dense = "bert.encoder.layer.0.output.dense.weight"
    state[dense] = state[dense].t().contiguous().t()
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    write_json(tmp_path / "config.json", SETTINGS)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = BertModel.from_pretrained(tmp_path)
    assert_holds(model, expected)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["safetensors", "bin", "old bin"])
def test_loading_draws_nothing_and_training_leaves_the_file_alone(layout: str, tmp_path: Path) -> None:
    folder = WRITERS[layout](tmp_path, tiny_tensors(SETTINGS))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    state = torch.get_rng_state()
    model = BertModel.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.tensor([[1, 2, 3]])).pooler_output.sum().backward()
    optimizer.step()
    again = BertModel.from_pretrained(folder)
    assert not torch.equal(again.pooler.dense.weight, model.pooler.dense.weight)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_loading_leaves_torch_s_compiler_alone(tmp_path: Path) -> None:
    # torch._dynamo takes longer to import than a model to load, and some 100 MB.
    folder = write(tmp_path, tiny_tensors(SETTINGS))
    program = (
        "import sys; from raybert.model.architecture import BertModel;"
        "BertModel.from_pretrained(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
    assert not run.stderr


def test_config_fields_can_be_overridden_and_must_exist(tmp_path: Path) -> None:
    folder = write(tmp_path, tiny_tensors(SETTINGS))
    model = BertModel.from_pretrained(folder, is_decoder=True, output_hidden_states=True)
    assert model(torch.tensor([[1, 2]])).past_key_values is not None
    checkpoint = open_checkpoint(str(folder))
    load_trunk(checkpoint)[0].config.hidden_act = "relu"
    assert checkpoint.config.hidden_act == "gelu", "a model's config is its own"
    with pytest.raises(UsageError, match="output_attention: no setting of a BERT"):
        BertModel.from_pretrained(folder, output_attention=True)
    with pytest.raises(CheckpointError, match="crossattention"):
        BertModel.from_pretrained(folder, is_decoder=True, add_cross_attention=True)


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("cross", [False, True])
def test_decoders_and_relative_positions_load(kind: str, cross: bool, tmp_path: Path) -> None:
    config = {"position_embedding_type": kind, "is_decoder": cross, "add_cross_attention": cross}
    folder = write_tiny_checkpoint(tmp_path, config=config)
    model = BertModel.from_pretrained(folder)
    assert_holds(model, tiny_tensors(tiny_config(**config)))


def dense_folder(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_linear_layer_of_a_sentence_model(tmp_path: Path) -> None:
    weight, bias = random_tensor("w", (3, 5), 0), random_tensor("b", (3,), 0)
    folder = dense_folder(tmp_path / "2_Dense", {"linear.weight": weight, "linear.bias": bias})
    linear = load_linear(folder, in_features=5, out_features=3, bias=True)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    expected = x @ torch.from_numpy(weight).T + torch.from_numpy(bias)
    assert torch.allclose(linear(x), expected, atol=1e-6)

    (folder / "model.safetensors").unlink()
    torch.save({"linear.weight": torch.from_numpy(weight)}, folder / "pytorch_model.bin")
    assert load_linear(folder, in_features=5, out_features=3, bias=False).bias is None
    with pytest.raises(CheckpointError, match=r"'linear\.bias' is missing"):
        load_linear(folder, in_features=5, out_features=3, bias=True)
    with pytest.raises(CheckpointError, match=r"has shape \(3, 5\); expected \(3, 4\)"):
        load_linear(folder, in_features=4, out_features=3, bias=False)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_linear(folder, in_features=5, out_features=3, bias=False)


@pytest.mark.parametrize("name", ["other.weight", "classifier.weight", "bert.pooler.dense.bias"])
def test_a_linear_layer_beside_something_else_is_an_error(name: str, tmp_path: Path) -> None:
    tensors = {"linear.weight": random_tensor("w", (3, 5), 0), name: random_tensor("w", (3,), 0)}
    with pytest.raises(CheckpointError, match="2_Dense"):
        load_linear(dense_folder(tmp_path / "2_Dense", tensors), in_features=5, out_features=3, bias=False)
