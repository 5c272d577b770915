"""Classify in a job and in a Ray dataset: the rows that Python gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

import raybert
from raybert.data.verify import verify
from tests.jobs import shared_ray, write_lines
from tests.test_classify import PROBLEMS, folders_fixture, texts  # noqa: F401  a fixture


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


_FEW = [problem if problem == "multi" else pytest.param(problem, marks=pytest.mark.slow) for problem in PROBLEMS]


@pytest.mark.parametrize("problem", _FEW)
def test_a_job_gives_the_same_rows(folders: dict[str, Path], problem: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts()])
    heads = {"topic": (str(folders[problem]), "classify", {"top_k": 1})}
    raybert.data.run(
        heads, input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), dtype="float32", split_rows=40
    )
    assert verify(tmp_path / "out", full=True).ok
    table = ds.dataset(tmp_path / "out", exclude_invalid_files=True).to_table().sort_by("_row")
    local = raybert.load(folders[problem], "classify", dtype="float32")(texts())
    if problem == "regression":
        np.testing.assert_allclose(table["topic"].to_numpy(), [answer.score for answer in local], atol=1e-6)
        return
    field = table.schema.field("topic_scores")
    labels = json.loads(field.metadata[b"labels"])
    scores = [dict(zip(labels, row, strict=True)) for row in table["topic_scores"].to_pylist()]
    for row, answer in zip(scores, local, strict=True):
        assert row == pytest.approx(answer.scores, abs=1e-6)
    if problem == "multi":
        assert table["topic_labels"].to_pylist() == [answer.labels for answer in local]
    else:
        assert table["topic_label"].to_pylist() == [answer.label for answer in local]
        assert table["topic_score"].to_pylist() == pytest.approx([answer.score for answer in local], abs=1e-6)


def test_a_dataset_and_two_heads_at_once(folders: dict[str, Path]) -> None:
    import ray.data

    frame = [{"text": text} for text in texts()[:30]]
    heads = {"topic": (str(folders["single"]), "classify"), "vector": (str(folders["single"]), "embed")}
    rows = raybert.data.apply(ray.data.from_items(frame), heads, text_column="text", dtype="float32").take_all()
    local = raybert.load(folders["single"], "classify", dtype="float32")([row["text"] for row in rows])
    assert [row["topic_label"] for row in rows] == [answer.label for answer in local]
    assert {len(row["vector"]) for row in rows} == {32}
