"""What a file's name announces: its format, its compression, and what stands between fields."""

from __future__ import annotations

from pathlib import PurePosixPath

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "text": (".txt",),
}
"""Formats that are read, with the extensions that mean them; all but Parquet's may be followed by a compression's."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Extensions of compressed files, with pyarrow's names; members that follow one another are read as one file."""

KNOWN = ", ".join(f"{name} ({' '.join(extensions)})" for name, extensions in FORMATS.items())
"""The formats in words."""


def compression_of(path: str) -> str | None:
    """The compression that a file's name announces, as pyarrow calls it."""
    return COMPRESSIONS.get(PurePosixPath(path.lower()).suffix)


def format_of(path: str) -> str | None:
    """The format that a file's extension announces, None where it announces none of ``FORMATS``."""
    name, inner = path.lower(), _inner(path)
    for candidate, extensions in FORMATS.items():
        if (name if candidate == "parquet" else inner).endswith(extensions):
            return candidate
    return None


def delimiter_of(path: str) -> str:
    """What stands between the fields of a CSV file of this name: a tab in ``.tsv`` files, else a comma."""
    return "\t" if _inner(path).endswith(".tsv") else ","


def _inner(path: str) -> str:
    """The name without the extension of a compression, in small letters."""
    name = path.lower()
    return name if compression_of(name) is None else name.rpartition(".")[0]
