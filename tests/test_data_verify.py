"""verify: a whole run passes, and whatever is missing, foreign, doubled or damaged is named."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from raybert.data import manifest as manifests
from raybert.data.manifest import Manifest
from raybert.data.part import Receipt, encode_part, encode_quarantine, quarantine_name, read_receipt
from raybert.data.splits import InputFile, Split, part_name
from raybert.data.store import Store
from raybert.data.verify import verify
from raybert.errors import OutputError, UsageError
from tests.bucket import Bucket
from tests.commands import cli_fixture  # noqa: F401

SCHEMA = pa.schema(
    [
        pa.field("_file", pa.int32()),
        pa.field("_row", pa.int64()),
        pa.field("title", pa.string()),
        pa.field("v", pa.list_(pa.field("item", pa.float32(), nullable=False), 4)),
        pa.field("topic_scores", pa.list_(pa.float32()), metadata={"labels": '["a", "b"]'}),
    ]
)
PRINTS = {"v": "a" * 64, "topic": "b" * 64}
MANIFEST = Manifest(
    settings={"input": "/in", "text": "text", "keep": ["title"], "split_rows": 10},
    heads=tuple(
        {"name": name, "task": "embed", "model": "demo", "options": {}, "fingerprint": fingerprint}
        for name, fingerprint in PRINTS.items()
    ),
    files=tuple(
        InputFile(number=number, path=f"{number}.jsonl", size=size, version="1")
        for number, size in enumerate([900, 0, 300])
    ),
    schema=SCHEMA,
    engine={"dtype": "float32"},
)
SPLITS = [(0, 0, 10), (0, 10, 20), (0, 20, 25), (1, 0, 0), (2, 0, 10), (2, 10, 10)]
LAST = {(0, 20, 25), (1, 0, 0), (2, 10, 10)}
BAD_ROWS = {(0, 13): "null", (0, 16): "invalid_utf8", (2, 3): "null"}
FILTERED = {(0, 24), (2, 0), (2, 9)}


def rows_of(file: int, rows: list[int], schema: pa.Schema = SCHEMA) -> pa.Table:
    columns = {
        "_file": [file] * len(rows),
        "_row": rows,
        "title": [f"title {row}" for row in rows],
        "v": [[float(row), 0.5, -0.5, 1.0] for row in rows],
        "topic_scores": [[0.25, 0.75] for _ in rows],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def bad_rows(file: int, rows: list[int]) -> pa.Table:
    reasons = [BAD_ROWS.get((file, row), "null") for row in rows]
    columns = {"_file": pa.array([file] * len(rows), pa.int32()), "_row": pa.array(rows, pa.int64()), "reason": reasons}
    return pa.table(columns)


@dataclass
class Run:
    """A whole run's folder, to be tampered with."""

    store: Store
    names: dict[tuple[int, int], str]

    def write(self, file: int, begin: int, end: int, /, *, ok=None, bad=None, schema=SCHEMA, **changes) -> str:
        """Write the split's quarantine and part; ``ok`` and ``bad`` are row numbers, ``changes`` go to the receipt."""
        split = Split(file=file, begin=begin, end=end, last=(file, begin, end) in LAST)
        rows = range(begin, end)
        bad = [row for row in rows if (file, row) in BAD_ROWS] if bad is None else bad
        ok = [row for row in rows if (file, row) not in {*BAD_ROWS, *FILTERED}] if ok is None else ok
        filtered = sum((file, row) in FILTERED for row in rows)
        receipt = Receipt(
            file=file,
            first_row=begin,
            rows_in=end - begin,
            ok=len(ok),
            quarantined=len(bad),
            filtered=filtered,
            tokens={"v": 7 * len(ok), "topic": 5},
            fingerprints=PRINTS,
            version="0.1.0",
            last=split.last,
        )
        name = part_name(MANIFEST.files[file], split, MANIFEST.shaping)
        if bad:
            self.store.write(quarantine_name(name), encode_quarantine(bad_rows(file, bad)))
        self.store.write(name, encode_part(rows_of(file, ok, schema), replace(receipt, **changes)))
        return name

    def problems(self, *, full: bool = False) -> list[str]:
        report = verify(self.store, full=full)
        assert report.ok == (not report.problems)
        assert all("\n" not in line for line in report.problems)
        return list(report.problems)


