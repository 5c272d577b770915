"""A fingerprint follows contents: it changes with what can change an answer, and with nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

import raybert
from raybert.config import HeadSpec
from raybert.tasks import make_task
from tests.tiny import random_tensor, tiny_config, tiny_tensors, write_json, write_safetensors, write_tiny_checkpoint
from tests.vectors import assert_same, one_thread_a_module  # noqa: F401  a fixture

SENTENCE: dict[str, Any] = {
    "pooling": "mean",
    "normalize": True,
    "dense": [{"out_features": 8}],
    "max_seq_length": 50,
    "prompts": {"query": "query: "},
}


def fingerprint(model: Path, dtype: str = "float32", **options: Any) -> str:
    return make_task(HeadSpec(name="embed", task="embed", model=str(model), options=options)).fingerprint(dtype)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source"), sentence=SENTENCE, tokenizer_json=True)


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "elsewhere"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    write_json(path, settings)


# The same


def test_another_path(source: Path, copied: Path) -> None:
    found = fingerprint(copied)
    assert found == fingerprint(source)
    assert len(found) == 64
    assert int(found, 16) >= 0


def as_bin(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")


def as_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_safetensors(folder, tensors, shards=3)


def under_old_names(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors")


def without_pooler(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "pooler" not in name}, folder / "model.safetensors")


def beside_a_head(folder: Path) -> None:
    tensors = tiny_tensors(tiny_config(), heads=("classifier", "qa"))
    save_file(tensors, folder / "model.safetensors")


def with_training_settings(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(hidden_dropout_prob=0.3, initializer_range=0.5))


def with_names_that_change_nothing(folder: Path) -> None:
    rewrite(folder / "config.json", lambda config: config.update(_name_or_path="/a/b", transformers_version="9"))
    (folder / "README.md").write_text("words")


SAME = [as_bin, as_shards, under_old_names, without_pooler, beside_a_head, with_training_settings]
SAME += [with_names_that_change_nothing]


@pytest.mark.parametrize("change", SAME, ids=lambda change: change.__name__)
def test_what_changes_no_answer_changes_no_fingerprint(
    source: Path, copied: Path, change: Callable[[Path], None]
) -> None:
    change(copied)
    assert fingerprint(copied) == fingerprint(source)
    with (
        raybert.load(str(copied), "embed", dtype="float32", threads=1) as changed,
        raybert.load(str(source), "embed", dtype="float32", threads=1) as before,
    ):
        assert_same(changed(["a text"]), before(["a text"]))


def test_auto_resolved_is_the_same_as_given(source: Path) -> None:
    with raybert.load(str(source), "embed", threads=1) as auto:
        given = {"pooling": "mean", "normalize": True, "max_length": 50, "prompt": "", "dimensions": None}
        assert fingerprint(source, auto.settings.dtype, **given) == auto.fingerprint == auto.info()["fingerprint"]


def test_a_prompt_by_name_is_the_prompt(source: Path) -> None:
    assert fingerprint(source, prompt_name="query") == fingerprint(source, prompt="query: ")


# Another

OPTIONS = [
    {"dimensions": 4},
    {"max_length": 49},
    {"max_length": 51},
    {"normalize": False},
    {"pooling": "cls"},
    {"pooling": "max"},
    {"prompt": " "},
    {"prompt": "query: "},
]


def test_every_option_changes_it(source: Path) -> None:
    found = [fingerprint(source, **options) for options in [{}, *OPTIONS]]
    assert len(set(found)) == len(found)


def test_every_dtype_changes_it(source: Path) -> None:
    assert len({fingerprint(source, dtype) for dtype in ("float32", "bfloat16", "float16")}) == 3


def test_every_bit_of_a_weight_changes_it(source: Path, copied: Path) -> None:
    found = {fingerprint(source)}
    weights = copied / "model.safetensors"
    original = weights.read_bytes()
    header = int.from_bytes(original[:8], "little")
    offsets = {
        name: entry["data_offsets"][0]
        for name, entry in json.loads(original[8 : 8 + header]).items()
        if name.startswith(("embeddings", "encoder"))
    }
    for offset in offsets.values():
        damaged = bytearray(original)
        damaged[8 + header + offset] ^= 1
        weights.write_bytes(damaged)
        found.add(fingerprint(copied))
    assert len(found) == 1 + len(offsets)


def set_config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "config.json", lambda config: config.update(fields))


def set_lower_case(folder: Path) -> None:
    rewrite(folder / "sentence_bert_config.json", lambda settings: settings.update(do_lower_case=True))


def set_tokenizer(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", lambda settings: settings.update(strip_accents=False))


def set_vocabulary(folder: Path) -> None:
    pieces = (folder / "vocab.txt").read_text().splitlines()
    pieces[-1], pieces[-2] = pieces[-2], pieces[-1]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")


def set_tokenizer_json(folder: Path) -> None:
    rewrite(folder / "tokenizer.json", lambda settings: settings.update(truncation=None, version="1.0 "))


def set_special_tokens(folder: Path) -> None:
    write_json(folder / "special_tokens_map.json", {"unk_token": "[UNK]"})


def set_pooling(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode": "lasttoken"})


def set_include_prompt(folder: Path) -> None:
    rewrite(folder / "1_Pooling" / "config.json", lambda settings: settings.update(include_prompt=False))


def set_dense_activation(folder: Path) -> None:
    name = "torch.nn.modules.activation.ReLU"
    rewrite(folder / "2_Dense" / "config.json", lambda settings: settings.update(activation_function=name))


def set_dense_weight(folder: Path) -> None:
    file = folder / "2_Dense" / "model.safetensors"
    tensors = load_file(file)
    tensors["linear.bias"] = random_tensor("another", tensors["linear.bias"].shape, 1)
    save_file(tensors, file)


def set_order(folder: Path) -> None:
    def swap(rows: Any) -> None:
        rows[2]["path"], rows[3]["path"] = rows[3]["path"], rows[2]["path"]
        rows[2]["type"], rows[3]["type"] = rows[3]["type"], rows[2]["type"]

    rewrite(folder / "modules.json", swap)


OTHER: dict[str, Callable[[Path], None]] = {
    "activation": set_config(hidden_act="relu"),
    "heads": set_config(num_attention_heads=2),
    "LayerNorm": set_config(layer_norm_eps=1e-5),
    "decoder": set_config(is_decoder=True),
    "lower case": set_lower_case,
    "tokenizer_config.json": set_tokenizer,
    "vocab.txt": set_vocabulary,
    "tokenizer.json": set_tokenizer_json,
    "special_tokens_map.json": set_special_tokens,
    "pooling": set_pooling,
    "include_prompt": set_include_prompt,
    "Dense's activation": set_dense_activation,
    "Dense's weights": set_dense_weight,
    "order of modules": set_order,
}


@pytest.mark.parametrize("name", OTHER)
def test_what_can_change_an_answer_changes_the_fingerprint(source: Path, copied: Path, name: str) -> None:
    OTHER[name](copied)
    assert fingerprint(copied) != fingerprint(source)


def test_other_weights_change_it(tmp_path: Path) -> None:
    found = {fingerprint(write_tiny_checkpoint(tmp_path / str(seed), seed=seed)) for seed in range(3)}
    assert len(found) == 3


def test_the_tasks_version_changes_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(source)
    task = make_task(HeadSpec(name="embed", task="embed", model=str(source)))
    monkeypatch.setattr(type(task), "version", 10**6)
    assert fingerprint(source) != before


def test_heads_share_windows_only_where_they_encode_alike(source: Path, copied: Path) -> None:
    def key(model: Path, **options: Any) -> str:
        task = make_task(HeadSpec(name="embed", task="embed", model=str(model), options=options))
        return task.encoding_key(pairs=False)

    assert key(source) == key(copied) == key(source, dimensions=3, normalize=False, pooling="cls")
    set_tokenizer(copied)
    others = [key(source, max_length=9), key(source, prompt="a"), key(source, windows="slide"), key(copied)]
    assert len({key(source), *others}) == 5
