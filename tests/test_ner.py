"""NER: schemes of tags, long documents, options; single answers equal to a reference that this file spells out.

What the five strategies do is compared with transformers' pipeline in test_ner_pipeline.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import raybert
from raybert import Entity
from raybert.errors import SettingsError
from raybert.tasks.ner import Ner
from raybert.tasks.tags import Tags
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

TYPES = {"num_labels": 4, "id2label": {0: "O", 1: "A", 2: "B-C", 3: "I-C"}}


def spans(labels: Sequence[str], tags: str, ignored: Sequence[str] = ("O",)) -> list[tuple[str, int, int]]:
    """(type, first, end) of a row of tags, each one unit wide."""
    numbers = np.array([labels.index(tag) for tag in tags.split()], np.int64)
    found, places = Tags(labels), np.arange(len(numbers))
    groups = found.groups(
        units=found.kept(numbers, ignored),
        labels=numbers,
        scores=np.full(len(numbers), 0.5, np.float32),
        rows=np.zeros(len(numbers), np.int32),
        starts=places,
        ends=places + 1,
    )
    assert all(row == 0 and score == 0.5 for row, _, score, _, _ in groups)
    return [(label, start, end) for _, label, _, start, end in groups]


IOB = ("O", "B-P", "I-P", "B-L", "I-L")
BIOES = (*IOB, "E-P", "S-P", "E-L", "S-L")
BILOU = (*IOB, "L-P", "U-P", "L-L", "U-L")


@pytest.mark.parametrize(
    ("labels", "tags", "expected"),
    [
        # IOB1: B only where a span of the same type ends right before.
        (IOB, "I-P I-P O I-P B-P I-P", [("P", 0, 2), ("P", 3, 4), ("P", 4, 6)]),
        (IOB, "I-P I-L I-L B-L", [("P", 0, 1), ("L", 1, 3), ("L", 3, 4)]),
        # IOB2: every span begins with B.
        (IOB, "B-P I-P B-P O B-L I-L I-L", [("P", 0, 2), ("P", 2, 3), ("L", 4, 7)]),
        (IOB, "B-P I-L", [("P", 0, 1), ("L", 1, 2)]),
        # BIOES
        (BIOES, "S-P B-P I-P E-P S-P O B-L E-L", [("P", 0, 1), ("P", 1, 4), ("P", 4, 5), ("L", 6, 8)]),
        (BIOES, "S-P S-P I-P E-P", [("P", 0, 1), ("P", 1, 2), ("P", 2, 4)]),
        (BIOES, "B-P E-P I-P E-P E-L", [("P", 0, 2), ("P", 2, 4), ("L", 4, 5)]),
        # BILOU
        (BILOU, "U-P B-P I-P L-P U-P O B-L L-L L-L", [("P", 0, 1), ("P", 1, 4), ("P", 4, 5), ("L", 6, 8), ("L", 8, 9)]),
        # Bare types: neighbours of one type are one span.
        (("O", "P", "L"), "P P L O P", [("P", 0, 2), ("L", 2, 3), ("P", 4, 5)]),
        # E and S are types here, since nothing is marked B or I.
        (("O", "E-P", "S-P"), "E-P E-P S-P", [("P", 0, 2), ("P", 2, 3)]),
    ],
)
def test_schemes_of_tags(labels: tuple[str, ...], tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(labels, tags) == expected


def test_ignored_types_end_spans() -> None:
    assert spans(IOB, "I-P I-L I-P I-P", ignored=("O", "L")) == [("P", 0, 1), ("P", 2, 4)]
    assert spans(IOB, "O O I-P", ignored=()) == [("O", 0, 2), ("P", 2, 3)]


@pytest.fixture(name="tagger", scope="module")
def tagger_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tagger with a leaning to one type, so that entities are long and many seams lie inside one."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tagger"), heads=("classifier",), config=TYPES, seed=3)
    model = raybert.BertForTokenClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias += torch.tensor([-0.8, 2.0, -0.8, 0.0])
    model.save_pretrained(folder)
    return folder


class Reference:
    """Every window alone, padded, through transformers; then the whole document grouped by its pipeline."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
        self.pipeline = transformers.pipeline(
            "token-classification", model=model, tokenizer=self.tokenizer, device="cpu"
        )

    def scores(self, ids: list[int], max_length: int) -> np.ndarray:
        """Probabilities of one window's tokens, its special tokens left out."""
        framed = [self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id]
        padding = max_length - len(framed)
        with torch.no_grad():
            logits = self.pipeline.model(
                input_ids=torch.tensor([framed + [self.tokenizer.pad_token_id] * padding]),
                attention_mask=torch.tensor([[1] * len(framed) + [0] * padding]),
            ).logits
        scores: np.ndarray = logits[0, 1 : len(framed) - 1].softmax(-1).numpy()
        return scores

    def document(self, text: str, max_length: int, stride: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """Each token's scores, the window that they are of, and the encoding."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, room = encoding["input_ids"], max_length - 2
        scores = np.zeros((len(ids), 4), np.float32)
        edge, source = np.full(len(ids), -1), np.full(len(ids), -1)
        begin = number = 0
        while True:
            window = ids[begin : begin + room]
            for at, row in enumerate(self.scores(window, max_length)):
                far = min(at, len(window) - 1 - at)
                if far > edge[begin + at]:
                    scores[begin + at], edge[begin + at], source[begin + at] = row, far, number
            if begin + room >= len(ids):
                return scores, source, encoding
            begin, number = begin + room - stride, number + 1

    def entities(self, text: str, scores: np.ndarray, encoding: Any, strategy: str) -> list[dict[str, Any]]:
        """The document's entities, grouped once."""
        chosen = transformers.pipelines.token_classification.AggregationStrategy[strategy.upper()]
        special = np.zeros(len(scores), np.int64)
        offsets = encoding["offset_mapping"]
        before = self.pipeline.gather_pre_entities(text, encoding["input_ids"], scores, offsets, special, chosen)
        found = self.pipeline.aggregate(before, chosen)
        return [each for each in found if each.get("entity_group", each.get("entity")) != "O"]


def assert_same_entities(found: list[Entity], expected: list[dict[str, Any]]) -> None:
    assert [(each.start, each.end) for each in found] == [(each["start"], each["end"]) for each in expected]
    assert [each.label for each in found] == [each.get("entity_group", each.get("entity")) for each in expected]
    np.testing.assert_allclose(
        [each.score for each in found], [float(each["score"]) for each in expected], rtol=0, atol=1e-5
    )


def long_document(words: int) -> str:
    """Real text of so many words."""
    return " ".join(" ".join(stdlib_docstrings(2500)).split()[:words])


@pytest.mark.parametrize("stride", [None, 7])
def test_long_documents_equal_the_reference(tagger: Path, stride: int | None) -> None:
    reference, max_length = Reference(tagger), 128
    text = long_document(9000)
    shared = max_length // 4 if stride is None else stride
    scores, source, encoding = reference.document(text, max_length, shared)
    assert len(scores) >= 20_000
    for strategy in Ner.AGGREGATIONS:
        predictor = raybert.load(tagger, "ner", dtype="float32", device="cpu", aggregation=strategy, stride=stride)
        expected = reference.entities(text, scores, encoding, strategy)
        (found,) = predictor([text])
        assert_same_entities(found, expected)
        assert [each.text for each in found] == [text[each.start : each.end] for each in found]
        if strategy == "none":
            assert [each.index for each in found] == [each["index"] + 1 for each in expected]
        if strategy == "simple":
            seams = np.flatnonzero(np.diff(source)) + 1  # tokens that are another window's than the token before
            offsets = encoding["offset_mapping"]
            inside = sum(
                any(each.start < offsets[seam][0] < each.end for each in _near(found, offsets[seam][0]))
                for seam in seams.tolist()
            )
            assert inside >= 100, f"{inside} of {len(seams)} seams lie inside an entity"


def _near(found: list[Entity], place: int) -> list[Entity]:
    starts = [each.start for each in found]
    at = int(np.searchsorted(starts, place))
    return found[max(0, at - 2) : at + 1]


def test_a_document_of_one_window_is_not_touched_by_sliding(tagger: Path) -> None:
    texts = [text for text in stdlib_docstrings(300) if len(text) < 150][:60]
    slid = raybert.load(tagger, "ner", dtype="float32", device="cpu")
    cut = raybert.load(tagger, "ner", dtype="float32", device="cpu", windows="truncate")
    assert slid(texts) == cut(texts)
    assert sum(map(len, slid(texts))) > 100


def test_batch_is_single(tagger: Path) -> None:
    ner = raybert.load(tagger, "ner", dtype="float32", device="cpu", max_length=32)
    texts = ["", " ", "naïve café 東京 \U0001f600", *stdlib_docstrings(30)]
    together = ner(texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = ner([text])
        assert [(each.label, each.start, each.end) for each in alone] == [
            (each.label, each.start, each.end) for each in found
        ]
    assert together[0] == together[1] == []


def test_offsets_count_code_points_of_the_text_as_it_stands(tmp_path: Path) -> None:
    # Lower-casing and stripped accents change lengths inside; the places are those of the original.
    folder = write_tiny_checkpoint(tmp_path / "all", heads=("classifier",), config={"id2label": {0: "X", 1: "Y"}})
    text = "İstanbul\U0001f600 na\u0301ive CAFÉ — 東京"
    (found,) = raybert.load(folder, "ner", dtype="float32", device="cpu", aggregation="none")([text])
    assert [each.text for each in found] == [text[each.start : each.end] for each in found]
    assert found[-1].text == "京"
    assert "".join(each.text for each in found if each.token == each.text).count("東") == 1


def test_options_are_checked(tagger: Path) -> None:
    for options, message in (
        ({"aggregation": "mean"}, "ner: aggregation: 'mean' is none of none, simple, first, average, max"),
        ({"stride": 126}, "ner: stride 126: takes a whole number from 0 to 125"),
        ({"ignore_labels": 3}, "ner: ignore_labels 3: takes a list of labels"),
        ({"ignore_labels": "O,[C"}, r"ner: ignore_labels: '\[C' is none of O, A, B-C, I-C, C; did you mean 'C'?"),
        ({"windows": "truncate", "stride": 3}, "ner: stride 3: texts are cut here; pass windows='slide' too"),
        ({"pooling": "cls"}, "ner: unknown option 'pooling'"),
    ):
        with pytest.raises(SettingsError, match=message):
            raybert.load(tagger, "ner", **options)


def test_a_checkpoint_without_a_classifier_is_told(tiny: Path) -> None:
    with pytest.raises(raybert.RaybertError, match="has no classifier among its weights; heads it has: pooler"):
        raybert.load(str(tiny), "ner")


def test_labels_that_do_not_fit_the_head(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m", heads=("classifier",), config={"num_labels": 3})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_labels": 3', '"num_labels": 5'))
    with pytest.raises(raybert.RaybertError, match=r"classifier.* has shape \(3.*\); expected \(5.*\); config.json"):
        raybert.load(folder, "ner")