def whole_run(store: Store) -> Run:
    run = Run(store=store, names={})
    manifests.save(store, MANIFEST)
    for file, begin, end in SPLITS:
        run.names[file, begin] = run.write(file, begin, end)
    return run


@pytest.fixture
def run(tmp_path) -> Run:
    return whole_run(Store(tmp_path / "out"))


def only(lines: list[str], *words: str) -> None:
    """There is one problem, and it says all of these."""
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], (word, lines[0])


@pytest.mark.parametrize("full", [False, True])
def test_a_whole_run_passes_with_its_sums(run, full):
    report = verify(run.store.uri, full=full)
    assert report.ok, report.problems
    assert (report.files, report.parts) == (3, 6)
    assert (report.rows_in, report.ok_rows, report.quarantined, report.filtered) == (35, 29, 3, 3)
    assert report.tokens == {"v": 7 * 29, "topic": 30}


def test_a_whole_run_in_an_object_store_passes():
    run = whole_run(Store("bucket/out", filesystem=pafs.PyFileSystem(Bucket())))
    assert run.problems(full=True) == []


def test_reports_and_a_driver_are_no_strangers(run):
    for name in ("report.json", "report.html", "driver.json"):
        run.store.write(f"_raybert/{name}", b"{}")
    assert run.problems() == []


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"manifest\.json: not found; name the --output folder of a run"):
        verify(tmp_path)
    (tmp_path / "_raybert").mkdir()
    (tmp_path / manifests.NAME).write_bytes(b"{")
    with pytest.raises(OutputError, match="not a readable manifest"):
        verify(tmp_path)


def test_a_run_that_has_not_begun_names_every_file(tmp_path):
    store = Store(tmp_path)
    manifests.save(store, MANIFEST)
    lines = verify(store).problems
    assert lines == tuple(f"file {number} ({number}.jsonl): rows from 0 on are in no part" for number in range(3))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ((0, 0), ["file 0 (0.jsonl)", "rows 0 to 9 are in no part"]),
        ((0, 10), ["file 0 (0.jsonl)", "rows 10 to 19 are in no part"]),
        ((0, 20), ["file 0 (0.jsonl)", "rows from 20 on are in no part"]),
        ((1, 0), ["file 1 (1.jsonl)", "rows from 0 on are in no part"]),
    ],
)
def test_a_missing_part_is_a_gap(run, missing, words):
    run.store.delete(run.names[missing])
    run.store.delete(quarantine_name(run.names[missing]))
    only(run.problems(), *words)


def test_a_part_across_two_others_overlaps(run):
    name = run.write(0, 5, 15)
    assert any(f"{name} begins at row 5, inside an earlier part that ends at 10" in line for line in run.problems())


def test_a_part_after_the_last_is_named(run):
    name = run.write(0, 25, 30)
    only(run.problems(), f"{name} begins at row 25, after the part with the file's last row")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filtered": 1}, ["ok + quarantined + filtered: expected 10, found 11"]),
        ({"file": 2}, ["file number in the receipt: expected 0, found 2"]),
        ({"first_row": 10}, ["first row in the receipt: expected 0, found 10"]),
        ({"fingerprints": {**PRINTS, "v": "c" * 64}}, ["fingerprint of head v", "expected aaaa", "found cccc"]),
        ({"fingerprints": {"v": PRINTS["v"]}}, ["fingerprint of head topic", "expected bbbb", "found None"]),
        ({"tokens": {"v": 1}}, ["heads with tokens: expected ['topic', 'v'], found ['v']"]),
        ({"quarantined": 1, "filtered": -1}, ["rows in the quarantine: expected 1, found no file"]),
    ],
)
def test_a_receipt_that_does_not_fit_is_told(run, changes, words):
    name = run.write(0, 0, 10, **changes)
    only(run.problems(), name, *words)


