"""parity: a run's heads answer today what stands in its parts; whatever differs is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raybert
from raybert.data import manifest as manifests
from raybert.data.parity import ParityReport, open_heads, parity
from raybert.data.part import encode_part, read_receipt
from raybert.data.store import Store
from raybert.data.verify import verify
from raybert.engine import EngineSettings, choose_settings
from raybert.errors import CheckpointError, InputError, SettingsError, UsageError
from raybert.predict import Heads
from tests.commands import Cli, assert_one_line, cli_fixture  # noqa: F401
from tests.jobs import parts, shared_ray, some_texts, tree_bytes, write_lines
from tests.test_imports import HELP, loaded
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

TAGS = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "num_labels": 3}
MANY = {"num_labels": 3, "problem_type": "multi_label_classification"}
TEXTS = [*some_texts(80), "a [MASK] in [MASK]", "word " * 300]


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(name="models", scope="module")
def models_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    top = tmp_path_factory.mktemp("models")
    return {
        "tags": str(write_tiny_checkpoint(top / "tags", heads=("classifier",), config=TAGS)),
        "words": str(write_tiny_checkpoint(top / "words", heads=("masked-lm", "next-sentence", "qa"))),
        "number": str(write_tiny_checkpoint(top / "number", heads=("classifier",), config={"num_labels": 1})),
        "many": str(write_tiny_checkpoint(top / "many", heads=("classifier",), config=MANY)),
        "other": str(write_tiny_checkpoint(top / "other", heads=("masked-lm",), seed=9)),
    }


def run(heads: Mapping[str, Any], source: Path, output: Path, **options: Any) -> Path:
    given = {"dtype": "float32", "device": "cpu", "split_rows": 30, "budget": 700, **options}
    raybert.data.run(heads, input=str(source), output=str(output), **given)
    return output


@pytest.fixture(name="made", scope="module")
def made_fixture(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two files with bad rows, in ``out``, its input in ``in``: read only."""
    top = tmp_path_factory.mktemp("run")
    rows: list[Any] = [{"text": text, "id": at, "tag": [str(at)]} for at, text in enumerate(TEXTS)]
    write_lines(top / "in" / "a.jsonl", [*rows[:50], b"{", *rows[50:70], {"text": None}])
    write_lines(top / "in" / "b.jsonl.gz", rows[70:])
    heads = {
        "v": (models["words"], "embed", {"normalize": True, "dimensions": 20}),
        "states": (models["words"], "embed", {"output": "tokens", "max_length": 12}),
        "sparse": (models["words"], "embed", {"output": "sparse"}),
        "topic": (models["tags"], "classify", {"windows": "slide", "max_length": 40, "top_k": 1}),
        "many": (models["many"], "classify", {"threshold": 0.4}),
        "grade": (models["number"], "classify", {"activation": "none"}),
        "people": (models["tags"], "ner", {"max_length": 40, "stride": 10, "aggregation": "average"}),
        "raw": (models["tags"], "ner", {"aggregation": "none", "ignore_labels": ["I-X"]}),
        "fill": (models["words"], "fill-mask", {"top_k": 2}),
    }
    run(heads, top / "in", top / "out", keep=["id", "tag"])
    return top


@pytest.fixture(name="copied")
def copied_fixture(made: Path, tmp_path: Path) -> Path:
    """The same, to be tampered with; files of the input keep their times, the manifest names the first ones."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def heads_of(output: Path) -> Heads:
    manifest = manifests.load(Store(output))
    assert manifest is not None
    return Heads(open_heads(manifest, {}), EngineSettings.from_dict(manifest.engine), threads=1)


def differing(report: ParityReport) -> dict[str, int]:
    return {each.name: each.differing for each in (*report.heads, report.input) if each.differing}


def rewrite(output: Path, number: int, change: Callable[[pa.Table], pa.Table]) -> str:
    """Replace rows of a part behind the receipt's back, digests in order; its name."""
    store, name = Store(output), parts(output)[number]
    receipt = replace(read_receipt(store, name), content_sha256="")
    store.write(name, encode_part(change(pq.read_table(output / name)), receipt))
    return name


