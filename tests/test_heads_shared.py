"""Several heads at once: each answers as alone, and a trunk computes a window once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raybert
from raybert.config import heads_from
from raybert.engine import Trunk
from raybert.errors import RowError, SettingsError, UsageError
from raybert.tasks.program import open_program
from raybert.text.encoding import Sequences, Windows
from raybert.text.sharing import share_windows
from tests.jobs import some_texts
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

TAGS = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "num_labels": 3}


@pytest.fixture(name="folders", scope="module")
def folders_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Heads of one trunk in files of their own, and one head of another trunk."""
    top = tmp_path_factory.mktemp("heads")
    return {
        "plain": str(write_tiny_checkpoint(top / "plain", sentence={"pooling": "mean", "normalize": True})),
        "tags": str(write_tiny_checkpoint(top / "tags", heads=("classifier",), config=TAGS)),
        "topics": str(write_tiny_checkpoint(top / "topics", heads=("classifier",), config={"num_labels": 7})),
        "words": str(write_tiny_checkpoint(top / "words", heads=("masked-lm", "next-sentence", "qa"))),
        "other": str(write_tiny_checkpoint(top / "other", heads=("classifier",), config={"num_labels": 2}, seed=9)),
        "ranker": str(write_tiny_checkpoint(top / "ranker", heads=("classifier",), config={"num_labels": 1})),
    }


@pytest.fixture(name="forwarded")
def forwarded_fixture(monkeypatch: pytest.MonkeyPatch) -> list[Sequences]:
    """What trunks were given to compute."""
    seen: list[Sequences] = []
    run = Trunk.run

    def counting(self: Trunk, sequences: Sequences, *arguments: Any, **options: Any) -> Any:
        seen.append(sequences)
        return run(self, sequences, *arguments, **options)

    monkeypatch.setattr(Trunk, "run", counting)
    return seen


def tokens(seen: list[Sequences]) -> int:
    return sum(len(each.ids) for each in seen)