def test_rows_in_the_quarantine_are_counted(run):
    name = quarantine_name(run.names[0, 10])
    run.store.write(name, encode_quarantine(bad_rows(0, [13])))
    only(run.problems(), run.names[0, 10], "rows in the quarantine: expected 2, found 1")
    run.store.delete(name)
    only(run.problems(), run.names[0, 10], "rows in the quarantine: expected 2, found no file")
    run.store.write(name, b"no Parquet")
    only(run.problems(), name, "damaged footer")


def test_a_quarantine_that_should_not_be_is_told(run):
    run.store.write(quarantine_name(run.names[0, 0]), encode_quarantine(bad_rows(0, [1])))
    only(run.problems(), run.names[0, 0], "rows in the quarantine: expected no file, found 1")


def test_another_schema_is_told(run):
    field = SCHEMA.field("topic_scores")
    labels = SCHEMA.set(4, field.with_metadata({"labels": '["b", "a"]'}))
    only((run.write(0, 0, 10, schema=labels), run.problems())[1], "schema: expected", 'labels=["b", "a"]')
    narrow = SCHEMA.remove(2)
    only((run.write(0, 0, 10, schema=narrow), run.problems())[1], run.names[0, 0], "schema: expected")


@pytest.mark.parametrize(
    "other",
    [
        replace(MANIFEST, settings={**MANIFEST.settings, "split_rows": 11}),
        replace(MANIFEST, files=(replace(MANIFEST.files[0], version="2"), *MANIFEST.files[1:])),
    ],
)
def test_parts_of_another_version_or_other_settings_are_stale(run, other):
    manifests.save(run.store, other)
    lines = run.problems()
    stale = [line for line in lines if "stale: rows" in line]
    gaps = [line for line in lines if "rows from 0 on are in no part" in line]
    expected = (6, 3) if other.files == MANIFEST.files else (3, 1)
    assert (len(stale), len(gaps)) == expected
    assert len(lines) == sum(expected)
    assert verify(run.store).parts == 6 - expected[0]


def test_parts_of_an_unknown_file_are_stale(run):
    manifests.save(run.store, replace(MANIFEST, files=MANIFEST.files[:2]))
    lines = run.problems()
    assert len(lines) == 2
    assert all("part-000002-" in line and "stale" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("notes.txt", "a stranger"),
        ("part-0.parquet", "a stranger"),
        ("_SUCCESS", "a stranger"),
        ("deeper/part-000000-000000000000-0123456789abcdef.parquet", "a stranger"),
        ("_quarantine/other.parquet", "a stranger"),
        ("_raybert/other.txt", "a stranger"),
        ("_quarantine/part-000000-000000000000-0123456789abcdef.parquet", "its part is missing"),
        ("_raybert/tmp/0123", "a temporary"),
    ],
)
def test_what_else_lies_in_the_folder_is_named(run, name, word):
    run.store.write(name, b"x")
    only(run.problems(), f"{name}: {word}")


def test_an_unreadable_part_is_named_and_its_neighbours_still_checked(run):
    name = run.names[0, 10]
    run.store.write(name, b"PAR1 not PAR1")
    only(run.problems(), f"{name}: damaged footer")
    run.store.write(run.names[0, 20], b"")
    lines = run.problems()
    assert len(lines) == 3
    assert lines[2] == "file 0 (0.jsonl): no readable last part"


def test_a_quarantine_file_in_place_of_a_part_is_told(run):
    run.store.write(run.names[0, 0], encode_quarantine(bad_rows(0, [1])))
    only(run.problems(), run.names[0, 0], "no receipt")


@pytest.mark.parametrize(
    ("ok", "word"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 9, 8], "_row: expected ascending, found 8 after 9"),
        ([0, 1, 2, 3, 4, 5, 5, 7, 8, 9], "_row: expected ascending, found 5 after 5"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 10], "_row: expected 0 to 9, found 10"),
        ([-1, 1, 2, 3, 4, 5, 6, 7, 8, 9], "_row: expected 0 to 9, found -1"),
    ],
)
def test_full_checks_row_numbers(run, ok, word):
    name = run.write(0, 0, 10, ok=ok, quarantined=0)
    assert run.problems() == []
    only(run.problems(full=True), name, word)


