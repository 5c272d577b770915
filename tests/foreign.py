"""Weights of TensorFlow 1, Keras and Flax as their own libraries write them, from canonical tensors.

    write_weights("h5", (folder, spelt("h5", tiny_tensors(tiny_config()))))
    write_config("h5", folder)

How each library spells a name is written down here a second time, the other way round than in
`raybert.checkpoint.foreignnames`. TensorFlow and Flax write in processes of their own, of which they take 790 and
180 MB.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.commands import python
from tests.tiny import tiny_config, write_json

KERNEL = re.compile(r"(query|key|value|dense|classifier|qa_outputs|seq_relationship|decoder)\.weight$")
MAIN_FILE = {"tf1": "bert_model.ckpt.index", "h5": "tf_model.h5", "flax": "flax_model.msgpack"}

WRITE = {
    "tf1": """
import sys, numpy, tensorflow as tf
for source, place in zip(sys.argv[1::2], sys.argv[2::2]):
    with numpy.load(source) as found:
        values = {name: found[name] for name in found.files}
    slices = [""] * len(values)
    prefix = place.removesuffix(".index")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(values), shape_and_slices=slices, tensors=list(values.values()))
""",
    "flax": """
import sys, numpy, flax.serialization
for source, place in zip(sys.argv[1::2], sys.argv[2::2]):
    tree = {}
    with numpy.load(source) as found:
        for name in found.files:
            *parents, leaf = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = found[name]
    with open(place, "wb") as file:
        file.write(flax.serialization.msgpack_serialize(tree))
""",
}


def leaf_of(name: str, *, norm: str, kernel: str = "kernel", embedding: str) -> str:
    if name.endswith("LayerNorm.weight"):
        return norm
    return kernel if KERNEL.search(name) else embedding


def tf1_spelling(name: str) -> str:
    for place, theirs in {
        "classifier": "",
        "qa_outputs": "cls/squad/",
        "cls.seq_relationship": "cls/seq_relationship/",
    }.items():
        if name.startswith(f"{place}."):
            return f"{theirs}output_{'weights' if name.endswith('weight') else 'bias'}"
    if name == "cls.predictions.bias":
        return "cls/predictions/output_bias"
    name = re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", name).replace("LayerNorm.bias", "LayerNorm.beta")
    if name.endswith(".weight"):
        name = name.removesuffix("weight") + leaf_of(name, norm="gamma", embedding="")
    return name.rstrip(".").replace(".", "/")


def h5_spelling(name: str, model: str = "tf_bert_for_pre_training_2") -> str:
    if name.endswith(".weight"):
        table = "weight" if "word" in name else "embeddings"
        name = name.removesuffix("weight") + leaf_of(name, norm="gamma", embedding=table)
    name = re.sub(r"\.layer\.(\d+)\.", r".layer_._\1.", name).replace("LayerNorm.bias", "LayerNorm.beta")
    name = name.replace("cls.seq", "nsp___cls.seq").replace("cls.predictions", "mlm___cls.predictions")
    path = name.replace("_._", "@").replace(".", "/").replace("@", "_._")
    return f"{path.partition('/')[0]}/{model}/{path}:0"


def flax_spelling(name: str) -> str:
    if name.endswith(".weight"):
        name = name.removesuffix("weight") + leaf_of(name, norm="scale", embedding="embedding")
    return name.replace(".", "/")


SPELLINGS: dict[str, Callable[[str], str]] = {"tf1": tf1_spelling, "h5": h5_spelling, "flax": flax_spelling}


def spelt(kind: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical tensors as a library of `kind` names and lays them."""
    found = {}
    for name, tensor in tensors.items():
        theirs = SPELLINGS[kind](name)
        found[theirs] = tensor.T if theirs.removesuffix(":0").endswith("kernel") else tensor
    return found


def write_weights(kind: str, *files: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Write tensors, by the file's names, with the library of `kind`; each file beside its folder's others."""
    if kind == "h5":
        for folder, tensors in files:
            folder.mkdir(parents=True, exist_ok=True)
            with h5py.File(folder / MAIN_FILE[kind], "w") as file:
                file.attrs["layer_names"] = sorted({name.partition("/")[0].encode() for name in tensors})
                for name, tensor in tensors.items():
                    file.create_dataset(name, data=tensor)
                file.create_group("top_level_model_weights")
        return
    arguments = []
    for folder, tensors in files:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "tensors.npz", **tensors)
        arguments += [str(folder / "tensors.npz"), str(folder / MAIN_FILE[kind])]
    done = python(WRITE[kind], *arguments)
    assert done.returncode == 0, done.stderr
    for folder, _ in files:
        (folder / "tensors.npz").unlink()


def write_config(kind: str, folder: Path, **changes: Any) -> None:
    """As Google, or as transformers."""
    config = tiny_config(**changes)
    if kind == "tf1":
        del config["model_type"], config["architectures"]
    write_json(folder / ("bert_config.json" if kind == "tf1" else "config.json"), config)
