"""NER: equal to transformers' token-classification pipeline in all five strategies.

Random tiny models meet every branch of grouping in seconds; the checkpoint that tests/trained.py trains, on text it
has not seen, is the real case, and slow.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import raybert
from raybert import Entity
from raybert.tasks.ner import Ner
from tests.oracle import one_thread  # noqa: F401  a fixture
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint
from tests.trained import TAGS, Span, agreement, guard, sentences, weak_spans

Answers = list[list[dict[str, Any]]]

LABELS = {
    "bio": TAGS,
    "bare": tuple(f"LABEL_{number}" for number in range(4)),
    "odd": ("O", "B-A", "I-A", "A", "B-A-B", "I-A-B", "X-A", "B-", "I-MOD"),
}

EDGES = [
    "",
    " ",
    "word",
    " \tA text  with\nwhite space around. ",
    "os.path.join(*parts), asyncio.Queue's `KeyError`: DeprecationWarning!",
    "naïve CAFÉS in İzmir? straße",
    "東京の日本語 and 中文",
    "an \U0001f600 in a wo\U0001f600rd \U0001f600\U0001f600",
    f"{'x' * 101} is no word to it, {'x' * 100} is",
    "[MASK] and [SEP] in a text, [UNK] too",
    "zero\u200bwidth\u00a0and\u00ad soft\x07hyphen\ufffd",
]


class Oracle:
    """transformers' pipeline, each text alone; the model runs once a text, the strategies differ behind it."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = transformers.pipeline("token-classification", model=str(folder), device="cpu")
        self._forward = self.pipeline.model.forward
        self._known: dict[bytes, Any] = {}
        self.pipeline.model.forward = self._once

    def _once(self, **inputs: torch.Tensor) -> Any:
        key = inputs["input_ids"].numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._forward(**inputs)
        return self._known[key]

    def __call__(self, texts: Sequence[str], strategy: str, **options: Any) -> Answers:
        found: Answers = self.pipeline(list(texts), aggregation_strategy=strategy, **options)
        return found


def answers(folder: Path, texts: Sequence[str], strategy: str, **options: Any) -> list[list[Entity]]:
    with raybert.load(folder, "ner", dtype="float32", device="cpu", aggregation=strategy, **options) as ner:
        found: list[list[Entity]] = ner(list(texts))
    return found


def assert_equal(found: list[list[Entity]], expected: Answers, texts: Sequence[str], strategy: str) -> None:
    label = "entity" if strategy == "none" else "entity_group"
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        assert [(e.label, e.start, e.end) for e in ours] == [(e[label], e["start"], e["end"]) for e in theirs], text
        assert [e.text for e in ours] == [text[e.start : e.end] for e in ours]
        wanted = [float(e["score"]) for e in theirs]
        np.testing.assert_allclose([e.score for e in ours], wanted, rtol=0, atol=1e-5, err_msg=text)
        if strategy == "none":
            assert [(e.index, e.token) for e in ours] == [(e["index"], e["word"]) for e in theirs], text
        else:
            assert {(e.index, e.token) for e in ours} <= {(None, None)}


def as_spans(expected: Answers) -> list[list[Span]]:
    return [[Span(e["entity_group"], e["start"], e["end"]) for e in of_text] for of_text in expected]


def within(folder: Path, texts: Sequence[str]) -> list[str]:
    """Those that the model takes whole: the pipeline cuts longer ones, ours slides over them."""
    tokenizer = raybert.BertTokenizerFast.from_pretrained(folder)
    lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
    return [text for text, length in zip(texts, lengths, strict=True) if length <= tokenizer.model_max_length]


# Random tiny models.


@pytest.fixture(scope="module", name="folders")
def folders_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("taggers")
    cased = {"tokenizer": {"do_lower_case": False}, "tokenizer_json": True, "seed": 1}
    return {name: random_tagger(base / name, labels) for name, labels in LABELS.items()} | {
        "cased": random_tagger(base / "cased", TAGS, **cased)
    }


