"""Opening a folder, and what its digests depend on."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raybert.checkpoint.digest import files_digest, head_digest, module_digest, trunk_digest
from raybert.checkpoint.folder import Checkpoint, open_checkpoint
from raybert.checkpoint.names import HEADS, bare
from raybert.checkpoint.sentence import Dense
from raybert.errors import CheckpointError
from tests.tiny import tiny_config, tiny_tensors, write_json, write_safetensors, write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
DEMO_SHA256_OF_TRUNK = "a9c81046f7890ff212e57e77e4fc758e883130be2beddc3e13039d06c27b2d32"


# -- opening -------------------------------------------------------------------------------------------------------


def test_what_a_plain_folder_says(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.path == tiny
    assert checkpoint.name == tiny.name
    assert checkpoint.config.hidden_size == 32
    assert checkpoint.weight_files == (tiny / "model.safetensors",)
    assert [path.name for path in checkpoint.tokenizer_files] == [
        "tokenizer.json",
        "vocab.txt",
        "tokenizer_config.json",
    ]
    assert (checkpoint.max_length, checkpoint.sentence) == (128, None)


@pytest.mark.parametrize(
    ("positions", "tokenizer", "sentence", "length"),
    [
        (128, None, None, 128),
        (128, 64, None, 64),
        (128, 512, None, 128),
        (128, 64, 32, 32),
        (128, 64, 256, 64),
        (128, 10**30, 100, 100),
        (128, 1e30, None, 128),
        (128, 1e2, None, 100),
        (64, 512, 256, 64),
    ],
)
def test_max_length_is_the_smallest_sane_limit(
    tmp_path: Path, positions: int, tokenizer: float | None, sentence: int | None, length: int
) -> None:
    folder = write_tiny_checkpoint(
        tmp_path / "m",
        config={"max_position_embeddings": positions},
        tokenizer={"model_max_length": tokenizer},
        sentence=None if sentence is None else {"max_seq_length": sentence},
    )
    assert open_checkpoint(folder).max_length == length


@pytest.mark.parametrize("value", [0, -1, "512", 1.5, True])
def test_a_tokenizer_length_that_is_no_length(tmp_path: Path, value: Any) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m", tokenizer={"model_max_length": value})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: model_max_length"):
        open_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json; this is no checkpoint"):
        open_checkpoint(tmp_path)
    write_json(tmp_path / "config.json", tiny_config())
    with pytest.raises(CheckpointError, match=r"no weights: looked for model\.safetensors"):
        open_checkpoint(tmp_path)
    write_json(tmp_path / "config.json", tiny_config(model_type="roberta"))
    with pytest.raises(CheckpointError, match="model_type 'roberta' is not supported"):
        open_checkpoint(tmp_path)


def test_a_model_saved_without_tokenizer_opens(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", tiny_config())
    write_safetensors(tmp_path, tiny_tensors(tiny_config()))
    assert open_checkpoint(tmp_path).tokenizer_files == ()


# -- digests -------------------------------------------------------------------------------------------------------

HEADED = ("masked-lm", "next-sentence", "classifier", "qa")


def write_variant(folder: Path, tensors: dict[str, np.ndarray], *, shards: int = 1, torch_file: str = "") -> Checkpoint:
    """The same checkpoint in another file format; `torch_file` is "", "zip" or "legacy"."""
    write_tiny_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    if torch_file:
        values = OrderedDict((name, torch.from_numpy(tensor)) for name, tensor in tensors.items())
        path = folder / "pytorch_model.bin"
        torch.save(values, path, _use_new_zipfile_serialization=torch_file == "zip")
    else:
        write_safetensors(folder, tensors, shards=shards)
    return open_checkpoint(folder)


def old_name(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


SPELLINGS: list[Callable[[str], str]] = [str, bare, old_name, lambda name: "module." + name]
FORMATS: list[dict[str, Any]] = [{}, {"shards": 3}, {"torch_file": "zip"}, {"torch_file": "legacy"}]


def test_one_trunk_has_one_digest_in_every_format_and_spelling(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config(), heads=HEADED)
    digests, heads = set(), set()
    for number, (spell, how) in enumerate(itertools.product(SPELLINGS, FORMATS)):
        spelt = {spell(name): tensor for name, tensor in reversed(tensors.items())}
        checkpoint = write_variant(tmp_path / str(number), spelt, **how)
        digests.add(trunk_digest(checkpoint))
        heads.add(head_digest(checkpoint, HEADS["qa"]))
    digests.add(trunk_digest(open_checkpoint(write_tiny_checkpoint(tmp_path / "plain", pooler=False))))
    assert len(digests) == 1
    assert len(heads) == 1


def test_buffers_poolers_heads_and_training_settings_are_not_the_trunk(tmp_path: Path) -> None:
    plain = trunk_digest(open_checkpoint(write_tiny_checkpoint(tmp_path / "a")))
    settings = {"hidden_dropout_prob": 0.5, "initializer_range": 0.1, "num_labels": 7, "foo": 1, "use_cache": False}
    other = write_tiny_checkpoint(tmp_path / "b", heads=HEADED, config=settings)
    tensors = tiny_tensors(tiny_config()) | {"bert.embeddings.position_ids": np.arange(128)[None]}
    with_buffer = write_variant(tmp_path / "c", tensors)
    assert {trunk_digest(open_checkpoint(other)), trunk_digest(with_buffer)} == {plain}


def test_every_number_name_dtype_and_setting_of_the_trunk_counts(tmp_path: Path) -> None:
    def digest_of(number: int, tensors: dict[str, np.ndarray], **config: Any) -> str:
        folder = tmp_path / str(number)
        write_json(folder / "config.json", tiny_config(**config))
        write_safetensors(folder, tensors)
        return trunk_digest(open_checkpoint(folder))

    tensors = tiny_tensors(tiny_config(), pooler=False)
    seen = {digest_of(0, tensors)}
    count = 0
    for count, name in enumerate(tensors, start=1):
        changed = tensors[name].copy()
        changed.flat[-1] += 1e-6 + abs(changed.flat[-1]) * 1e-3
        seen.add(digest_of(count, tensors | {name: changed}))
    assert len(seen) == count + 1
    query, key = (f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key"))
    more: list[tuple[dict[str, np.ndarray], dict[str, Any]]] = [
        (tensors | {query: tensors[key], key: tensors[query]}, {}),
        ({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, {}),
        (tensors, {"num_attention_heads": 2}),
        (tensors, {"hidden_act": "gelu_new"}),
        (tensors, {"layer_norm_eps": 1e-5}),
        (tensors, {"is_decoder": True}),
        (tensors, {"position_embedding_type": "relative_key"}),
    ]
    digests = {digest_of(100 + number, values, **config) for number, (values, config) in enumerate(more)}
    assert len(digests) == len(more)
    assert not digests & seen


def test_the_digest_of_the_demo_model_is_a_fixed_value() -> None:
    """A change of this value makes every stored fingerprint stale: it may only come with a release note."""
    assert trunk_digest(open_checkpoint("demo")) == DEMO_SHA256_OF_TRUNK


def test_head_digests(tmp_path: Path) -> None:
    one = open_checkpoint(write_tiny_checkpoint(tmp_path / "a", heads=("classifier",)))
    two = open_checkpoint(write_tiny_checkpoint(tmp_path / "b", heads=("classifier",), seed=1))
    assert head_digest(one, HEADS["classifier"]) != head_digest(two, HEADS["classifier"])
    assert head_digest(one, HEADS["classifier"]) != head_digest(one, HEADS["classifier"][:1])
    with pytest.raises(CheckpointError, match="has no qa among its weights; heads it has: classifier, pooler"):
        head_digest(one, HEADS["qa"])
    with pytest.raises(CheckpointError, match=r"the weights lack 'classifier\.other'"):
        head_digest(one, [*HEADS["classifier"], "classifier.other"])


def test_module_digests(tmp_path: Path) -> None:
    def dense_of(name: str, **spec: Any) -> Dense:
        seed = spec.pop("seed", 0)
        sentence = {"dense": [{"out_features": 8, **spec}]}
        folder = write_tiny_checkpoint(tmp_path / name, seed=seed, sentence=sentence)
        modules = open_checkpoint(folder).sentence
        assert modules is not None
        dense = modules.after[0]
        assert isinstance(dense, Dense)
        return dense

    plain = dense_of("a")
    twin = Path(shutil.copytree(plain.folder, tmp_path / "elsewhere"))
    moved = Dense(folder=twin, in_features=32, out_features=8, bias=True, activation="tanh")
    assert module_digest(moved) == module_digest(plain)
    others = [dense_of("b", seed=1), dense_of("c", bias=False), dense_of("d", activation="torch.nn.GELU")]
    assert len({module_digest(dense) for dense in [plain, *others]}) == 4
    (twin / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        module_digest(moved)


def test_files_digests(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "vocab.txt").write_text("x\n")
        (tmp_path / place / "tokenizer.json").write_text("{}")
    first, second = ([tmp_path / place / name for name in ("vocab.txt", "tokenizer.json")] for place in ("a", "b"))
    digest = files_digest(first)
    assert files_digest(reversed(second)) == digest
    assert files_digest(first[:1]) != digest
    second[0].write_text("y\n")
    assert files_digest(second) != digest
    second[0].unlink()
    with pytest.raises(CheckpointError, match=r"vocab\.txt: can't be read"):
        files_digest(second)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's peak memory")
def test_digesting_keeps_memory_flat(tmp_path: Path) -> None:
    """A trunk of 38 MB costs a process no more than a tiny one and one piece of a file."""
    big = {"vocab_size": 150_000, "hidden_size": 64, "num_attention_heads": 4}
    peaks = []
    for name, config in (("small", {}), ("big", big)):
        write_json(tmp_path / name / "config.json", tiny_config(**config))
        write_safetensors(tmp_path / name, tiny_tensors(tiny_config(**config)))
        code = (
            "import sys; from raybert.checkpoint.digest import trunk_digest;"
            "from raybert.checkpoint.folder import open_checkpoint; trunk_digest(open_checkpoint(sys.argv[1]));"
            "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
        )
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 12 * 1024, f"kB: {peaks}"
