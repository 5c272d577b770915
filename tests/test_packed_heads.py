"""Law 2 with heads: what every task's `reduce` makes of packed hidden states = transformers, on random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from raybert.config import HeadSpec
from raybert.engine import Trunk, choose_settings
from raybert.tasks import Task, make_task
from raybert.tasks.arrays import Arrays
from raybert.text.encoding import Sequences
from tests.oracle import one_thread  # noqa: F401  a fixture
from tests.test_packed import packed_settings, padded, padding_mask, random_flat, random_lengths
from tests.tiny import VOCAB_SIZE, write_tiny_checkpoint

SEEDS = [seed if seed < 10 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(30)]
ALL = ("classifier", "masked-lm", "next-sentence", "qa")


class Case:
    """A random checkpoint with every head, and sequences for it."""

    def __init__(self, folder: Path, seed: int, labels: int) -> None:
        settings = packed_settings(seed, vocab_size=VOCAB_SIZE, num_labels=labels, pad_token_id=0)
        self.folder = write_tiny_checkpoint(folder, seed=seed, config=settings, heads=ALL)
        self.config = make_task(self.spec("embed", {})).checkpoint.config
        self.lengths = random_lengths(self.config, seed)
        self.ids, self.types = random_flat(self.config, self.lengths, seed)
        self.sequences = Sequences(ids=self.ids, lengths=self.lengths.astype(np.int32), type_ids=self.types)

    def spec(self, task: str, options: dict[str, Any]) -> HeadSpec:
        return HeadSpec(name="head", task=task, model=str(self.folder), options=options)

    def ours(self, task: str, **options: Any) -> tuple[Task, Arrays]:
        """What the engine keeps of the sequences for this task."""
        made = make_task(self.spec(task, options))
        trunk = Trunk({"head": made}, choose_settings(device="cpu", dtype="float32"))
        try:
            return made, trunk.run(self.sequences, {"head": None})["head"]
        finally:
            trunk.close()

    def theirs(self, kind: str) -> Any:
        """The output of one of transformers' classes for the padded batch."""
        # Its head for answers has as many numbers as the config has labels.
        labels = {"num_labels": 2} if kind == "BertForQuestionAnswering" else {}
        model = getattr(transformers, kind).from_pretrained(self.folder, attn_implementation="eager", **labels).eval()
        mask = torch.from_numpy(padding_mask(self.lengths)).long()
        arguments = {"input_ids": padded(self.ids, self.lengths), "attention_mask": mask}
        if self.types is not None:
            arguments["token_type_ids"] = padded(self.types, self.lengths)
        if kind == "BertForMultipleChoice":
            arguments = {name: value[None] for name, value in arguments.items()}
        with torch.no_grad():
            return model(**arguments)

    def flat(self, values: Tensor) -> np.ndarray:
        """Of numbers a position, those of real tokens."""
        found: np.ndarray = values[torch.from_numpy(padding_mask(self.lengths))].numpy()
        return found


def close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert found.shape == expected.shape, what
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max()), what


@pytest.mark.parametrize("seed", SEEDS)
def test_every_head(seed: int, tmp_path: Path) -> None:
    case = Case(tmp_path, seed, labels=2 + seed % 4)
    _, arrays = case.ours("classify", activation="none")
    close(arrays.values, case.theirs("BertForSequenceClassification").logits.numpy(), "classify")
    _, arrays = case.ours("next-sentence")
    close(arrays.values, case.theirs("BertForNextSentencePrediction").logits.softmax(-1).numpy(), "next-sentence")
    tags = case.flat(case.theirs("BertForTokenClassification").logits.softmax(-1))
    _, arrays = case.ours("ner", aggregation="average", windows="truncate")
    close(arrays.values, tags, "ner, all labels")
    _, arrays = case.ours("ner", windows="truncate")
    close(arrays.values[:, 1], tags.max(1), "ner, best score")
    chosen = tags[np.arange(len(tags)), arrays.values[:, 0].astype(int)]
    close(chosen, tags.max(1), "ner, best label")
    _, arrays = case.ours("qa", windows="truncate")
    output = case.theirs("BertForQuestionAnswering")
    close(arrays.values, case.flat(torch.stack([output.start_logits, output.end_logits], dim=-1)), "qa")
    assert arrays.counts is not None
    assert arrays.counts.tolist() == case.lengths.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_choices_and_words(seed: int, tmp_path: Path) -> None:
    case = Case(tmp_path, seed, labels=1)
    _, arrays = case.ours("multiple-choice")
    close(arrays.values[:, 0], case.theirs("BertForMultipleChoice").logits[0].numpy(), "multiple-choice")
    _, arrays = case.ours("rerank", activation="none")
    close(arrays.values, case.theirs("BertForSequenceClassification").logits.numpy(), "rerank")
    task, _ = case.ours("fill-mask")
    mask_id = task.tokenizer().mask_id
    case.ids[np.random.default_rng(seed).random(len(case.ids)) < 0.3] = mask_id
    _, arrays = case.ours("fill-mask", top_k=7)
    logits = case.theirs("BertForMaskedLM").logits
    masked = case.flat(logits.softmax(-1))[case.ids == mask_id]
    words, scores = np.split(arrays.values, 2, axis=1)
    close(scores, np.sort(masked, axis=1)[:, ::-1][:, :7], "fill-mask, scores")
    close(np.take_along_axis(masked, words.astype(int), axis=1), scores, "fill-mask, words")
    weights = torch.log1p(torch.relu(logits)) * torch.from_numpy(padding_mask(case.lengths))[:, :, None]
    expected = weights.amax(1).numpy()
    _, arrays = case.ours("embed", output="sparse")
    for row, found in zip(expected, arrays.rows(), strict=True):
        dense = np.zeros_like(row)
        dense[found[:, 0].astype(int)] = found[:, 1]
        close(dense, row, "sparse")