def random_tagger(folder: Path, labels: Sequence[str], **options: Any) -> Path:
    """A random model that is even-handed: over real text the logits of each label have mean 0 and deviation 1."""
    write_tiny_checkpoint(folder, heads=("classifier",), config={"id2label": dict(enumerate(labels))}, **options)
    model = raybert.BertForTokenClassification.from_pretrained(folder)
    inputs = raybert.BertTokenizerFast.from_pretrained(folder)(
        stdlib_docstrings(50), truncation=True, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits_TK = model(**inputs).logits[inputs["attention_mask"].bool()]
        deviation_K = logits_TK.std(0)
        model.classifier.weight /= deviation_K[:, None]
        model.classifier.bias -= logits_TK.mean(0)
        model.classifier.bias /= deviation_K
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", name="oracles")
def oracles_fixture(folders: dict[str, Path]) -> dict[str, Oracle]:
    return {name: Oracle(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("strategy", Ner.AGGREGATIONS)
@pytest.mark.parametrize("model", [*LABELS, "cased"])
def test_random_models_equal_the_pipeline(
    folders: dict[str, Path], oracles: dict[str, Oracle], model: str, strategy: str
) -> None:
    texts = within(folders[model], [*EDGES, *stdlib_docstrings(250)])
    assert len(texts) >= 150
    expected = oracles[model](texts, strategy)
    assert_equal(answers(folders[model], texts, strategy), expected, texts, strategy)
    kinds = {e.get("entity_group", e.get("entity")) for of_text in expected for e in of_text}
    assert len(kinds) >= 3, kinds


def test_random_models_meet_every_branch(folders: dict[str, Path], oracles: dict[str, Oracle]) -> None:
    texts = within(folders["bio"], stdlib_docstrings(250))
    tags = oracles["bio"](texts, "none", ignore_labels=[])
    assert {tag["entity"] for of_text in tags for tag in of_text} == set(TAGS)
    met = {
        (one["entity"][0], one["entity"][1:] == two["entity"][1:], two["entity"][0], two["word"].startswith("##"))
        for of_text in tags
        for one, two in pairwise(of_text)
    }
    # Begins and insides behind begins and insides, of one type and of another, in a word and at its start.
    assert met >= set(product("BI", (True, False), "BI", (True, False)))
    by_strategy = [as_spans(oracles["bio"](texts, strategy)) for strategy in Ner.AGGREGATIONS[1:]]
    assert all(one != two for place, one in enumerate(by_strategy) for two in by_strategy[:place])


@pytest.mark.parametrize("strategy", Ner.AGGREGATIONS)
@pytest.mark.parametrize("ignored", [[], ["O", "MOD"], ["O", "B-MOD"], ["CLS"]], ids=",".join)
def test_ignored_labels(
    folders: dict[str, Path], oracles: dict[str, Oracle], ignored: list[str], strategy: str
) -> None:
    texts = [*EDGES, *within(folders["bio"], stdlib_docstrings(60))]
    expected = oracles["bio"](texts, strategy, ignore_labels=ignored)
    assert_equal(answers(folders["bio"], texts, strategy, ignore_labels=ignored), expected, texts, strategy)
    kinds = {e.get("entity_group", e.get("entity")) for of_text in expected for e in of_text}
    every = set(TAGS) if strategy == "none" else {"O", "EXC", "MOD", "CLS", "CONST"}
    assert kinds == every - set(ignored)


def test_accents_of_their_own_leave_words_whole(folders: dict[str, Path], oracles: dict[str, Oracle]) -> None:
    """The pipeline takes a token for a piece of the word before it if its text has another length.

    Of ``re\\u0301sume\\u0301`` the token ``resume`` has, so ``first`` gives ``the resume`` one tag, across the
    space. Ours looks at the vocabulary's ``##``, and both spellings of a text get the same answer.
    """
    text = "a r\u00e9sum\u00e9 and the r\u00e9sum\u00e9s of it, na\u00efve d\u00e9tails, the r\u00e9sum\u00e9 again"
    apart = unicodedata.normalize("NFD", text)
    theirs = oracles["bio"]([apart], "first", ignore_labels=[])
    for strategy in Ner.AGGREGATIONS:
        composed = oracles["bio"]([text], strategy, ignore_labels=[])
        assert_equal(answers(folders["bio"], [text], strategy, ignore_labels=[]), composed, [text], strategy)
        (found,) = answers(folders["bio"], [apart], strategy, ignore_labels=[])
        begins = [len(unicodedata.normalize("NFC", apart[: entity.start])) for entity in found]
        assert begins == [entity["start"] for entity in composed[0]]
        expected = [entity.get("entity_group", entity.get("entity")) for entity in composed[0]]
        assert [entity.label for entity in found] == expected
        if strategy == "first":
            assert len(theirs[0]) < len(found)


# The trained checkpoint.


@pytest.fixture(scope="module", name="trained_oracle")
def trained_oracle_fixture(trained_ner: Path) -> Oracle:
    return Oracle(trained_ner)


@pytest.fixture(scope="module", name="trained_answers")
def trained_answers_fixture(trained_ner: Path) -> dict[str, list[list[Entity]]]:
    """By strategy; the five heads share each forward."""
    heads = {name: (trained_ner, "ner", {"aggregation": name}) for name in Ner.AGGREGATIONS}
    with raybert.load_heads(heads, dtype="float32", device="cpu") as ner:
        found: dict[str, list[list[Entity]]] = ner(sentences())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", Ner.AGGREGATIONS)
def test_a_trained_model_equals_the_pipeline(
    trained_oracle: Oracle, trained_answers: dict[str, list[list[Entity]]], strategy: str
) -> None:
    texts = sentences()
    assert len(texts) >= 500
    expected = trained_oracle(texts, strategy)
    if strategy == "none":
        assert sum(map(len, expected)) >= 2000
    else:
        told = guard(as_spans(expected), texts)
        share = agreement(as_spans(expected))
        print(f"{strategy}: {len(texts)} sentences, {told}, F1 on weak labels {share:.3f}")  # noqa: T201  pytest -s
        assert share >= 0.4
    assert_equal(trained_answers[strategy], expected, texts, strategy)


def test_the_guard_refuses_a_model_that_finds_nothing() -> None:
    texts = sentences()
    weak = weak_spans()
    guard(weak, texts)
    for found in ([[]] * len(texts), weak[:1] + [[]] * (len(texts) - 1)):
        with pytest.raises(AssertionError, match="too few entities"):
            guard(found, texts)
    without = [[span for span in spans if span.label != "EXC"] for spans in weak]
    with pytest.raises(AssertionError, match=r"too few entities: \{'EXC': 0\}"):
        guard(without, texts)
