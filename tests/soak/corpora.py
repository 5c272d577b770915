"""Corpora of any size: rows of 2 to 20 KB of real text, as JSON lines, gzipped JSON lines, or one row group."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import stdlib_docstrings

FORMATS = ("jsonl", "jsonl.gz", "parquet")
MIN_CHARS, MAX_CHARS = 2_000, 20_000


def write_corpus(path: Path, kind: str, size: int) -> Path:
    """Write ``size`` bytes of texts, a few at most over it, as a file of one of `FORMATS`."""
    if kind == "parquet":
        texts = pa.array(_texts(size), pa.large_string())
        with pq.ParquetWriter(path, pa.schema([("text", pa.large_string())])) as writer:
            writer.write_table(pa.table({"text": texts}), row_group_size=len(texts))
    elif kind == "jsonl.gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            _write_lines(file, size)
    else:
        with path.open("wb") as file:
            _write_lines(file, size)
    return path


def _write_lines(file: IO[bytes], size: int) -> None:
    for text in _texts(size):
        file.write(json.dumps({"text": text}).encode() + b"\n")


def _texts(size: int) -> Iterator[str]:
    """Stretches of the standard library's docstrings, of random place and length."""
    pool = "\n\n".join(stdlib_docstrings())
    rng = np.random.default_rng(0)
    written = 0
    while written < size:
        chars = int(rng.integers(MIN_CHARS, MAX_CHARS))
        begin = int(rng.integers(0, len(pool) - chars))
        yield pool[begin : begin + chars]
        written += chars
