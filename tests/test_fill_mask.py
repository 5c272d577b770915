"""Fill-mask equals transformers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import raybert
from raybert import Fill
from raybert.errors import CheckpointError, SettingsError
from tests.tiny import stdlib_docstrings, vocabulary, write_tiny_checkpoint


@pytest.fixture(name="folder", scope="module")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"architectures": ["BertForMaskedLM"]}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("mlm"), heads=("masked-lm",), config=config)


def masked_texts() -> list[str]:
    """Real texts with one to four words masked."""
    texts = ["[MASK]", "the [MASK].", "[MASK] [MASK]", "Naïve [MASK] café", "東京 [MASK]"]
    for number, text in enumerate(stdlib_docstrings(80)):
        words = text.split()[:50]
        for place in range(number % 4 + 1):
            words[(place * 7 + number) % len(words)] = "[MASK]"
        texts.append(" ".join(words))
    return texts


def plain(fills: list[dict[str, Any]]) -> list[tuple[int, str, float, str]]:
    return [
        (each["token"], each["token_str"], pytest.approx(each["score"], abs=1e-5), each["sequence"]) for each in fills
    ]


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 40}, {"targets": ["the", "File", "##ing"]}])
def test_equal_to_the_pipeline(folder: Path, options: dict[str, Any]) -> None:
    ours = raybert.load(folder, "fill-mask", dtype="float32", device="cpu", **options)
    peer = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    texts = masked_texts()
    for text, answer in zip(texts, ours(texts), strict=True):
        expected = peer(text, **options)
        lists = [expected] if text.count("[MASK]") == 1 else expected
        assert len(answer) == len(lists) == text.count("[MASK]")
        for fills, wanted in zip(answer, lists, strict=True):
            assert [(each.token_id, each.token, each.score, each.text) for each in fills] == plain(wanted)


def test_a_text_without_a_mask_and_one_that_is_cut_before_it(folder: Path) -> None:
    ours = raybert.load(folder, "fill-mask", dtype="float32", device="cpu")
    assert ours(["no mask here", "", "word " * 200 + "[MASK]"]) == [[], [], []]
    assert ours([]) == []


def test_targets(folder: Path) -> None:
    only = raybert.load(folder, "fill-mask", dtype="float32", device="cpu", targets=["the"], top_k=9)
    ((fills,),) = only(["a [MASK]"])
    assert [fill.token for fill in fills] == ["the"]
    assert isinstance(fills[0], Fill)
    assert vocabulary()[fills[0].token_id] == "the"
    with pytest.raises(SettingsError, match=r"target 'unheardof': \d tokens \(.+\); name single tokens"):
        raybert.load(folder, "fill-mask", targets=["unheardof"])
    with pytest.raises(SettingsError, match=r"target 'unheardof': \d tokens"):
        raybert.load(folder, "fill-mask", targets=["unheardof"], max_length=3)
    for wrong in ([], [3], ""):
        with pytest.raises(SettingsError, match="takes a list of words"):
            raybert.load(folder, "fill-mask", targets=wrong)


def test_the_fingerprint_follows_the_words_matrix(folder: Path, tmp_path: Path) -> None:
    def mark(path: Path) -> tuple[str, ...]:
        tasks = (raybert.load(path, "fill-mask"), raybert.load(path, "embed", output="sparse"))
        return tuple(task.fingerprint for task in tasks)

    model = raybert.BertForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "same")
    model.config.tie_word_embeddings = False
    model.cls.predictions.decoder.weight = torch.nn.Parameter(model.cls.predictions.decoder.weight * 2)
    model.save_pretrained(tmp_path / "other")
    for name in ("same", "other"):
        raybert.BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path / name)
    marks = [mark(folder), mark(tmp_path / "same"), mark(tmp_path / "other")]
    # The trunk is the same; so are the files of a tokenizer that was saved.
    assert marks[1] != marks[2]
    assert raybert.load(tmp_path / "same", "embed").fingerprint == raybert.load(tmp_path / "other", "embed").fingerprint


def test_what_a_checkpoint_lacks(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no masked-lm among its weights; heads it has: pooler"):
        raybert.load(str(tiny), "fill-mask")
    nameless = write_tiny_checkpoint(tmp_path, heads=("masked-lm",))
    words = nameless / "vocab.txt"
    words.write_text(words.read_text(encoding="utf-8").replace("[MASK]", "[BLANK]"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the tokenizer has no mask token"):
        raybert.load(nameless, "fill-mask")(["a"])
