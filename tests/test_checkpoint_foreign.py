"""Weights of TensorFlow 1, Keras and Flax, written by their own libraries: equal to the same in safetensors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raybert
from raybert.checkpoint import foreign
from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.digest import head_digest, trunk_digest
from raybert.checkpoint.folder import open_checkpoint
from raybert.checkpoint.foreignnames import Meaning, flax_meaning, h5_meaning, tf1_meaning
from raybert.checkpoint.hub import wanted_files
from raybert.checkpoint.names import HEADS, bare, pooler_names, trunk_names
from raybert.checkpoint.weights import choose_weights, find_weights, index, read_bytes
from raybert.errors import CheckpointError, OutputError
from tests.commands import ROOT, python
from tests.foreign import MAIN_FILE, SPELLINGS, flax_spelling, h5_spelling, spelt, write_config, write_weights
from tests.test_checkpoint_hub import Hub, ask, hub  # noqa: F401  a fixture
from tests.tiny import tiny_config, tiny_tensors, write_json, write_tiny_checkpoint

FAMILIES = ("masked-lm", "next-sentence", "classifier", "qa")
LABELS = 3
TEXTS = ["The first text, of some length.", "Another."]
MEANINGS: dict[str, Callable[[str], Meaning | None]] = {"tf1": tf1_meaning, "h5": h5_meaning, "flax": flax_meaning}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's converted copies lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raybert" / "converted"


def tensors_of(**changes: Any) -> dict[str, np.ndarray]:
    return tiny_tensors(tiny_config(num_labels=LABELS), heads=FAMILIES, **changes)


def half_tensors() -> dict[str, np.ndarray]:
    return {name: tensor.astype(np.float16) for name, tensor in tensors_of(seed=1).items()}


# transformers 4.57 writes the embeddings a second time below the masked-lm head, which shares them.
TWICE = "mlm___cls/"
SLOTS = {
    "global_step": np.int64(900),
    "beta1_power": np.float32(0.5),
    "bert/pooler/dense/kernel/adam_m": np.ones((32, 32), np.float32),
    "bert/pooler/dense/kernel/adam_v": np.ones((32, 32), np.float32),
    "bert/pooler/dense/bias/AdamWeightDecayOptimizer_1": np.ones(32, np.float32),
    "output_bias/Adam_1": np.ones(LABELS, np.float32),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "whole" (safetensors), "kind-whole", and "kind-half": float16, with one name that no BERT has."""
    root = tmp_path_factory.mktemp("foreign")
    whole, half = tensors_of(), half_tensors()
    twice = {TWICE + h5_spelling(name).partition("/")[2]: whole[name] for name in whole if ".embeddings." in name}
    reference = write_tiny_checkpoint(root / "whole", heads=FAMILIES, config={"num_labels": LABELS})
    for kind in MAIN_FILE:
        more = {"tf1": SLOTS, "h5": twice, "flax": {}}[kind]
        unknown = {SPELLINGS[kind]("bert.encoder.extra.dense.weight"): np.ones((2, 3), np.float16)}
        write_weights(
            kind,
            (root / f"{kind}-whole", spelt(kind, whole) | more),
            (root / f"{kind}-half", spelt(kind, half) | unknown),
        )
        for name in ("whole", "half"):
            write_config(kind, root / f"{kind}-{name}", num_labels=LABELS)
            shutil.copy(reference / "vocab.txt", root / f"{kind}-{name}")
    return root


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MAIN_FILE))
def test_every_name_of_a_bert_is_understood(kind: str) -> None:
    config = BertConfig(num_hidden_layers=13, is_decoder=True, add_cross_attention=True)
    names = [*trunk_names(config), *pooler_names(config), *(name for family in FAMILIES for name in HEADS[family])]
    for name in names:
        theirs = SPELLINGS[kind](name)
        turned = theirs.removesuffix(":0").endswith("kernel")
        assert MEANINGS[kind](theirs) == Meaning(name, turned), theirs
        if kind == "flax":
            assert flax_meaning(f"params/{flax_spelling(bare(name))}") == Meaning(name, turned)
    assert len({SPELLINGS[kind](name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tf1", "bert/encoder/layer_0/extra/kernel"),
        ("tf1", "bert/embeddings/extra_embeddings"),
        ("tf1", "output_weights_2"),
        ("tf1", "layer_0/attention/self/query/kernel"),
        ("h5", "bert/tf_bert_model/bert/encoder/extra/kernel:0"),
        ("h5", "a:0"),
        ("h5", "a/b"),
        ("h5", ""),
        ("flax", "bert/encoder/layer/x/output/dense/kernel"),
        ("flax", "opt_state/0/mu/kernel"),
        ("flax", "params"),
    ],
)
def test_a_name_that_no_bert_has_stays_as_it_is(kind: str, name: str) -> None:
    assert MEANINGS[kind](name) == Meaning(name)


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MAIN_FILE))
def test_the_same_model_in_another_framework_s_file(
    kind: str, written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = written / f"{kind}-whole", open_checkpoint(written / "whole")
    before = sorted(folder.iterdir())
    checkpoint = open_checkpoint(folder)
    (weights,) = checkpoint.weight_files
    assert weights.parent.parent == cache
    assert weights.name == MAIN_FILE[kind].removesuffix(".index") + ".safetensors"
    assert sorted(folder.iterdir()) == before, "nothing is written beside the source"
    assert set(index([weights])) == set(tensors_of()), "every tensor, no optimizer slot"
    assert checkpoint.config.num_labels == raybert.BertConfig.from_pretrained(folder).num_labels == LABELS

    monkeypatch.setattr(subprocess, "run", None)  # what is converted once is not converted again
    assert trunk_digest(checkpoint) == trunk_digest(reference)
    for family in FAMILIES:
        names = [name for name in HEADS[family] if not name.startswith("cls.predictions.decoder")]
        assert head_digest(checkpoint, names) == head_digest(reference, names)
    ids = torch.arange(7, 23).view(2, 8)
    for model in (
        raybert.BertModel,
        raybert.BertForPreTraining,
        raybert.BertForSequenceClassification,
        raybert.BertForTokenClassification,
        raybert.BertForQuestionAnswering,
    ):
        ours, theirs = (model.from_pretrained(place) for place in (folder, written / "whole"))
        with torch.inference_mode():
            pairs = zip(ours(ids).to_tuple(), theirs(ids).to_tuple(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    with raybert.load(str(folder), "classify") as ours, raybert.load(str(written / "whole"), "classify") as theirs:
        assert ours(TEXTS) == theirs(TEXTS)


@pytest.mark.parametrize("kind", [pytest.param("tf1", marks=pytest.mark.slow), "h5", "flax"])
def test_dtypes_stay_and_a_strange_name_is_told_as_the_file_spells_it(kind: str, written: Path) -> None:
    folder = written / f"{kind}-half"
    checkpoint = open_checkpoint(folder)
    entries = index(checkpoint.weight_files)
    assert {entry.dtype for entry in entries.values()} == {"float16"}
    strange = SPELLINGS[kind]("bert.encoder.extra.dense.weight")
    assert set(entries) == {*half_tensors(), strange}
    for name, tensor in half_tensors().items():
        assert bytes(read_bytes(entries[name])) == tensor.tobytes(), name
    with pytest.raises(CheckpointError, match=f"weight '{strange}' is in no place of this model") as caught:
        raybert.BertModel.from_pretrained(folder)
    assert str(caught.value).startswith(str(checkpoint.weight_files[0]))


@pytest.mark.parametrize("kind", ["h5", "flax"])
def test_a_lone_model_and_shapes_that_don_t_fit(kind: str, tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    if kind == "flax":
        lone = {f"params/{name.removeprefix('bert/')}": value for name, value in spelt(kind, tensors).items()}
    else:
        lone = {
            h5_spelling(name, "tf_bert_model"): value
            for name, value in zip(tensors, spelt(kind, tensors).values(), strict=True)
        }
    write_weights(kind, (tmp_path, lone))
    write_config(kind, tmp_path)
    reference = write_tiny_checkpoint(tmp_path / "reference")
    assert trunk_digest(open_checkpoint(tmp_path)) == trunk_digest(open_checkpoint(reference))
    assert raybert.BertModel.from_pretrained(tmp_path).pooler is not None
    with pytest.raises(CheckpointError, match="has no classifier among its weights; heads it has: pooler"):
        raybert.BertForSequenceClassification.from_pretrained(tmp_path)
    write_config(kind, tmp_path, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"weights 'bert\.encoder\.layer\.1\..* more are in no place"):
        raybert.BertModel.from_pretrained(tmp_path)
    write_config(kind, tmp_path, intermediate_size=48)
    with pytest.raises(CheckpointError, match=r"has shape \(64.*\); expected \(48"):
        raybert.BertModel.from_pretrained(tmp_path)


def test_what_keras_stores_twice_is_taken_once_if_it_is_equal(tmp_path: Path) -> None:
    word = "bert.embeddings.word_embeddings.weight"
    tensors = tiny_tensors(tiny_config(), heads=["masked-lm"])
    twice = TWICE + h5_spelling(word).partition("/")[2]
    write_weights("h5", (tmp_path, spelt("h5", tensors) | {twice: tensors[word]}))
    write_config("h5", tmp_path)
    assert set(index(find_weights(tmp_path))) == set(tensors)
    for other in (tensors[word] + 1, tensors[word].astype(np.float16), tensors[word][1:]):
        write_weights("h5", (tmp_path, spelt("h5", tensors) | {twice: other}))
        with pytest.raises(CheckpointError, match=f"{h5_spelling(word)}' and '{twice}' both mean '{word}' and differ"):
            find_weights(tmp_path)


# -- the cache -------------------------------------------------------------------------------------------------------


def h5_folder(folder: Path, seed: int = 0) -> Path:
    write_weights("h5", (folder, spelt("h5", tiny_tensors(tiny_config(), seed=seed))))
    write_config("h5", folder)
    return folder


def test_contents_decide_whether_a_copy_is_the_right_one(tmp_path: Path, cache: Path) -> None:
    one, two = h5_folder(tmp_path / "one"), h5_folder(tmp_path / "two", seed=1)
    moved = Path(shutil.copytree(one, tmp_path / "moved"))
    assert find_weights(one) == find_weights(moved)
    # The same name, size and time, other numbers.
    state = (one / "tf_model.h5").stat()
    shutil.copy(two / "tf_model.h5", one / "tf_model.h5")
    os.utime(one / "tf_model.h5", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (one / "tf_model.h5").stat().st_size == state.st_size
    assert find_weights(one) == find_weights(two) != find_weights(moved)
    assert len(list(cache.iterdir())) == 2


OPEN = """
import sys
from raybert.checkpoint.digest import trunk_digest
from raybert.checkpoint.folder import open_checkpoint
print(trunk_digest(open_checkpoint(sys.argv[1])))
print(sorted({"h5py", "flax", "jax", "tensorflow", "torch"} & set(sys.modules)))
"""


def test_processes_that_convert_at_once(tmp_path: Path, cache: Path) -> None:
    folder = h5_folder(tmp_path / "m")
    command = [sys.executable, "-c", OPEN, str(folder)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate()[0] for process in running}
    reference = trunk_digest(open_checkpoint(write_tiny_checkpoint(tmp_path / "reference")))
    assert answers == {f"{reference}\n[]\n"}, "the libraries stay out of the process that computes"
    assert [process.returncode for process in running] == [0, 0, 0]
    (copy,) = cache.iterdir()
    assert [path.name for path in copy.iterdir()] == ["tf_model.h5.safetensors"]


def test_a_cache_that_can_t_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = h5_folder(tmp_path / "m")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError) as caught:
        open_checkpoint(folder)
    place = re.escape(str(tmp_path / "file" / "raybert" / "converted"))
    remedy = "set XDG_CACHE_HOME to a folder that you may write, with 1 MB free"
    assert re.fullmatch(
        rf"{place}/[0-9a-f]{{64}}: can't hold the converted tf_model\.h5: Not a directory; {remedy}", str(caught.value)
    )


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = h5_folder(tmp_path / "m")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home" / ".cache" / "raybert" / "converted"
    for stated in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
        assert find_weights(folder)[0].parent.parent == home
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(OutputError, match="no home folder for converted weights; set XDG_CACHE_HOME"):
        find_weights(folder)


# -- what can go wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(MAIN_FILE))
def test_a_missing_extra_is_named_unless_the_copy_is_there(
    kind: str, written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written / f"{kind}-whole"
    library, extra = foreign.FOREIGN_WEIGHTS[MAIN_FILE[kind]]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    place = folder / MAIN_FILE[kind]
    assert str(caught.value) == f"{place}: reading it needs {library}; pip install 'raybert[{extra}]'"
    assert not cache.exists()


@pytest.mark.slow
def test_damaged_files(written: Path, tmp_path: Path, cache: Path) -> None:
    for kind, name in (
        ("tf1", "bert_model.ckpt.data-00000-of-00001"),
        ("h5", "tf_model.h5"),
        ("flax", MAIN_FILE["flax"]),
    ):
        folder = Path(shutil.copytree(written / f"{kind}-whole", tmp_path / kind))
        content = bytearray((folder / name).read_bytes())
        if kind == "tf1":
            content[5000] ^= 1  # a number: only this format has checksums
        (folder / name).unlink()
        (folder / name).write_bytes(content if kind == "tf1" else content[:-100])
        with pytest.raises(
            CheckpointError, match=r"damaged or of another format: .*; download or copy it again"
        ) as caught:
            open_checkpoint(folder)
        assert str(caught.value).startswith(f"{folder / MAIN_FILE[kind]}: ")
        assert "\n" not in str(caught.value)
    (tmp_path / "tf1" / "bert_model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointError, match=r"\.ckpt\.index: no bert_model\.ckpt\.data-… beside it"):
        open_checkpoint(tmp_path / "tf1")
    assert not cache.exists(), "nothing is half-written"


def test_numbers_that_raybert_doesn_t_know(tmp_path: Path) -> None:
    write_config("h5", tmp_path)
    for value, dtype in ((np.bytes_("text"), "bytes32"), (np.ones(2, np.complex64), "complex64")):
        write_weights("h5", (tmp_path, {"bert/m/bert/x:0": value}))
        with pytest.raises(CheckpointError, match=f"weight 'bert/m/bert/x:0' has dtype {dtype}; known are float64"):
            find_weights(tmp_path)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = h5_folder(tmp_path / "m")
    content = (folder / "tf_model.h5").read_bytes()
    (folder / "tf_model.h5").write_bytes(content.replace(b"word_embeddings", b"\xfford_embeddings"))
    with pytest.raises(CheckpointError, match=r"tf_model\.h5: damaged or of another format: the name .* is no text; "):
        find_weights(folder)


def test_a_library_that_fails_altogether(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = h5_folder(tmp_path / "m")
    (tmp_path / "path").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "path")
    for code, told in (
        ("raise ImportError('another numpy')", "status 1: ImportError: another numpy"),
        ("import os; os.kill(os.getpid(), 9)", "status -9: it said nothing"),
    ):
        (tmp_path / "path" / "h5py.py").write_text(code)
        with pytest.raises(CheckpointError, match=rf"reading it with h5py ended with {told}; .*install raybert\[h5\]"):
            find_weights(folder)


# -- which files -----------------------------------------------------------------------------------------------------


def test_the_order_of_preference() -> None:
    names = ["model.ckpt.index", "bert_model.ckpt.index", "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin"]
    while names:
        assert choose_weights(names) == names.pop()
    assert choose_weights(["tf_model.h5.index.json", "model.ckpt.data-00000-of-00001"]) is None


def test_a_file_beside_ours_is_never_read(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "m"))
    (folder / "tf_model.h5").write_bytes(b"no such file")
    write_json(folder / "bert_config.json", {"hidden_size": -1})
    assert open_checkpoint(folder).weight_files == (folder / "model.safetensors",)


def test_the_hub_gives_what_it_has(hub: Hub, tmp_path: Path) -> None:  # noqa: F811
    folder = h5_folder(tmp_path / "m")
    shutil.copy(write_tiny_checkpoint(tmp_path / "reference") / "vocab.txt", folder)
    for name in ("rust_model.ot", "flax_model.msgpack", "README.md"):
        (folder / name).write_bytes(b"not to be fetched")
    hub.add("me/keras", folder)
    (answer,) = ask(hub, tmp_path / "home", {"model": "me/keras"})
    assert answer["files"] == ["config.json", "tf_model.h5", "vocab.txt"] == sorted(hub.asked)
    (offline,) = ask(hub, tmp_path / "home", {"model": "me/keras"}, offline=True)
    assert offline == answer
    reference = open_checkpoint(tmp_path / "reference")
    assert trunk_digest(open_checkpoint(answer["folder"])) == trunk_digest(reference)


def test_of_google_s_release_the_hub_gives_all_parts(tmp_path: Path) -> None:
    parts = {f"bert_model.ckpt.{part}" for part in ("index", "data-00000-of-00002", "data-00001-of-00002")}
    names = {*parts, "bert_model.ckpt.meta", "bert_config.json", "vocab.txt", "graph/bert_model.ckpt.data-0"}
    wanted = wanted_files(tmp_path, names, weights=True) & names
    assert wanted == {*parts, "bert_config.json", "vocab.txt"}
    assert not wanted_files(tmp_path, names, weights=False) & parts
    assert "model.safetensors" in wanted_files(tmp_path, {*names, "model.safetensors"}, weights=True)


def test_info_describes_such_a_folder(written: Path) -> None:
    done = python("from raybert.cli import main; main()", "info", str(written / "flax-whole"), "--json")
    assert (done.returncode, done.stderr) == (0, ""), done
    facts = json.loads(done.stdout)
    assert facts["weights"] == ["flax_model.msgpack.safetensors"]
    assert facts["heads"] == ["classifier", "masked-lm", "next-sentence", "qa", "pooler"]