def answers(value: Any) -> Any:
    """An answer with its numbers as something that compares within rounding."""
    if isinstance(value, np.ndarray):
        return pytest.approx(value, abs=1e-6)
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-6)
    if isinstance(value, dict):
        return {key: answers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [answers(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: answers(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def alone(spec: Any, items: list[Any]) -> Any:
    model, task, *options = spec
    predictor = raybert.load(model, task, dtype="float32", device="cpu", **(options[0] if options else {}))
    return predictor.scores(items) if task == "rerank" else predictor(items)


def assert_as_alone(heads: dict[str, Any], items: list[Any], texts: list[str]) -> None:
    together = raybert.load_heads(heads, dtype="float32", device="cpu")(items)
    assert list(together) == list(heads)
    for name, spec in heads.items():
        takes_text = spec[1] in ("embed", "ner", "fill-mask")
        expected = alone(spec, texts if takes_text else items)
        assert len(together[name]) == len(items)
        assert plain(together[name]) == answers(expected), name


def test_heads_answer_as_alone(folders: dict[str, str]) -> None:
    texts = [*some_texts(60), "a [MASK] in it", "word " * 500]
    heads = {
        "vector": (folders["plain"], "embed"),
        "cls": (folders["plain"], "embed", {"pooling": "cls", "max_length": 40}),
        "prompted": (folders["plain"], "embed", {"prompt": "query: "}),
        "states": (folders["plain"], "embed", {"output": "tokens"}),
        "sparse": (folders["words"], "embed", {"output": "sparse"}),
        "topic": (folders["topics"], "classify"),
        "slid": (folders["topics"], "classify", {"windows": "slide", "aggregation": "max"}),
        "people": (folders["tags"], "ner", {"stride": 16}),
        "raw": (folders["tags"], "ner", {"aggregation": "none", "windows": "truncate"}),
        "fill": (folders["words"], "fill-mask", {"top_k": 2}),
        "elsewhere": (folders["other"], "classify"),
    }
    assert_as_alone(heads, texts, texts)


def test_heads_over_pairs_and_texts_answer_as_alone(folders: dict[str, str]) -> None:
    texts = stdlib_docstrings(80)
    pairs = list(zip([text[:100] for text in texts[:40]], texts[40:], strict=True))
    heads = {
        "vector": (folders["plain"], "embed"),
        "topic": (folders["topics"], "classify"),
        "score": (folders["ranker"], "rerank"),
        "next": (folders["words"], "next-sentence"),
        "answers": (folders["words"], "qa", {"top_k": 3, "stride": 20}),
        "people": (folders["tags"], "ner"),
    }
    assert_as_alone(heads, pairs, [first for first, _ in pairs])


def test_three_heads_of_one_trunk_cost_the_tokens_of_one(folders: dict[str, str], forwarded: list[Sequences]) -> None:
    texts = [text for text in stdlib_docstrings(200) if len(text) < 200]
    raybert.load(folders["plain"], "embed", dtype="float32", device="cpu")(texts)
    lone = tokens(forwarded)
    forwarded.clear()
    heads = {"v": (folders["plain"], "embed"), "t": (folders["topics"], "classify"), "n": (folders["tags"], "ner")}
    raybert.load_heads(heads, dtype="float32", device="cpu")(texts)
    assert len(forwarded) == 1
    assert tokens(forwarded) == lone


def test_differing_prompts_and_lengths_cost_exactly_the_windows_needed(
    folders: dict[str, str], forwarded: list[Sequences]
) -> None:
    texts = list(dict.fromkeys(stdlib_docstrings(150)))
    heads = {
        "v": (folders["plain"], "embed"),
        "short": (folders["plain"], "embed", {"max_length": 24}),
        "query": (folders["plain"], "embed", {"prompt": "query: "}),
        "n": (folders["tags"], "ner", {"max_length": 64, "stride": 8}),
    }
    needed: set[tuple[int, bytes]] = set()
    for model, task, *options in heads.values():
        windows = raybert.load(model, task, **(options[0] if options else {})).task.encode(texts)
        for row, begin, length in zip(windows.row_of_window, windows.starts, windows.lengths, strict=True):
            needed.add((int(row), windows.ids[begin : begin + length].tobytes()))
    raybert.load_heads(heads, dtype="float32", device="cpu")(texts)
    assert len(forwarded) == 1
    assert tokens(forwarded) == sum(len(ids) // 4 for _, ids in needed)


def test_texts_are_tokenized_once_for_heads_that_cut_and_heads_that_slide(folders: dict[str, str]) -> None:
    heads = {"v": (folders["plain"], "embed"), "t": (folders["topics"], "classify"), "n": (folders["tags"], "ner")}
    heads["s"] = (folders["topics"], "classify", {"windows": "slide", "stride": 5})
    program = open_program(heads_from(heads))
    assert program.trunks == (("v", "t", "n", "s"),)
    assert program.encodings == (("v", "t"), ("n",), ("s",))
    calls: Counter[str] = Counter()
    for name, task in program.tasks.items():
        tokenizer = task.tokenizer()
        take = tokenizer.take

        def counting(*items: Any, name: str = name, take: Any = take, **options: Any) -> Any:
            calls[name] += 1
            return take(*items, **options)

        tokenizer.take = counting  # type: ignore[method-assign]
    texts = some_texts(30)
    try:
        cut, slid, stepped = program.encode(texts)
    finally:
        for task in program.tasks.values():
            del task.tokenizer().take
    assert calls.total() == 1
    for found, name in ((cut, "v"), (slid, "n"), (stepped, "s")):
        direct = program.tasks[name].encode(texts, offsets=True)
        for field in Windows.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(found, field), getattr(direct, field), err_msg=field)


@st.composite
def encodings(draw: st.DrawFn) -> list[Windows]:
    """Several encodings of the same few items, with windows that often are equal."""
    items = draw(st.integers(1, 4))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        per_item = [draw(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=3), min_size=1, max_size=3))
                    for _ in range(items)]  # fmt: skip
        flat = [(row, ids) for row, windows in enumerate(per_item) for ids in windows]
        ids = np.array([number for _, window in flat for number in window], np.int32)
        typed = draw(st.booleans())
        made.append(
            Windows(
                ids=ids,
                lengths=np.array([len(window) for _, window in flat], np.int32),
                type_ids=(ids % 2).astype(np.int8) if typed else None,
                row_of_window=np.array([row for row, _ in flat], np.int32),
                tokens=np.zeros(items, np.int32),
                truncated=np.zeros(items, np.bool_),
            )
        )
    return made


def contents(sequences: Sequences, rows: list[int] | None = None) -> list[tuple[Any, ...]]:
    types = np.zeros(len(sequences.ids), np.int8) if sequences.type_ids is None else sequences.type_ids
    return [
        (None if rows is None else rows[at], *sequences.ids[b : b + n].tolist(), "|", *types[b : b + n].tolist())
        for at, (b, n) in enumerate(zip(sequences.starts.tolist(), sequences.lengths.tolist(), strict=True))
    ]


@given(encodings())
def test_sharing_gives_each_its_own_windows_and_computes_none_twice(made: list[Windows]) -> None:
    joined, parts = share_windows(made)
    most: Counter[tuple[Any, ...]] = Counter()
    for windows, part in zip(made, parts, strict=True):
        index = np.arange(windows.n_windows) if part is None else part
        assert len(set(index.tolist())) == windows.n_windows
        assert contents(joined.select(index)) == contents(windows)
        most |= Counter(contents(windows, windows.row_of_window.tolist()))
    assert joined.n_windows == sum(most.values())


def test_what_cannot_be_meant(folders: dict[str, str]) -> None:
    heads = raybert.load_heads({"v": (folders["plain"], "embed")})
    with pytest.raises(UsageError, match="a bare str where a list of texts is meant"):
        heads("a text")
    with pytest.raises(RowError, match="row 1: expected a text, got int"):
        heads(["a", 3])
    with pytest.raises(RowError, match="row 1: expected a pair of texts, got str"):
        heads([("a", "b"), "c"])
    with pytest.raises(SettingsError, match=r"write \(model, task\) or \(model, task, options\)"):
        raybert.load_heads({"v": "demo"})
    with pytest.raises(RowError, match="row 0: expected a pair of texts, got str"):
        raybert.load_heads({"v": (folders["plain"], "embed"), "n": (folders["words"], "next-sentence")})(["a"])
    assert heads.columns == {"v": ["v", "v_tokens", "v_truncated"]}
    assert heads.fingerprint["v"] == raybert.load(folders["plain"], "embed").fingerprint
    heads.close()
    with pytest.raises(UsageError, match="predictor of plain: closed; load it again"):
        heads(["a"])
    assert set(heads.info()["v"]) >= {"model", "task", "options", "fingerprint", "columns"}


def test_no_items(folders: dict[str, str]) -> None:
    heads: dict[str, Any] = {"v": (folders["plain"], "embed"), "n": (folders["tags"], "ner")}
    # Without an item nobody says whether they are pairs: a head over pairs still has windows of its own.
    heads |= {"s": (folders["ranker"], "rerank"), "a": (folders["words"], "qa", {"windows": "truncate"})}
    (of_texts,) = [names for names in open_program(heads_from(heads)).encodings if "v" in names]
    assert "a" not in of_texts
    found = raybert.load_heads(heads)([])
    assert found["v"].shape == (0, 32)
    assert found["n"] == []
    assert found["s"].shape == (0,)
    assert found["a"] == []
