"""What a user can get wrong is told in one line, with an exit code that a script can use, and nothing half-written."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.data.part import content_digest, read_receipt
from raybert.data.store import Store
from tests.jobs import Cli, Finished, armed, family, left_in, parts, run_cli, tree_bytes, write_lines
from tests.tiny import write_json, write_tiny_checkpoint


@dataclass
class Place:
    """A folder for one wrong command: an input of three rows, a model, an output that is not there."""

    folder: Path
    model: Path

    @property
    def input(self) -> Path:
        return self.folder / "in"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(self, *words: object, model: object = None, input: object = None, output: object = None) -> Finished:  # noqa: A002
        return run_cli(
            *("run", "embed", "--model", model or self.model),
            *("--input", input or self.input, "--output", output or self.output, *words),
        )


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Place:
    write_lines(tmp_path / "in" / "a.jsonl", [{"text": f"text {at}", "n": at} for at in range(3)])
    return Place(tmp_path, tiny)


def broken(place: Place, break_it: Callable[[Path], object]) -> Path:
    model = Path(shutil.copytree(place.model, place.folder / "broken"))
    break_it(model)
    return model


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def wrong_path(place):
    return place.run(input=place.folder / "inn"), "inn: no such file or folder"


def missing_column(place):
    return place.run("--text-column", "txt"), "did you mean 'text'?"


def missing_kept_column(place):
    return place.run("--keep", "text,m"), "column 'm' is not in the first 3 rows"


def missing_parquet_column(place):
    pq.write_table(pa.table({"text": ["a"]}), place.folder / "a.parquet")
    return place.run("--keep", "m", input=place.folder / "a.parquet"), "'m'"


def column_of_integers(place):
    return place.run("--text-column", "n"), "column 'n'"


def parquet_column_of_integers(place):
    pq.write_table(pa.table({"text": [1]}), place.folder / "a.parquet")
    return place.run(input=place.folder / "a.parquet"), "column 'text'"


def no_rows(place):
    write_lines(place.input / "a.jsonl", [])
    return place.run(), "no rows in any of 1 jsonl files"


def no_files(place):
    (place.input / "a.jsonl").unlink()
    return place.run(), "no file of"


def two_formats(place):
    (place.input / "b.txt").write_text("x")
    return place.run(), "--input-format"


def damaged_parquet(place):
    pq.write_table(pa.table({"text": ["a"] * 100}), place.folder / "a.parquet")
    cut(place.folder / "a.parquet", 0.5)
    return place.run(input=place.folder / "a.parquet"), "a.parquet"


def output_below_a_file(place):
    (place.folder / "file").write_text("mine")
    return place.run(output=place.folder / "file" / "below" / "it"), "file/below/it"


def output_is_a_file(place):
    (place.folder / "file").write_text("mine")
    return place.run(output=place.folder / "file"), "file"


def output_of_somebody_else(place):
    write_json(place.folder / "other" / "mine.json", {})
    return place.run(output=place.folder / "other"), "not raybert's (mine.json)"


def output_inside_input(place):
    return place.run(output=place.input / "out"), "lies inside the input"


def output_is_input(place):
    return place.run(output=place.input), "lies inside the input"


def output_inside_input_by_a_link(place):
    (place.folder / "link").symlink_to(place.input)
    return place.run(output=place.folder / "link" / "out"), "lies inside the input"


def unknown_model(place):
    return place.run(model=place.folder / "nothing"), "nothing"


def unknown_hub_id(place):
    return place.run(model="nobody/nothing"), "nobody/nothing"


def model_without_weights(place):
    return place.run(model=broken(place, lambda model: (model / "model.safetensors").unlink())), "weights"


def cut_weights(place):
    return place.run(model=broken(place, lambda model: cut(model / "model.safetensors", 0.5))), "model.safetensors"


def corrupt_weights(place):
    return place.run(
        model=broken(place, lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 100))
    ), "model.safetensors"


def model_without_a_vocabulary(place):
    def forget(model: Path) -> None:
        for name in ("vocab.txt", "tokenizer.json"):
            (model / name).unlink()

    return place.run(model=broken(place, forget)), "vocab"


def another_architecture(place):
    def rename(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        write_json(model / "config.json", {**config, "model_type": "gpt2"})

    return place.run(model=broken(place, rename)), "gpt2"


def unknown_task(place):
    return run_cli("run", "embedd", "--model", place.model, "--input", place.input, "--output", place.output), "embedd"


def unknown_option(place):
    return place.run("--option", "dimension=3"), "dimensions"


def dimensions_out_of_range(place):
    return place.run("--dimensions", "33"), "from 1 to 32"


def wrong_actors(place):
    return place.run("--actors", "0"), "actors '0'"


def wrong_size(place):
    return place.run("--split-bytes", "lots"), "split-bytes 'lots'"


def wrong_vector_type(place):
    return place.run("--vector-type", "int8"), "vector-type"


def two_heads_of_one_name(place):
    return place.run("embed"), "named twice"


def head_of_a_kept_columns_name(place):
    write_lines(place.input / "a.jsonl", [{"text": "a", "embed": 1}])
    return place.run("--keep", "embed"), "another column has that name"


FAULTS = [
    wrong_path,
    missing_column,
    missing_kept_column,
    missing_parquet_column,
    column_of_integers,
    parquet_column_of_integers,
    no_rows,
    no_files,
    two_formats,
    damaged_parquet,
    output_of_somebody_else,
    output_inside_input,
    output_is_input,
    output_inside_input_by_a_link,
    unknown_model,
    unknown_hub_id,
    model_without_weights,
    cut_weights,
    corrupt_weights,
    model_without_a_vocabulary,
    another_architecture,
    unknown_task,
    unknown_option,
    dimensions_out_of_range,
    wrong_actors,
    wrong_size,
    wrong_vector_type,
    two_heads_of_one_name,
    head_of_a_kept_columns_name,
]


def assert_one_line(finished: Finished, code: int, word: str) -> None:
    assert finished.code == code, finished
    assert finished.out == ""
    (line,) = finished.errors
    assert line.startswith("error: "), line
    assert word in line, line
    assert finished.err.endswith(f"{line}\n")  # progress may stand before it, nothing after it


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_arguments_is_one_line_and_exit_2(place, fault):
    finished, word = fault(place)
    assert_one_line(finished, 2, word)
    assert not place.output.exists()
    assert not (place.input / "out").exists()
    assert not (place.input / "_raybert").exists()


@pytest.mark.parametrize("fault", [output_below_a_file, output_is_a_file], ids=lambda fault: fault.__name__)
def test_an_output_that_cannot_be_written_is_one_line_and_exit_1(place, fault):
    finished, word = fault(place)
    assert_one_line(finished, 1, word)
    assert (place.folder / "file").read_text() == "mine"


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run over the three rows, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_lines(folder / "in" / "a.jsonl", [{"text": f"text {at}", "n": at} for at in range(3)])
    place = Place(folder, tiny)
    done = place.run("--dtype", "float32")
    assert (done.code, done.errors) == (0, [])
    assert done.out.startswith(f"{place.output}: 3 rows, 0 quarantined, 1 part, ")
    return place


def test_a_second_start_of_a_finished_run_is_quick_and_changes_nothing(finished):
    before = tree_bytes(finished.output)
    with Cli("run", "embed", "--model", finished.model, "--input", finished.input, "--output", finished.output) as cli:
        while cli.process.poll() is None:
            assert len(family(cli.folder)) <= 1  # itself: no Ray beside it
        done = cli.finish()
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{finished.output}: complete already, 3 rows; nothing to do\n"
    assert tree_bytes(finished.output) == before


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--model", "other"], "head embed: fingerprint: "),
        (["--pooling", "cls"], "head embed: pooling: this output was made with mean, not cls"),
        (["--split-rows", "9"], "split-rows: this output was made with 16384, not 9"),
        (["--keep", "n"], "keep: "),
        (["--dtype", "bfloat16"], "dtype: this output was made with float32, not bfloat16"),
        (["--vector-type", "float16"], "vector-type: "),
        (["--limit", "2"], "limit: this output was made with none, not 2"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_another_run_into_the_same_output_is_refused(finished, tmp_path, words, word):
    other = write_tiny_checkpoint(tmp_path / "other", seed=9)
    before = tree_bytes(finished.output)
    done = finished.run(*(str(other) if each == "other" else each for each in words))
    assert_one_line(done, 2, word)
    assert "--overwrite" in done.err
    assert tree_bytes(finished.output) == before


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path | None]:
    """A file system in memory of so many bytes; None where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "raybert-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_what_is_committed_stays(place):
    rows = [{"text": f"text {at}", "pad": random.Random(at).randbytes(1500).hex()} for at in range(1000)]
    write_lines(place.input / "a.jsonl", rows)
    words = ("run", "embed", "--model", place.model, "--input", place.input, "--keep", "pad", "--split-rows", 50)
    with small_disk(place.folder / "disk", "size=1m") as disk:
        output = (disk or place.folder) / "out"
        done = run_cli(*words, "--output", output, env={} if disk else armed(full_after=5))
        assert_one_line(done, 1, "no room for ")
        assert f"error: {output}/" in done.err
        assert left_in(output) == ["manifest.json"]
        committed = parts(output)
        assert 1 <= len(committed) < 20
        for name in committed:
            assert read_receipt(Store(output), name).rows_in == 50
            assert content_digest(Store(output), name) == read_receipt(Store(output), name).content_sha256


def test_a_read_only_disk_is_told_before_anything_is_started(place):
    with small_disk(place.folder / "disk", "ro,size=1m") as disk:
        if disk is None:
            pytest.skip("mounting needs root")
        done = place.run(output=disk / "out")
        assert_one_line(done, 1, f"error: {disk}/out: read-only file system; choose another --output")
        assert list(disk.iterdir()) == []
