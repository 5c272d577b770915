"""What the values of a BERT configuration may be: the tables behind `BertConfig`'s checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

ACTIVATIONS: frozenset[str] = frozenset(
    {
        "elu",
        "gelu",
        "gelu_10",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "hardswish",
        "leaky_relu",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
        "tanh",
    }
)
"""Names that ``hidden_act`` may have; the layer above owes an implementation of each."""

POSITION_EMBEDDINGS = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Present and not empty, these keys change the weights or the arithmetic in ways raybert doesn't implement.
REFUSED_KEYS = ("pruned_heads", "quantization_config", "per_layer_config")
# A file without model_type is taken for BERT when it has the sizes that only a BERT-shaped model has.
BERT_SIGNS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class Rule(NamedTuple):
    """What a value must satisfy, as a test and in words."""

    holds: Callable[[Any], bool]
    meaning: str


def is_int(value: Any) -> bool:
    """Whether `value` is a whole number; JSON's true is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return is_int(value) or (isinstance(value, float) and math.isfinite(value))


_SIZE = Rule(lambda v: is_int(v) and v >= 1, "a whole number of at least 1")
_COUNT = Rule(lambda v: is_int(v) and v >= 0, "a whole number of at least 0")
_RATE = Rule(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
_RATE_OR_NONE = Rule(lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "null or a number from 0 to 1")
_AMOUNT = Rule(lambda v: _is_number(v) and v >= 0, "a number of at least 0")
_FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
_FLAG_OR_NONE = Rule(lambda v: v is None or isinstance(v, bool), "true, false or null")
_ID_OR_NONE = Rule(lambda v: v is None or is_int(v), "null or a token id")
_IDS_OR_NONE = Rule(
    lambda v: v is None or is_int(v) or (isinstance(v, list) and all(map(is_int, v))),
    "null, a token id or a list of token ids",
)
_NAMES_OR_NONE = Rule(
    lambda v: v is None or (isinstance(v, list) and all(isinstance(name, str) for name in v)),
    "null or a list of names",
)
_TEXT_OR_NONE = Rule(lambda v: v is None or isinstance(v, str), "null or a string")


def _one_of(names: tuple[str, ...] | frozenset[str], *, or_none: bool = False) -> Rule:
    meaning = ("null or " if or_none else "") + "one of " + ", ".join(sorted(names))
    return Rule(lambda v: (or_none and v is None) or (isinstance(v, str) and v in names), meaning)


RULES: dict[str, Rule] = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "num_hidden_layers": _SIZE,
    "num_attention_heads": _SIZE,
    "intermediate_size": _SIZE,
    "hidden_act": _one_of(ACTIVATIONS),
    "hidden_dropout_prob": _RATE,
    "attention_probs_dropout_prob": _RATE,
    "max_position_embeddings": _SIZE,
    "type_vocab_size": _SIZE,
    "initializer_range": _AMOUNT,
    "layer_norm_eps": _AMOUNT,
    "pad_token_id": _ID_OR_NONE,
    "position_embedding_type": _one_of(POSITION_EMBEDDINGS),
    "use_cache": _FLAG,
    "classifier_dropout": _RATE_OR_NONE,
    "is_decoder": _FLAG,
    "add_cross_attention": _FLAG,
    "is_encoder_decoder": _FLAG,
    "tie_word_embeddings": _FLAG,
    "bos_token_id": _ID_OR_NONE,
    "eos_token_id": _IDS_OR_NONE,
    "problem_type": _one_of(PROBLEM_TYPES, or_none=True),
    "chunk_size_feed_forward": _COUNT,
    "output_attentions": _FLAG_OR_NONE,
    "output_hidden_states": _FLAG_OR_NONE,
    "return_dict": _FLAG_OR_NONE,
    "dtype": _TEXT_OR_NONE,
    "architectures": _NAMES_OR_NONE,
    "model_type": _one_of(("bert",)),
}
"""What each field's value must be."""
