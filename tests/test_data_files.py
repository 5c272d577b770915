"""Input paths: what is found, in which format, and what is said when there is nothing to read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raybert.data.files import (
    InputRoot,
    check_unchanged,
    list_inputs,
    open_stream,
    open_uri,
    reading,
)
from raybert.data.formats import format_of
from raybert.errors import InputError


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"text": "a"}\n')
    return folder


def refusal(uri: object, input_format: str = "auto") -> str:
    with pytest.raises(InputError) as caught:
        list_inputs(str(uri), input_format)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_gives_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "a/z.jsonl.gz", "a-b.ndjson", "a/_tmp/x.jsonl", "_SUCCESS", ".hidden.jsonl", "c.JSON")
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("x")
    inputs = list_inputs(str(tmp_path))
    assert [file.path for file in inputs.files] == ["a-b.ndjson", "a/z.jsonl.gz", "b.jsonl", "c.JSON"]
    assert [file.number for file in inputs.files] == [0, 1, 2, 3]
    assert inputs.format == "jsonl"
    assert inputs.skipped == ("README.md",)
    assert inputs.root == InputRoot(uri=str(tmp_path), is_file=False, shown=str(tmp_path))
    stat = (tmp_path / "b.jsonl").stat()
    assert (inputs.files[2].size, inputs.files[2].version) == (stat.st_size, str(stat.st_mtime_ns))
    assert pickle.loads(pickle.dumps(inputs)) == inputs


def test_one_file_is_an_input_and_keeps_its_name(tmp_path: Path) -> None:
    write(tmp_path, "_a.jsonl", "data.bin")
    inputs = list_inputs(str(tmp_path / "_a.jsonl"))
    assert [file.path for file in inputs.files] == ["_a.jsonl"]
    assert inputs.root.show(inputs.files[0]) == str(tmp_path / "_a.jsonl")
    given = list_inputs(str(tmp_path / "data.bin"), "jsonl")
    with open_stream(given.root, given.files[0]) as stream:
        assert stream.read(100) == b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.parquet.gz", None),
        ("a.jsonl", "jsonl"),
        ("a.json.gz", "jsonl"),
        ("a.txt", "text"),
        ("a.txt.gz", "text"),
        ("a.csv", "csv"),
        ("a.TSV.bz2", "csv"),
        ("a.jsonl.zst", "jsonl"),
        ("a.txt.xz", None),
        ("a.parquet.zst", None),
        ("a.gz", None),
        ("jsonl", None),
    ],
)
def test_the_extension_tells_the_format(name: str, expected: str | None) -> None:
    assert format_of(name) == expected


def test_relative_paths_home_and_file_uris_mean_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "in/a b%20c.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = str(tmp_path / "in")
    for uri in ("in", "./in/", "~/in", "in/../in"):
        assert open_uri(uri) == (pafs.LocalFileSystem(), path)
        assert list_inputs(uri).root.uri == path, "workers run in other folders"
    inputs = list_inputs(f"file://{path}")
    assert [file.path for file in inputs.files] == ["a b%20c.txt"]
    with open_stream(inputs.root, inputs.files[0]) as stream:
        assert stream.read(5) == b'{"tex'


def test_object_stores_open_without_a_call_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    filesystem, path = open_uri("s3://bucket/in?region=us-east-1&endpoint_override=127.0.0.1:1")
    assert filesystem.type_name == "py::s3"
    assert path == "bucket/in"


def test_messages_never_show_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal("s4://bucket/in?token=hush")
    assert message.startswith("s4://bucket/in: ")
    assert "hush" not in message
    assert message.endswith("use a local path, file://, s3:// or gs://")


def test_what_cannot_be_an_input_is_said_in_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nope") == f"{tmp_path}/nope: no such file or folder"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty") == (
        f"{tmp_path}/empty: no file of parquet (.parquet .pq), jsonl (.jsonl .ndjson .json), "
        "csv (.csv .tsv), text (.txt); it holds no files"
    )
    write(tmp_path / "tables", "a.xls", "b/c.xls", "LICENSE")
    message = refusal(tmp_path / "tables")
    assert message.endswith("text (.txt); it holds 2 x .xls, 1 x no extension")
    assert refusal(tmp_path / "tables/a.xls") == (
        f"{tmp_path}/tables/a.xls: unknown format; raybert reads parquet (.parquet .pq), jsonl (.jsonl .ndjson "
        ".json), csv (.csv .tsv), text (.txt); name one with --input-format"
    )
    assert refusal(tmp_path, "xls") == "input format 'xls' is not one of auto, parquet, jsonl, csv, text"


def test_a_folder_of_two_formats_needs_to_be_told_which(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", "b.txt", "c.txt")
    assert refusal(tmp_path) == (
        f"{tmp_path}: holds files of jsonl (a.jsonl) and text (b.txt); name one with --input-format"
    )
    inputs = list_inputs(str(tmp_path), "text")
    assert [file.path for file in inputs.files] == ["b.txt", "c.txt"]
    assert inputs.skipped == ("a.jsonl",)
    assert refusal(tmp_path, "parquet") == (
        f"{tmp_path}: no file of parquet (.parquet .pq); it holds 2 x .txt, 1 x .jsonl"
    )


def test_what_a_filesystem_raises_becomes_one_line() -> None:
    def said(error: Exception) -> str:
        with pytest.raises(InputError) as caught, reading("in/a"):
            raise error
        return str(caught.value)

    assert said(PermissionError(13, "x")) == "in/a: no permission to read it"
    assert said(FileNotFoundError(2, "x")) == "in/a: no such file or folder"
    assert said(OSError("AWS Error ACCESS_DENIED\nmore")) == "in/a: can't be read: AWS Error ACCESS_DENIED"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "in/a.txt")
    (tmp_path / "in").chmod(0)
    try:
        assert refusal(tmp_path / "in").endswith("no permission to read it")
    finally:
        (tmp_path / "in").chmod(0o755)


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    inputs = list_inputs(str(tmp_path))
    check_unchanged(inputs.root, inputs.files[0])
    os.utime(tmp_path / "a.txt", ns=(5, 5))
    with pytest.raises(InputError, match=r"a\.txt: changed since the run began .*now 14 bytes, version 5\)"):
        check_unchanged(inputs.root, inputs.files[0])
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a\.txt: no such file, though it was there"):
        check_unchanged(inputs.root, inputs.files[0])