def test_full_checks_rows_against_the_quarantine(run):
    name = run.write(0, 10, 20, bad=[13, 17])
    assert run.problems() == []
    only(run.problems(full=True), name, "1 rows are in the quarantine too, the first is 17")


def test_full_checks_file_numbers_and_nulls(run):
    name = run.names[0, 0]
    receipt = replace(read_receipt(run.store, name), content_sha256="")

    def part(column: str, values: pa.Array) -> None:
        place = SCHEMA.get_field_index(column)
        table = rows_of(0, list(range(10))).set_column(place, SCHEMA.field(column), values)
        run.store.write(name, encode_part(table, receipt))

    part("_row", pa.array([*range(9), None], pa.int64()))
    only(run.problems(full=True), name, "expected two columns without nulls")
    part("_file", pa.array([0] * 9 + [7], pa.int32()))
    only(run.problems(full=True), name, "_file: expected 0, found 7")


def test_full_checks_reasons(run):
    name, table = quarantine_name(run.names[0, 10]), bad_rows(0, [13, 16])
    run.store.write(name, encode_quarantine(table.set_column(2, "reason", [["null", "nonsense"]])))
    assert run.problems() == []
    only(run.problems(full=True), name, "reason: expected one of null, wrong_type, ", "found nonsense")
    run.store.write(name, encode_quarantine(table.set_column(2, "reason", [["null", None]])))
    only(run.problems(full=True), name, "reason: expected one of null, ", "found None")
    run.store.write(name, encode_quarantine(table.drop_columns(["reason"])))
    only(run.problems(full=True), name, "reason: no such column")


@pytest.mark.parametrize("words", [[], ["--full"]])
def test_json_has_every_field_and_the_exit_code_stays(run, words, cli):
    result = cli("verify", run.store.uri, "--json", *words)
    assert (result.code, result.err) == (0, "")
    whole = json.loads(result.out)
    assert whole == {"ok": True, **asdict(verify(run.store)), "problems": []}
    assert (whole["rows_in"], whole["tokens"]) == (35, {"v": 7 * 29, "topic": 30})
    run.store.delete(run.names[0, 0])
    result = cli("verify", run.store.uri, "--json", *words)
    assert (result.code, result.err) == (1, "")
    broken = json.loads(result.out)
    assert broken == {"ok": False, **asdict(verify(run.store)), "problems": broken["problems"]}
    only(broken["problems"], "rows 0 to 9 are in no part")


def test_full_finds_every_damaged_byte(run, tmp_path):
    draw = random.Random(11)
    folder = run.store.folder
    names = run.store.list("part-") + run.store.list("_quarantine/")
    for name in names:
        path, whole = folder / name, run.store.read(name)
        positions = [0, len(whole) - 1, *draw.sample(range(len(whole)), 40)]
        for position in positions:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            lines = run.problems(full=True)
            assert lines, (name, position)
            assert all(Path(name).name in line or "part" in line for line in lines)
        path.write_bytes(whole)
    assert run.problems(full=True) == []


def test_many_tiny_parts_take_seconds(tmp_path):
    store = Store(tmp_path)
    files = tuple(InputFile(number=number, path=f"{number:05d}", size=1, version="1") for number in range(2000))
    many = replace(MANIFEST, files=files)
    manifests.save(store, many)
    table, shaping = rows_of(0, [0]), many.shaping
    receipt = Receipt(
        file=0, first_row=0, rows_in=1, ok=1, quarantined=0, filtered=0, tokens={"v": 1, "topic": 1},
        fingerprints=PRINTS, version="0.1.0", last=True,
    )  # fmt: skip
    for file in files:
        name = part_name(file, Split(file=file.number, begin=0, end=1, last=True), shaping)
        (tmp_path / name).write_bytes(encode_part(table, replace(receipt, file=file.number)))
    started = time.monotonic()
    report = verify(store)
    assert report.ok, report.problems[:3]
    assert report.parts == 2000
    assert time.monotonic() - started < 10
