"""Compressed files of lines: the same rows, members joined; a cut or damaged file is an error, never silent loss."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybert.data.estimate import estimate_rows
from raybert.data.files import list_inputs
from raybert.data.read import ReadSpec, read_splits
from raybert.data.splits import stream_task
from raybert.errors import InputError

ROWS = 3_000
TEXTS = [f"text {(at * 7919) % 100_003} of {at}" for at in range(ROWS)]
LINES = {
    "jsonl": ["", *[f'{{"text": "{text}"}}\n' for text in TEXTS]],
    "csv": ["text,n\n", *[f'"{text}",{at}\n' for at, text in enumerate(TEXTS)]],
    "tsv": ["n\ttext\n", *[f"{at}\t{text}\n" for at, text in enumerate(TEXTS)]],
    "txt": ["", *[f"{text}\n" for text in TEXTS]],
}


def zstd(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue().to_pybytes())


COMPRESS: dict[str, Any] = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress}


def read(path: Path) -> list[str]:
    inputs = list_inputs(str(path))
    spec = ReadSpec(
        root=inputs.root,
        format=inputs.format,
        text_column="text",
        keep=pa.schema([]),
        split_rows=100,
        split_bytes=1 << 20,
    )
    found: list[str] = []
    for split in read_splits(stream_task(inputs.files[0]), spec):
        assert split.bad.num_rows == 0
        found += split.rows["__text"].to_pylist()
    return found


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_rows_are_those_of_the_plain_file(tmp_path: Path, suffix: str, kind: str) -> None:
    """One member, or many that end anywhere."""
    content, path = "".join(LINES[kind]).encode(), tmp_path / f"a.{kind}.{suffix}"
    compress = COMPRESS[suffix]
    path.write_bytes(compress(content))
    assert read(path) == TEXTS
    path.write_bytes(b"".join(compress(content[at : at + 4_999]) for at in range(0, len(content), 4_999)))
    assert read(path) == TEXTS
    path.write_bytes(compress(b""))
    assert read(path) == []


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_cut_or_damaged_file_is_an_error(tmp_path: Path, suffix: str, kind: str) -> None:
    half = ROWS // 2
    first, second = ("".join(LINES[kind][part]).encode() for part in (slice(half + 1), slice(half + 1, None)))
    one, other = COMPRESS[suffix](first), COMPRESS[suffix](second)
    path = tmp_path / f"a.{kind}.{suffix}"
    for content in (
        one + other[:-1],
        one + other[:-5],
        one + other[: len(other) // 2],
        one + other[:2],
        one + b"something else",
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: damaged after row ")
        assert 0 <= int(message.removeprefix(f"{path}: damaged after row ").partition(":")[0]) <= ROWS
        assert "\n" not in message


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
def test_rows_of_compressed_files_are_estimated(tmp_path: Path, suffix: str) -> None:
    content = "".join(LINES["csv"] * 20).encode()
    compress = COMPRESS.get(suffix.removeprefix("."), bytes)
    (tmp_path / f"a.csv{suffix}").write_bytes(compress(content))
    inputs = list_inputs(str(tmp_path))
    assert estimate_rows(inputs.root, inputs.files) == pytest.approx(20 * ROWS, rel=0.2)
