"""What a user can get wrong is told in one line, with an exit code that a script can use, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.data.verify import verify
from tests.jobs import ROOT, TRAP, Cli, Finished, assert_same_tree, parts, run_cli, tree_bytes, wait_for, write_lines
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
    return place.run("--keep", "text,m"), "no column 'm' in the first 3 rows"


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
    return place.run(), "without a row"


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
    return place.run(output=place.input / "a.jsonl" / "x"), "a.jsonl/x"


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
    before = tree_bytes(place.input)
    finished, word = fault(place)
    assert_one_line(finished, 2, word)
    assert not place.output.exists()
    if "input" not in fault.__name__:
        before = tree_bytes(place.input)
    assert tree_bytes(place.input) == before


@pytest.mark.parametrize("fault", [output_below_a_file, output_is_a_file], ids=lambda fault: fault.__name__)
def test_an_output_that_cannot_be_written_is_one_line_and_exit_1(place, fault):
    finished, word = fault(place)
    assert_one_line(finished, 1, word)
    assert not place.output.exists()


