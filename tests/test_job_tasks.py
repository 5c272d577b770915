"""Every task in a job and in a Ray dataset: the rows that Python gives; several heads in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import raybert
from raybert.data.runreport import RunReport
from raybert.data.verify import verify
from raybert.errors import InputError, SettingsError
from tests.jobs import shared_ray, some_texts, tree_bytes, write_lines
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

pytestmark = pytest.mark.slow

TAGS = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "num_labels": 3}
TEXTS = [*some_texts(50), "a [MASK] in [MASK]", "the [MASK]", "word " * 300]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(name="folders", scope="module")
def folders_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    top = tmp_path_factory.mktemp("heads")
    return {
        "tags": str(write_tiny_checkpoint(top / "tags", heads=("classifier",), config=TAGS)),
        "words": str(write_tiny_checkpoint(top / "words", heads=("masked-lm", "next-sentence", "qa"))),
        "ranker": str(write_tiny_checkpoint(top / "ranker", heads=("classifier",), config={"num_labels": 1})),
        "other": str(write_tiny_checkpoint(top / "other", heads=("classifier",), config={"num_labels": 2}, seed=9)),
    }


def run(heads: Mapping[str, Any], file: Path, output: Path, **options: Any) -> tuple[RunReport, pa.Table]:
    report = raybert.data.run(
        heads, input=str(file), output=str(output), dtype="float32", device="cpu", split_rows=20, **options
    )
    assert verify(output, full=True).ok
    return report, ds.dataset(output, exclude_invalid_files=True).to_table().sort_by("_row")


def rows(answers: Any) -> Any:
    """Python's answers as a column's values, numbers within rounding."""
    if isinstance(answers, list):
        return [rows(each) for each in answers]
    if isinstance(answers, dict):
        return {name: rows(each) for name, each in answers.items() if each is not None}
    if isinstance(answers, float):
        return pytest.approx(answers, abs=1e-6)
    return rows(asdict(answers)) if hasattr(answers, "__dataclass_fields__") else answers


def local(folder: str, task: str, items: list[Any], **options: Any) -> Any:
    predictor = raybert.load(folder, task, dtype="float32", device="cpu", **options)
    return predictor.scores(items) if task == "rerank" else predictor(items)


def test_heads_over_texts(folders: dict[str, str], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    heads = {
        "people": (folders["tags"], "ner", {"max_length": 40, "stride": 10}),
        "raw": (folders["tags"], "ner", {"aggregation": "none"}),
        "fill": (folders["words"], "fill-mask", {"top_k": 2}),
        "states": (folders["words"], "embed", {"output": "tokens"}),
        "sparse": (folders["words"], "embed", {"output": "sparse"}),
        "slid": (folders["words"], "embed", {"windows": "slide", "max_length": 30}),
        "topic": (folders["other"], "classify", {"windows": "slide", "aggregation": "max"}),
    }
    _, table = run(heads, file, tmp_path / "out")
    for name in ("people", "raw", "fill"):
        folder, task, options = heads[name]
        assert table[name].to_pylist() == rows(local(folder, task, TEXTS, **options)), name
    states = local(folders["words"], "embed", TEXTS, output="tokens")
    for found, expected in zip(table["states"].to_pylist(), states, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for row, vector in enumerate(local(folders["words"], "embed", TEXTS, output="sparse")):
        assert table["sparse_ids"][row].as_py() == vector.ids.tolist()
        np.testing.assert_allclose(table["sparse_weights"][row].as_py(), vector.weights, rtol=0, atol=1e-6)
    slid = local(folders["words"], "embed", TEXTS, windows="slide", max_length=30)
    np.testing.assert_allclose(table["slid"].to_pylist(), slid, rtol=0, atol=1e-6)
    topics = local(folders["other"], "classify", TEXTS, windows="slide", aggregation="max")
    assert table["topic_label"].to_pylist() == [answer.label for answer in topics]
    assert not any(table["people_truncated"].to_pylist())
    assert sum(table["fill_truncated"].to_pylist()) == 2


def test_heads_over_pairs(folders: dict[str, str], tmp_path: Path) -> None:
    texts = stdlib_docstrings(100)
    pairs = list(zip([text[:120] for text in texts[:50]], texts[50:], strict=True))
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(50), "a": [a for a, _ in pairs], "b": [b for _, b in pairs]}), file)
    heads = {
        "score": (folders["ranker"], "rerank"),
        "next": (folders["words"], "next-sentence"),
        "answers": (folders["words"], "qa", {"top_k": 2}),
        "topic": (folders["other"], "classify"),
        "people": (folders["tags"], "ner"),
    }
    options = {"text_column": "a", "pair_column": "b", "keep": ["id", "b"]}
    _, table = run(heads, file, tmp_path / "out", **options)
    assert table["id"].to_pylist() == list(range(50))
    assert table["b"].to_pylist() == [b for _, b in pairs]
    scores = local(folders["ranker"], "rerank", pairs)
    np.testing.assert_allclose(table["score"].to_numpy(), scores, rtol=0, atol=1e-6)
    assert table["answers"].to_pylist() == rows(local(folders["words"], "qa", pairs, top_k=2))
    assert table["people"].to_pylist() == rows(local(folders["tags"], "ner", [a for a, _ in pairs]))
    for name, folder, task in (("next", "words", "next-sentence"), ("topic", "other", "classify")):
        expected = local(folders[folder], task, pairs)
        assert table[f"{name}_label"].to_pylist() == [answer.label for answer in expected]
        labels = json.loads(table.schema.field(f"{name}_scores").metadata[b"labels"])
        for found, answer in zip(table[f"{name}_scores"].to_pylist(), expected, strict=True):
            assert dict(zip(labels, found, strict=True)) == rows(answer.scores)


def test_multiple_choice(folders: dict[str, str], tmp_path: Path) -> None:
    texts = stdlib_docstrings(90)
    items = [(texts[at][:60], texts[at + 1 : at + 2 + at % 4]) for at in range(0, 80, 2)]
    lines: list[Any] = [{"q": prompt, "c": choices} for prompt, choices in items]
    file = write_lines(tmp_path / "in.jsonl", [*lines, {"q": "none", "c": []}, {"q": "null"}])
    heads = {"best": (folders["ranker"], "multiple-choice")}
    report, table = run(heads, file, tmp_path / "out", text_column="q", pair_column="c")
    assert (report.rows, report.quarantined) == (42, 2)
    expected = local(folders["ranker"], "multiple-choice", items)
    assert table["best_label"].to_pylist() == [answer.label for answer in expected]
    assert table["best_score"].to_pylist() == rows([answer.score for answer in expected])
    for (_, choices), found, answer in zip(items, table["best_scores"].to_pylist(), expected, strict=True):
        assert dict(zip(choices, found, strict=True)) == rows(answer.scores)


def test_heads_of_one_trunk_cost_the_tokens_of_one_and_give_its_rows(folders: dict[str, str], tmp_path: Path) -> None:
    texts = [text[:200] for text in TEXTS]
    file = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    heads = {"n": (folders["tags"], "ner"), "v": (folders["words"], "embed"), "f": (folders["words"], "fill-mask")}
    together, table = run(heads, file, tmp_path / "all")
    for name, spec in heads.items():
        lone, expected = run({name: spec}, file, tmp_path / name)
        assert lone.forwarded == together.forwarded == lone.tokens[name]
        for column in expected.column_names:
            found = table[column].to_pylist()
            if column == "v":
                np.testing.assert_allclose(found, expected[column].to_pylist(), rtol=0, atol=1e-6)
            else:
                assert found == rows(expected[column].to_pylist()), column


def test_run_again_changes_nothing(folders: dict[str, str], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl", [{"q": "who?", "c": text} for text in stdlib_docstrings(50)])
    heads = {"a": (folders["words"], "qa", {"handle_impossible_answer": True}), "n": (folders["tags"], "ner")}
    run(heads, file, tmp_path / "out", text_column="q", pair_column="c")
    before = tree_bytes(tmp_path / "out")
    for part in sorted((tmp_path / "out").glob("part-*"))[1:]:
        part.unlink()
    run(heads, file, tmp_path / "out", text_column="q", pair_column="c")
    assert tree_bytes(tmp_path / "out") == before


def test_the_order_of_heads_is_the_first_runs(folders: dict[str, str], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl", [{"text": text[:200]} for text in stdlib_docstrings(50)])
    heads = {"n": (folders["tags"], "ner"), "v": (folders["words"], "embed")}
    run(heads, file, tmp_path / "out")
    before = tree_bytes(tmp_path / "out")
    sorted((tmp_path / "out").glob("part-*"))[-1].unlink()
    report, _ = run(dict(reversed(heads.items())), file, tmp_path / "out")
    assert report.parts == 1
    assert tree_bytes(tmp_path / "out") == before


def test_a_split_without_a_good_row(folders: dict[str, str], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl", [{"q": "a", "c": None}] * 20 + [{"q": "a", "c": "b"}] * 3)
    heads = {
        "next": (folders["words"], "next-sentence", {"max_length": 100}),
        "a": (folders["words"], "qa", {"windows": "truncate", "max_length": 100}),
        "n": (folders["tags"], "ner"),
    }
    report, table = run(heads, file, tmp_path / "out", text_column="q", pair_column="c")
    assert (report.quarantined, len(table)) == (20, 3)


def test_a_dataset_with_pairs(folders: dict[str, str]) -> None:
    import ray.data

    items: list[dict[str, Any]] = [{"q": "what?", "c": text} for text in stdlib_docstrings(20)]
    items[3]["c"] = None
    heads = {"a": (folders["words"], "qa"), "n": (folders["tags"], "ner")}
    dataset = ray.data.from_items(items, override_num_blocks=2)
    found = raybert.data.apply(
        dataset, heads, text_column="q", pair_column="c", dtype="float32", device="cpu"
    ).take_all()
    found.sort(key=lambda row: [item["c"] for item in items].index(row["c"]))
    assert found[3]["a"] is None
    assert found[3]["n"] is None
    good = [item for item in items if item["c"] is not None]
    expected = local(folders["words"], "qa", [(item["q"], item["c"]) for item in good])
    assert [row["a"] for row in found if row["c"] is not None] == rows(expected)


def test_a_dataset_of_choices_in_pandas(folders: dict[str, str]) -> None:
    import pandas as pd
    import ray.data

    frame = pd.DataFrame({"q": ["a", "b", "c"], "c": [["x", "y"], [], []]}, dtype=object)
    heads = {"best": (folders["ranker"], "multiple-choice")}
    dataset = raybert.data.apply(ray.data.from_pandas(frame.head(2)), heads, text_column="q", pair_column="c")
    found = {row["q"]: row["best_label"] for row in dataset.take_all()}
    assert found["a"] in ("x", "y")
    assert found["b"] is None
    numbers = ray.data.from_items([{"q": "a", "c": 3}])
    with pytest.raises(InputError, match="column 'c' of the dataset holds int64, not texts or lists of texts"):
        raybert.data.apply(numbers, heads, text_column="q", pair_column="c")


def test_heads_and_columns_that_do_not_fit(folders: dict[str, str], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.jsonl", [{"text": "a", "b": "c", "l": ["x", "y"]}])
    cases: list[tuple[Mapping[str, Any], dict[str, Any], str]] = [
        (
            {"s": (folders["ranker"], "rerank")},
            {},
            "takes a text and a second text; name its column with --pair-column",
        ),
        ({"s": (folders["ranker"], "multiple-choice")}, {"pair_column": "b"}, "the pair column holds texts"),
        ({"s": (folders["ranker"], "rerank")}, {"pair_column": "l"}, "the pair column holds lists of texts"),
        ({"v": (folders["words"], "embed")}, {"pair_column": "b"}, "no head takes pairs; leave it out"),
        ({"t": (folders["other"], "classify", {"windows": "slide"})}, {"pair_column": "b"}, "a pair has one window"),
    ]
    for heads, options, message in cases:
        with pytest.raises(SettingsError, match=message):
            raybert.data.run(heads, input=str(file), output=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