def with_values(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def test_a_run_equals_its_heads_in_every_column(made: Path) -> None:
    before = tree_bytes(made)
    report = parity(made / "out", rows=1000)
    assert report.ok, [str(each) for head in report.heads for each in head.first]
    assert (report.rows, report.parts) == (len(TEXTS), 4)
    assert (report.left_out, report.notes) == ((), ())
    assert all(head.rows == len(TEXTS) for head in (*report.heads, report.input))
    figures = {head.name: (head.worst_cosine is not None, head.largest_difference is not None) for head in report.heads}
    of_vectors, of_scores = (True, False), (False, True)
    assert figures == {
        **dict.fromkeys(("v", "states"), of_vectors),
        **dict.fromkeys(("sparse", "topic", "many", "grade", "people", "raw", "fill"), of_scores),
    }
    assert tree_bytes(made) == before


def test_a_sample_lies_in_all_parts_and_depends_on_its_seed(made: Path) -> None:
    seen: list[list[str]] = []

    def answer(items: Any) -> Mapping[str, Any]:
        seen.append(list(items))
        return heads(items)

    with heads_of(made / "out") as heads:
        for seed in (0, 0, 1):
            assert parity(made / "out", rows=12, seed=seed, answer=answer).ok
    first, again, other = seen
    assert first == again != other
    assert [len(texts) for texts in seen] == [12, 12, 12]
    ends = [30, 50, 70]  # of the rows that the parts hold
    for texts in seen:
        rows = [TEXTS.index(text) for text in texts]
        assert rows == sorted(rows)
        assert [sum(begin <= row < end for row in rows) for begin, end in zip([0, *ends], [*ends, 99], strict=True)]


def test_who_answers_may_be_anybody(made: Path) -> None:
    """One that answers with other numbers is found out, in every head."""

    def answer(items: Any) -> Mapping[str, Any]:
        return {name: answers[::-1] for name, answers in heads(items).items()}

    with heads_of(made / "out") as heads:
        report = parity(made / "out", rows=40, answer=answer)
    assert set(differing(report)) == {head.name for head in report.heads}
    assert all(len(head.first) == 3 for head in report.heads if head.differing > 3)


@pytest.mark.slow
def test_pairs(models: dict[str, str], tmp_path: Path) -> None:
    texts = stdlib_docstrings(120)
    pairs = [(first[:120], second[:900]) for first, second in zip(texts[:60], texts[60:], strict=True)]
    table = pa.table({"a": [a for a, _ in pairs], "b": [b for _, b in pairs]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=25)
    heads = {
        "score": (models["number"], "rerank", {"activation": "none"}),
        "next": (models["words"], "next-sentence"),
        "a": (models["words"], "qa", {"top_k": 2, "handle_impossible_answer": True, "max_length": 60}),
        "topic": (models["tags"], "classify"),
        "v": (models["words"], "embed"),
    }
    run(heads, tmp_path / "in.parquet", tmp_path / "pairs", text_column="a", pair_column="b", keep=["b"])
    report = parity(tmp_path / "pairs", rows=50)
    assert (report.ok, report.rows) == (True, 50), differing(report)


@pytest.mark.slow
def test_csv_with_a_template_and_a_filter(models: dict[str, str], tmp_path: Path) -> None:
    rows = [{"id": at, "a": text[:80], "b": text[80:200]} for at, text in enumerate(stdlib_docstrings(90))]
    (tmp_path / "in").mkdir()
    for name, some in (("x.csv", rows[:40]), ("y.csv", rows[40:])):
        pd.DataFrame(some).to_csv(tmp_path / "in" / name, index=False)  # texts with lines and quotes in them
    options = {"text": "{a} [MASK] {b}", "where": "id >= 7", "keep": ["id"]}
    run({"f": (models["words"], "fill-mask")}, tmp_path / "in", tmp_path / "out", **options)
    report = parity(tmp_path / "out", rows=50)
    assert (report.ok, report.rows, report.parts) == (True, 50, 4), differing(report)
    rewrite(tmp_path / "out", 0, lambda t: with_values(t, "_row", [3, *t["_row"].to_pylist()[1:]]))
    report = parity(tmp_path / "out", rows=90)
    assert differing(report) == {"input": 1}
    assert str(report.input.first[0]).endswith("text: stored a row, now none (reading the input passes it by)")


@pytest.mark.slow
def test_choices(models: dict[str, str], tmp_path: Path) -> None:
    texts = [text[:300] for text in stdlib_docstrings(60)]
    table = pa.table({"a": texts, "c": [[text[::-1], text, text[::-1]] for text in texts]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=25)
    best = {"best": (models["number"], "multiple-choice")}
    run(best, tmp_path / "in.parquet", tmp_path / "choices", text_column="a", pair_column="c")
    found = pq.read_table(tmp_path / "choices" / parts(tmp_path / "choices")[1])
    for order, differ in (([2, 1, 0], 0), ([1, 0, 1], 20)):  # the first and the last choice are one text
        scores = [[row[at] for at in order] for row in found["best_scores"].to_pylist()]
        rewrite(tmp_path / "choices", 1, lambda table, new=scores: with_values(table, "best_scores", new))
        assert differing(parity(tmp_path / "choices")).get("best", 0) == differ


@pytest.mark.slow
def test_float16_vectors_sixteen_bits_and_plain_text(models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{' '.join(text.split())}\n" for text in TEXTS), encoding="utf-8")
    heads = {
        "v": (models["words"], "embed"),
        "w": (models["words"], "embed", {"output": "tokens"}),
        "t": (models["tags"], "classify"),
    }
    dtype = choose_settings(device="cpu").dtype  # bfloat16, where the processor has it
    run(heads, tmp_path / "in.txt", tmp_path / "out", vector_type="float16", dtype=dtype)
    report = parity(tmp_path / "out")
    assert report.ok, differing(report)

    def turn(table: pa.Table) -> pa.Table:
        vectors = np.array(table["v"].to_pylist(), np.float16)
        vectors[3] = vectors[3][::-1]
        return with_values(table, "v", list(vectors))

    rewrite(tmp_path / "out", 1, turn)
    report = parity(tmp_path / "out")
    assert differing(report) == {"v": 1}
    assert "in.txt row 33: v: stored a vector of length" in str(report.heads[0].first[0])


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("v", lambda values: [[-x for x in values[0]], *values[1:]]),
        ("v", lambda values: [[1.001 * x for x in values[0]], *values[1:]]),
        ("states", lambda values: [values[0][1:], *values[1:]]),
        ("sparse_ids", lambda values: [[key + 1 for key in values[0]], *values[1:]]),
        ("sparse_weights", lambda values: [[x + 0.001 for x in values[0]], *values[1:]]),
        ("topic_label", lambda values: ["B-X" if values[0] == "O" else "O", *values[1:]]),
        ("topic_score", lambda values: [values[0] + 0.001, *values[1:]]),
        ("topic_scores", lambda values: [values[0][::-1], *values[1:]]),
        ("many_labels", lambda values: [[*values[0], "LABEL_9"], *values[1:]]),
        ("grade", lambda values: [values[0] + 0.001, *values[1:]]),
        ("raw", lambda values: [[{**e, "start": e["start"] + 1} for e in row] for row in values]),
        ("people", lambda values: [[{**e, "score": e["score"] - 0.001} for e in row] for row in values]),
        ("fill", lambda values: [[[{"token_id": 5, "token": "x", "score": 0.5, "text": "x"}]], *values[1:]]),
        ("v_tokens", lambda values: [values[0] + 1, *values[1:]]),
        ("v_truncated", lambda values: [not values[0], *values[1:]]),
    ],
)
def test_one_changed_value_is_found_in_any_column(copied: Path, column: str, change: Callable[[Any], Any]) -> None:
    out = copied / "out"
    before = pq.read_table(out / parts(out)[1])
    rewrite(out, 1, lambda table: with_values(table, column, change(table[column].to_pylist())))
    after = pq.read_table(out / parts(out)[1])
    columns = before[column], after[column]
    changed = [
        row
        for row, one, other in zip(*(each.to_pylist() for each in (before["_row"], *columns)), strict=True)
        if one != other
    ]
    report = parity(out, rows=1000)
    head = column.partition("_")[0]
    assert changed
    assert differing(report) == {head: len(changed)}
    found = next(each.first for each in report.heads if each.name == head)
    assert [each.place.row for each in found] == changed[:3]
    for each in found:
        assert each.place.path == "a.jsonl"
        assert each.where.startswith(head)
        assert each.stored != each.computed
        assert "\n" not in str(each)


def test_kept_columns_and_rows_that_are_no_more_are_told(copied: Path) -> None:
    out = copied / "out"
    rewrite(out, 0, lambda table: with_values(table, "id", [7, *table["id"].to_pylist()[1:]]))

    def misplace(table: pa.Table) -> pa.Table:
        return with_values(table, "_row", [50, *table["_row"].to_pylist()[1:]])  # the line that is no JSON

    rewrite(out, 1, misplace)
    report = parity(out, rows=1000)
    assert differing(report) == {"input": 2}
    assert (report.input.rows, report.rows) == (len(TEXTS), len(TEXTS) - 1)
    one, other = map(str, report.input.first)
    assert one == "a.jsonl row 0: id: stored 7, now 0"
    assert other.startswith("a.jsonl row 50: text: stored a row, now none (invalid_json: ")
    for name in (*parts(out)[2:], parts(out)[0]):
        (out / name).unlink()
    rewrite(out, 0, lambda table: with_values(table, "_row", [50] * len(table)))
    report = parity(out, rows=3)
    assert (report.rows, differing(report)) == (0, {"input": 1})  # one row of the input, however often it is there


def test_part_of_a_run_is_compared_and_stale_parts_are_passed_by(copied: Path) -> None:
    out = copied / "out"
    names = parts(out)
    (out / names[1]).rename(out / (names[1][:-24] + "0123456789abcdef.parquet"))  # of other settings, by its hash
    (out / names[3]).unlink()
    report = parity(out, rows=1000)
    assert (report.ok, report.parts, report.rows) == (True, 2, 41)
    for name in parts(out):
        (out / name).unlink()
    with pytest.raises(UsageError, match="no part holds a row yet"):
        parity(out)


def test_a_changed_or_vanished_input_file_is_left_out(copied: Path) -> None:
    out, source = copied / "out", copied / "in"
    assert parity(out, input=str(source), rows=1000).rows == len(TEXTS)
    (source / "b.jsonl.gz").unlink()
    report = parity(out, input=str(source), rows=1000)
    assert (report.ok, report.rows) == (True, 70)
    (line,) = report.left_out
    assert line.startswith("12 of the sample left out: ")
    assert "b.jsonl.gz: no such file, though it was there when the run began" in line
    with (source / "a.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"no row of the sample can be compared: 70 of the sample left out: .*changed"):
        parity(out, input=str(source), rows=1000)
    shutil.rmtree(source)
    with pytest.raises(InputError, match="no such file or folder"):
        parity(out, input=str(source))


def test_another_checkpoint_is_named(made: Path, models: dict[str, str], tmp_path: Path) -> None:
    out = made / "out"
    with pytest.raises(CheckpointError, match=r"head sparse: .*other is another checkpoint .*--model sparse=PATH"):
        parity(out, models={"sparse": models["other"]})
    with pytest.raises(CheckpointError, match=r"head people: .*nowhere.*--model people=PATH"):
        parity(out, models={"people": str(tmp_path / "nowhere")})
    with pytest.raises(SettingsError, match=r"no head is called 'poeple'; did you mean 'people'\?"):
        parity(out, models={"poeple": models["tags"]})
    moved = shutil.copytree(models["words"], tmp_path / "moved")
    assert parity(out, models={"fill": str(moved), "v": str(moved)}, rows=10).ok


def test_other_versions_are_noted_and_compared(copied: Path) -> None:
    store = Store(copied / "out")
    manifest = manifests.load(store)
    assert manifest is not None
    older = {**manifest.engine["versions"], "torch": "1.0"}
    manifests.save(store, replace(manifest, engine={**manifest.engine, "versions": older}))
    report = parity(store, rows=20)
    assert report.ok, differing(report)
    (note,) = report.notes
    assert note.startswith("not the run's own arithmetic: torch ")


def test_what_can_not_be_meant(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the --output folder of a run"):
        parity(tmp_path)
    for rows in (0, -1, True, 1.5):
        with pytest.raises(SettingsError, match=r"rows .*: takes a whole number from 1"):
            parity(made / "out", rows=rows)  # type: ignore[arg-type]


def test_the_command(copied: Path, cli: Cli) -> None:
    out = str(copied / "out")
    result = cli("parity", out, "--rows", "20")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "v: 20 rows, worst cosine 1.0000000 (at least 0.999999), none differs"
    assert lines[3].startswith("topic: 20 rows, largest score difference ")
    assert lines[-1] == "ok: 20 rows of 4 parts"
    rewrite(copied / "out", 0, lambda table: with_values(table, "grade", [9.0] * len(table)))
    (copied / "in" / "b.jsonl.gz").unlink()
    result = cli("parity", out, "--rows", "400", "--seed", "3", "--input", str(copied / "in"))
    assert result.code == 1
    told = result.err.splitlines()
    assert told[0].startswith("raybert: 12 of the sample left out: ")
    assert len(told) == 4
    assert told[1].startswith("grade: a.jsonl row 0: grade: stored 9, now ")
    assert result.out.splitlines()[-1] == "rows differ: 30 of grade: 70 rows of 4 parts"
    for words in (["--rows", "0"], ["--model", "x"], ["--model", "v=/nowhere"], ["--input", "/nowhere"]):
        assert_one_line(cli("parity", out, *words), 2)


def test_verify_reads_what_the_rows_of_a_real_run_say(copied: Path) -> None:
    """Behind digests that hold: a part's tokens, and its rows' places beside those in the quarantine."""
    out = copied / "out"
    assert verify(out, full=True).ok
    name = rewrite(out, 2, lambda table: with_values(table, "raw_tokens", [7, *table["raw_tokens"].to_pylist()[1:]]))
    total = sum(pq.read_table(out / name, columns=["raw_tokens"])["raw_tokens"].to_pylist())
    assert verify(out).ok
    (problem,) = verify(out, full=True).problems
    assert problem.startswith(f"{name}: raw_tokens of all rows: expected ")
    assert problem.endswith(f", found {total}")
    name = rewrite(out, 1, lambda table: with_values(table, "_row", [*table["_row"].to_pylist()[:-1], 50]))
    problems = verify(out, full=True).problems
    assert any("_row: expected ascending" in line for line in problems)
    assert f"{name}: 1 rows are in the quarantine too, the first is 50" in problems


def test_its_help_loads_nothing_heavy() -> None:
    assert loaded(HELP, "parity") == set()
    assert "torch" not in loaded("import raybert.cli.parity", watched=("torch", "ray"))
