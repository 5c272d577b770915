"""raybert: distributed batch inference and embedding for BERT on Ray.

    embed = raybert.load("demo", task="embed")
    vectors = embed(["a text", "another"])

Names are loaded when they are first used: ``import raybert`` imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raybert.version import VERSION

if TYPE_CHECKING:
    from raybert import data
    from raybert.checkpoint.config import BertConfig
    from raybert.errors import RaybertError
    from raybert.model.architecture import BertModel
    from raybert.model.labelling import (
        BertForMultipleChoice,
        BertForNextSentencePrediction,
        BertForQuestionAnswering,
        BertForSequenceClassification,
        BertForTokenClassification,
    )
    from raybert.model.language import (
        BertForMaskedLM,
        BertForPreTraining,
        BertLMHeadModel,
    )
    from raybert.predict import Predictor, load
    from raybert.text.bert_tokenizer import BertTokenizer, BertTokenizerFast

__version__ = VERSION

_HOME = {
    "BertConfig": "raybert.checkpoint.config",
    "BertForMaskedLM": "raybert.model.language",
    "BertForMultipleChoice": "raybert.model.labelling",
    "BertForNextSentencePrediction": "raybert.model.labelling",
    "BertForPreTraining": "raybert.model.language",
    "BertForQuestionAnswering": "raybert.model.labelling",
    "BertForSequenceClassification": "raybert.model.labelling",
    "BertForTokenClassification": "raybert.model.labelling",
    "BertLMHeadModel": "raybert.model.language",
    "BertModel": "raybert.model.architecture",
    "BertTokenizer": "raybert.text.bert_tokenizer",
    "BertTokenizerFast": "raybert.text.bert_tokenizer",
    "Predictor": "raybert.predict",
    "RaybertError": "raybert.errors",
    "load": "raybert.predict",
}

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "BertTokenizer",
    "BertTokenizerFast",
    "Predictor",
    "RaybertError",
    "__version__",
    "data",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "data":
        return importlib.import_module("raybert.data")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'raybert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
