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
    from raybert.model.outputs import BertForPreTrainingOutput
    from raybert.predict import Heads, Predictor, Reranker, load, load_heads
    from raybert.tasks.answer import Answer
    from raybert.tasks.classify import Classification
    from raybert.tasks.embed_tokens import SparseVector
    from raybert.tasks.fill_mask import Fill
    from raybert.tasks.ner import Entity
    from raybert.tasks.rerank import Ranked
    from raybert.text.bert_tokenizer import BertTokenizer, BertTokenizerFast

__version__ = VERSION

_HOME = {
    "Answer": "raybert.tasks.answer",
    "BertConfig": "raybert.checkpoint.config",
    "BertForMaskedLM": "raybert.model.language",
    "BertForMultipleChoice": "raybert.model.labelling",
    "BertForNextSentencePrediction": "raybert.model.labelling",
    "BertForPreTraining": "raybert.model.language",
    "BertForPreTrainingOutput": "raybert.model.outputs",
    "BertForQuestionAnswering": "raybert.model.labelling",
    "BertForSequenceClassification": "raybert.model.labelling",
    "BertForTokenClassification": "raybert.model.labelling",
    "BertLMHeadModel": "raybert.model.language",
    "BertModel": "raybert.model.architecture",
    "BertTokenizer": "raybert.text.bert_tokenizer",
    "BertTokenizerFast": "raybert.text.bert_tokenizer",
    "Classification": "raybert.tasks.classify",
    "Entity": "raybert.tasks.ner",
    "Fill": "raybert.tasks.fill_mask",
    "Heads": "raybert.predict",
    "Predictor": "raybert.predict",
    "Ranked": "raybert.tasks.rerank",
    "RaybertError": "raybert.errors",
    "Reranker": "raybert.predict",
    "SparseVector": "raybert.tasks.embed_tokens",
    "load": "raybert.predict",
    "load_heads": "raybert.predict",
}

__all__ = [
    "Answer",
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForPreTrainingOutput",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "BertTokenizer",
    "BertTokenizerFast",
    "Classification",
    "Entity",
    "Fill",
    "Heads",
    "Predictor",
    "Ranked",
    "RaybertError",
    "Reranker",
    "SparseVector",
    "__version__",
    "data",
    "load",
    "load_heads",
]


def __getattr__(name: str) -> Any:
    if name == "data":
        return importlib.import_module("raybert.data")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'raybert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
