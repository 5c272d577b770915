"""The report's figures: equal to what pandas and DuckDB make of the same parts, and a function of the folder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pytest

from raybert.data.report import report
from raybert.data.store import Store
from raybert.errors import OutputError, UsageError
from tests.bucket import Bucket
from tests.commands import Cli, assert_one_line, cli_fixture  # noqa: F401
from tests.jobs import tree_bytes
from tests.report_run import BAD_ROWS, FILES, ROWS, made
from tests.test_imports import HELP, loaded

EDGES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]


@pytest.fixture(name="top", scope="module")
def top_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.getbasetemp())


@pytest.fixture(name="facts", scope="module")
def facts_fixture(top: Path) -> dict[str, Any]:
    """Of the run over texts, as its file holds them."""
    return written(top / "texts")


@pytest.fixture(name="frame", scope="module")
def frame_fixture(top: Path) -> pd.DataFrame:
    return frame_of(top / "texts")


@pytest.fixture(name="copy")
def copy_fixture(top: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(top / "texts", tmp_path / "copy"))


def written(folder: Path) -> dict[str, Any]:
    report(folder)
    found: dict[str, Any] = json.loads((folder / "_raybert" / "report.json").read_text(encoding="utf-8"))
    return found


def frame_of(folder: Path) -> pd.DataFrame:
    files = [str(path) for path in sorted(folder.glob("part-*"))]
    frame: pd.DataFrame = duckdb.sql(f"SELECT * FROM read_parquet({files!r}) ORDER BY _file, _row").df()
    return frame


def head(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in facts["heads"] if each["name"] == name)
    return found


def answers(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = head(facts, name)["answers"]
    return found


def assert_moments(found: dict[str, Any], values: Any) -> None:
    values = np.asarray(values, np.float64)
    assert (found["count"], found["non_finite"]) == (len(values), 0)
    for name, expected in (("min", values.min()), ("mean", values.mean()), ("max", values.max())):
        assert found[name] == pytest.approx(expected, rel=1e-12), name


def assert_histogram(found: dict[str, Any], values: Any) -> None:
    assert_moments(found, values)
    values = np.asarray(values, np.float64)
    edges = found["edges"]
    assert len(edges) == len(found["counts"]) + 1
    for at, count in enumerate(found["counts"]):
        last = at == len(found["counts"]) - 1
        inside = (values >= edges[at]) & ((values < edges[at + 1]) | (last & (values == edges[at + 1])))
        assert count == inside.sum(), at
    assert sum(found["counts"]) == len(values)


def test_summary(top: Path, facts: dict[str, Any], frame: pd.DataFrame) -> None:
    bad = frame_of_quarantine(top / "texts")
    found = facts["summary"]
    assert found["verified"]
    assert found["rows"] == ROWS
    assert found["ok"] == len(frame)
    assert found["quarantined"] == len(bad) == BAD_ROWS
    assert found["filtered"] == ROWS - len(frame) - len(bad)
    assert found["ok_share"] == len(frame) / ROWS
    assert found["parts"] == len(list((top / "texts").glob("part-*")))
    assert found["bytes"] == sum(path.stat().st_size for path in (top / "texts").glob("part-*"))
    assert found["quarantine_bytes"] == sum(path.stat().st_size for path in (top / "texts/_quarantine").iterdir())
    assert found["tokens"] == sum(int(frame[name].sum()) for name in frame if str(name).endswith("_tokens"))
    by_path = {each["path"]: each for each in facts["files"]["first"]}
    assert set(by_path) == set(FILES)
    assert [by_path[path]["ok"] for path in FILES] == [int((frame["_file"] == number).sum()) for number in (0, 1)]


def test_lengths_and_padding(facts: dict[str, Any], frame: pd.DataFrame, top: Path) -> None:
    for each in facts["heads"]:
        tokens, longest = frame[f"{each['name']}_tokens"], each["max_length"]
        assert_moments(each["lengths"], tokens)
        expected = pd.cut(tokens, EDGES, right=False).value_counts(sort=False)
        seen = [at for at, count in enumerate(expected) if count]
        assert each["lengths"]["counts"] == expected.tolist()[seen[0] : seen[-1] + 1]
        assert each["lengths"]["edges"] == EDGES[seen[0] : seen[-1] + 2]
        truncated = int(frame[f"{each['name']}_truncated"].sum())
        assert (each["truncated"], each["truncated_share"]) == (truncated, truncated / len(frame))
        padded = 0
        for part in sorted((top / "texts").glob("part-*")):
            of_part = pd.read_parquet(part)[f"{each['name']}_tokens"].clip(upper=longest).tolist()
            for begin in range(0, len(of_part), 32):
                padded += max(of_part[begin : begin + 32]) * len(of_part[begin : begin + 32])
        capped = int(tokens.clip(upper=longest).sum())
        assert each["padding"] == {"tokens": capped, "padded": padded, "share": capped / padded}
    assert facts["packing"]["padded"] == sum(each["padding"]["padded"] for each in facts["heads"])
    history = json.loads((top / "texts/_raybert/history.json").read_text())["sessions"]
    forwarded = sum(sum(session["splits"]["forwarded"]) for session in history)
    assert facts["packing"]["forwarded"] == forwarded
    assert facts["packing"]["saved_share"] == pytest.approx(1 - forwarded / facts["packing"]["padded"])


def test_labels(facts: dict[str, Any], frame: pd.DataFrame) -> None:
    found = answers(facts, "topic")
    grouped = frame.groupby("topic_label")["topic_score"].agg(["size", "mean"])
    assert {each["label"]: each["count"] for each in found["labels"]} == grouped["size"].to_dict()
    for each in found["labels"]:
        assert each["mean_score"] == pytest.approx(frame[frame["topic_label"] == each["label"]]["topic_score"].mean())
        assert each["share"] == each["count"] / len(frame)
        assert len(each["examples"]) == min(3, each["count"])
        for example in each["examples"]:
            assert_example(frame, example, topic_label=each["label"])
    assert set(found["never"]) == {"<b>sports</b>", "'law' & \"order\"", "science"} - set(grouped.index)
    assert_histogram(found["scores"], frame["topic_score"])
    lowest = frame.sort_values(["topic_score", "_file", "_row"]).head(8)
    assert [(FILES.index(each["file"]), each["row"]) for each in found["lowest"]] == places(lowest)
    assert [each["score"] for each in found["lowest"]] == lowest["topic_score"].tolist()


def test_many_labels_and_numbers(facts: dict[str, Any], frame: pd.DataFrame) -> None:
    found = answers(facts, "many")
    exploded = frame["many_labels"].explode().dropna()
    assert {each["label"]: each["count"] for each in found["labels"]} == exploded.value_counts().to_dict()
    assert found["without"] == int((frame["many_labels"].map(len) == 0).sum())
    assert_moments(found["of_row"], frame["many_labels"].map(len))
    found = answers(facts, "grade")
    assert_histogram(found["scores"], frame["grade"])
    assert len({b - a for a, b in zip(found["scores"]["edges"], found["scores"]["edges"][1:], strict=False)}) == 1
    assert [each["score"] for each in found["highest"]] == sorted(frame["grade"], reverse=True)[:8]
    assert [each["score"] for each in found["lowest"]] == sorted(frame["grade"])[:8]


def test_entities(facts: dict[str, Any], top: Path, frame: pd.DataFrame) -> None:
    files = [str(path) for path in (top / "texts").glob("part-*")]
    entities = duckdb.sql(f"SELECT unnest(people, recursive := true) FROM read_parquet({files!r})").df()
    found = answers(facts, "people")
    assert found["entities"] == len(entities)
    assert found["without"] == int((frame["people"].map(len) == 0).sum())
    assert {each["label"]: each["count"] for each in found["labels"]} == entities["label"].value_counts().to_dict()
    assert_histogram(found["scores"], entities["score"])
    for each in found["labels"]:
        texts = entities[entities["label"] == each["label"]]["text"].str.slice(0, 100).value_counts().to_dict()
        ranked = sorted(texts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
        assert [(text["text"], text["count"]) for text in each["texts"]] == ranked
        for example in each["examples"]:
            row = assert_example(frame, example)
            for entity, expected in zip(example["entities"], row["people"], strict=False):
                assert entity == {**expected, "text": entity["text"]}
                assert row["text"][entity["start"] : entity["end"]].startswith(entity["text"].removesuffix("…"))


def test_vectors_and_words(facts: dict[str, Any], frame: pd.DataFrame) -> None:
    found = answers(facts, "v")
    norms = [np.linalg.norm(np.asarray(each, np.float64)) for each in frame["v"]]
    assert (found["vectors"], found["zero"], found["non_finite"]) == (len(frame), 0, 0)
    assert_histogram(found["lengths"], norms)
    found = answers(facts, "states")
    norms = [np.linalg.norm(np.asarray(each, np.float64)) for row in frame["states"] for each in row]
    assert found["vectors"] == len(norms) > len(frame)
    assert_moments(found["lengths"], norms)
    found = answers(facts, "sparse")
    assert_moments(found["words"], frame["sparse_weights"].map(len))
    assert_histogram(found["weights"], np.concatenate(frame["sparse_weights"].to_list()))
    found = answers(facts, "fill")
    best = [mask[0] for row in frame["fill"] for mask in row]
    assert found["masks"] == len(best) == 3
    assert found["without"] == len(frame) - 2
    assert {each["text"] for each in found["tokens"]} == {each["token"] for each in best}
    assert len(found["examples"]) == 2


def test_pairs(top: Path) -> None:
    facts, frame = written(top / "pairs"), frame_of(top / "pairs")
    assert_histogram(answers(facts, "score")["scores"], frame["score"])
    labels = {each["label"]: each["count"] for each in answers(facts, "next")["labels"]}
    assert labels == frame["next_label"].value_counts().to_dict()
    found, best = answers(facts, "answers"), [row[0] for row in frame["answers"]]
    assert_histogram(found["scores"], [min(1.0, each["score"]) for each in best])
    assert all(each["pair"] is not None and each["text"] is None for each in found["examples"])
    texts = {each["text"] for each in best}
    assert {each["answer"].removesuffix("…") in texts for each in found["examples"]} == {True}


def test_quarantine(top: Path, facts: dict[str, Any]) -> None:
    bad = frame_of_quarantine(top / "texts")
    found = {each["reason"]: each for each in facts["quarantine"]["reasons"]}
    assert {reason: each["count"] for reason, each in found.items()} == bad["reason"].value_counts().to_dict()
    assert sum(each["share"] for each in found.values()) == pytest.approx(1)
    for reason, each in found.items():
        assert len(each["examples"]) == min(3, each["count"])
        for example in each["examples"]:
            row = bad[bad["_row"] == example["row"]].iloc[0]
            assert (row["reason"], row["detail"]) == (reason, example["detail"])
            assert example["text"] == (None if row["text"] is None else row["text"][:200])


def frame_of_quarantine(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in (folder / "_quarantine").iterdir()]).replace({np.nan: None})


def places(frame: pd.DataFrame) -> list[tuple[int, int]]:
    return [(int(file), int(row)) for file, row in zip(frame["_file"], frame["_row"], strict=True)]


def assert_example(frame: pd.DataFrame, example: dict[str, Any], **expected: Any) -> Any:
    """The example is the row that it says it is."""
    of_file = frame[frame["_file"] == FILES.index(example["file"])]
    row = of_file[of_file["_row"] == example["row"]].iloc[0]
    assert row["text"][example["text_begin"] :].startswith(example["text"].removesuffix("…"))
    assert [each["value"] for each in example["kept"]] == [str(row[each["name"]]) for each in example["kept"]]
    for name, value in expected.items():
        assert row[name] == value
    return row


def test_it_is_a_function_of_the_folder(copy: Path, facts: dict[str, Any]) -> None:
    before = tree_bytes(copy)
    assert written(copy) == facts
    assert tree_bytes(copy) == before, "it changed what was there, or left something behind"


def test_a_bucket_gives_the_same(copy: Path) -> None:
    objects = {f"b/{path.relative_to(copy)}": path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    bucket = Bucket({key: value for key, value in objects.items() if not key.startswith("b/_raybert/report")})
    report(Store("b", filesystem=pafs.PyFileSystem(bucket)))
    report(copy)
    for name in ("report.json", "report.html"):
        assert bucket.objects[f"b/_raybert/{name}"] == (copy / "_raybert" / name).read_bytes()
    assert sorted(bucket.objects) == sorted(objects)


def test_without_a_history_times_are_absent(copy: Path, facts: dict[str, Any]) -> None:
    (copy / "_raybert/history.json").unlink()
    found = written(copy)
    assert found["times"] == {"known": False, "sessions": [], "stages": [], "bottleneck": None, "plans": []}
    assert found["packing"]["forwarded"] is None
    assert found["heads"] == facts["heads"]
    assert "nothing is known of times" in (copy / "_raybert/report.html").read_text(encoding="utf-8")


def test_a_run_with_a_gap_is_reported_and_says_so(cli: Cli, copy: Path) -> None:
    gone = sorted(copy.glob("part-000001-*"))[0]
    rows = len(pd.read_parquet(gone, columns=["_row"]))
    before = json.loads((copy / "_raybert/report.json").read_text())["summary"]["ok"]
    gone.unlink()
    outcome = cli("report", str(copy))
    assert outcome.code == 0
    assert "1 problem, see raybert verify\n" in outcome.out
    found = json.loads((copy / "_raybert/report.json").read_text())
    assert not found["summary"]["verified"]
    assert found["summary"]["ok"] == before - rows
    assert "are in no part" in found["problems"][0]
    assert "Not complete" in (copy / "_raybert/report.html").read_text(encoding="utf-8")


def test_the_command_says_one_line(cli: Cli, copy: Path, facts: dict[str, Any]) -> None:
    outcome = cli("report", str(copy))
    assert (outcome.code, outcome.err) == (0, "")
    summary = facts["summary"]
    assert outcome.out == (
        f"{copy}/_raybert/report.html: {summary['rows']} rows in = {summary['ok']} ok + 7 quarantined + "
        f"{summary['filtered']} filtered, {summary['parts']} parts, {summary['tokens']:,} tokens; nothing is missing\n"
    )


def test_what_can_go_wrong_is_told_in_one_line(
    cli: Cli, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_one_line(cli("report", str(tmp_path)), 2)
    part = sorted(copy.glob("part-*"))[0]
    content = bytearray(part.read_bytes())
    content[4:2000] = bytes(1996)
    part.write_bytes(content)
    (copy / "_raybert/report.json").unlink()
    with pytest.raises(OutputError, match=part.name):
        report(copy)
    assert not (copy / "_raybert/report.json").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"matplotlib; pip install 'raybert\[report\]'"):
        report(copy)


def test_it_needs_neither_torch_nor_ray(copy: Path) -> None:
    assert loaded(HELP, "report") == set()
    code = "from raybert.data.report import report\nimport sys\nreport(sys.argv[1])"
    assert loaded(code, str(copy), watched=("torch", "ray", "transformers", "matplotlib.pyplot")) == set()
