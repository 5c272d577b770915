"""What TensorFlow 1, Keras and Flax call the tensors of a BERT, and what raybert calls them: strings only.

Sources: Google's modeling.py, run_classifier.py, run_squad.py and optimization.py for TensorFlow 1; transformers
4.57's modeling_tf_pytorch_utils.py and modeling_flax_pytorch_utils.py for Keras and Flax. In all three a name is a
path with ``/``, its last part says which of a layer's tensors it is, and a dense layer's ``kernel`` is [in, out].
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.names import BUFFERS, HEADS, canonical, pooler_names, trunk_names

_KERNEL = "kernel"
_LEAVES = {
    _KERNEL: "weight",
    "gamma": "weight",
    "scale": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "output_weights": "weight",
    "beta": "bias",
    "output_bias": "bias",
}
# Google's fine-tuning scripts put their one new layer at the top of the graph; run_squad.py below cls/squad.
_TF1_HEADS = {
    "output_weights": "classifier.weight",
    "output_bias": "classifier.bias",
    "cls/squad/output_weights": "qa_outputs.weight",
    "cls/squad/output_bias": "qa_outputs.bias",
}
_TF1_TRAINING = frozenset(
    {
        "AdamWeightDecayOptimizer",
        "AdamWeightDecayOptimizer_1",
        "adam_m",
        "adam_v",
        "global_step",
        # tf.train.AdamOptimizer, of which many fine-tuning scripts made use.
        "Adam",
        "Adam_1",
        "beta1_power",
        "beta2_power",
    }
)


class Meaning(NamedTuple):
    """What a file's tensor is: its canonical name, and whether the file holds it as [in, out]."""

    name: str
    turned: bool = False


def tf1_meaning(original: str) -> Meaning | None:
    """Of a name in a TensorFlow 1 checkpoint; None for an optimizer's slot or counter. An unknown name stays.

    ``bert/encoder/layer_0/output/dense/kernel`` means ``bert.encoder.layer.0.output.dense.weight``, turned.
    """
    parts = original.split("/")
    if _TF1_TRAINING & set(parts):
        return None
    if original in _TF1_HEADS:
        return Meaning(_TF1_HEADS[original])
    if parts[-1].endswith("_embeddings"):
        parts.append("weight")
    return _known([re.sub(r"^layer_(\d+)$", r"layer.\1", part) for part in parts], original)


def h5_meaning(original: str) -> Meaning:
    """Of a dataset in a Keras file; an unknown name stays.

    The first part is the Keras layer, the second the model, which means nothing;
    ``mlm___cls/tf_bert_for_pre_training/mlm___cls/predictions/bias:0`` means ``cls.predictions.bias``.
    """
    parts = original.removesuffix(":0").split("/")[2:]
    return _known([part.rpartition("___")[2].replace("_._", ".") for part in parts], original)


def flax_meaning(original: str) -> Meaning:
    """Of a leaf in a Flax file, keys joined by ``/``; an unknown name stays.

    ``params/encoder/layer/0/output/LayerNorm/scale`` means ``bert.encoder.layer.0.output.LayerNorm.weight``.
    """
    return _known(original.removeprefix("params/").split("/"), original)


def _known(parts: list[str], original: str) -> Meaning:
    """The canonical name that these parts make if a BERT has such a tensor, else the file's own name."""
    *place, leaf = parts or [""]
    name = canonical(".".join([*place, _LEAVES.get(leaf, leaf)]))
    # Any number of layers: whether the configuration has this one is found out where weights are loaded.
    if re.sub(r"\.layer\.\d+\.", ".layer.0.", name) in _names_of_one_layer():
        return Meaning(name, turned=leaf == _KERNEL)
    return Meaning(original)


@functools.cache
def _names_of_one_layer() -> frozenset[str]:
    config = BertConfig(
        num_hidden_layers=1, is_decoder=True, add_cross_attention=True, position_embedding_type="relative_key"
    )
    heads = (name for names in HEADS.values() for name in names)
    return frozenset({*trunk_names(config), *pooler_names(config), *heads, *BUFFERS})
