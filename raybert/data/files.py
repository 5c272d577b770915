"""Input paths: what a URI means, which files lie below it, in which format, and whether they changed."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raybert.data.splits import MAX_FILES, InputFile
from raybert.errors import InputError

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "text": (".txt",),
}
"""Formats that are read, with the extensions that mean them; those of lines may end in ``.gz`` as well."""

_STREAM_BUFFER = 4 << 20  # an object store answers a few large requests faster than many small ones
_KNOWN = ", ".join(f"{name} ({' '.join(extensions)})" for name, extensions in FORMATS.items())


@dataclass(frozen=True, kw_only=True)
class InputRoot:
    """Where the input lies; picklable, the filesystem is opened where it is used.

    Attributes:
        uri: absolute local path or URI of the folder, or of the one file.
        is_file: ``uri`` names one file; its path below the root is its name.
        shown: the same as the caller wrote it, without secrets, for messages.
    """

    uri: str
    is_file: bool
    shown: str

    def locate(self, file: InputFile) -> tuple[Any, str]:
        """The pyarrow filesystem and the file's path in it."""
        filesystem, path = open_uri(self.uri)
        return filesystem, path if self.is_file else f"{path.rstrip('/')}/{file.path}"

    def show(self, file: InputFile) -> str:
        """The file's place for a message."""
        return self.shown if self.is_file else f"{self.shown.rstrip('/')}/{file.path}"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of one input.

    Attributes:
        root: where they lie.
        format: ``parquet``, ``jsonl`` or ``text``, one for all files.
        files: sorted by path and numbered in that order.
        skipped: paths of files that no format claims; names with ``_`` or ``.`` in front are not among them.
    """

    root: InputRoot
    format: str
    files: tuple[InputFile, ...]
    skipped: tuple[str, ...]


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn what a filesystem raises while ``place`` is opened or listed into an InputError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{place}: no such file or folder") from error
    except PermissionError as error:
        raise InputError(f"{place}: no permission to read it") from error
    except pa.ArrowMemoryError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place}: can't be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text: what libraries add below is of no use in a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_uri(uri: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a local path (absolute, relative, ``~``) or URI, and the path in it.

    Credentials and endpoints come from the environment, as pyarrow's filesystems read them.

    Raises:
        InputError: no filesystem reads such a URI.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (ValueError, OSError, pa.ArrowException) as error:
        shown, remedy = _shown(uri), "use a local path, file://, s3:// or gs://"
        reason = first_line(error).replace(uri, shown)
        raise InputError(f"{shown}: {reason}; {remedy}") from error
    return filesystem, path


def list_inputs(uri: str, input_format: str = "auto") -> Inputs:
    """The input files at ``uri``: one file, or all files of a folder and its folders that the format claims.

    Names that begin with ``_`` or ``.`` are passed by, as are files whose extension belongs to no format. A
    single file needs no extension when the format is given.

    Args:
        uri: local path or URI.
        input_format: ``auto`` goes by the extensions, or one of ``FORMATS``.

    Raises:
        InputError: nothing there, nothing readable, more than one format, or a format that is not read.
    """
    if input_format not in ("auto", *FORMATS):
        raise InputError(f"input format {input_format!r} is not one of auto, {', '.join(FORMATS)}")
    shown = _shown(uri)
    with reading(shown):
        filesystem, path = open_uri(uri)
        top = filesystem.get_file_info(path)
        if top.type == pafs.FileType.NotFound:
            raise InputError(f"{shown}: no such file or folder")
        is_file = bool(top.type == pafs.FileType.File)
        found = {PurePosixPath(path).name: top} if is_file else _files_below(filesystem, path)
    root = InputRoot(uri=uri if "://" in uri else path, is_file=is_file, shown=shown)
    chosen, paths = _choose(root, sorted(found), input_format)
    if len(paths) > MAX_FILES:
        raise InputError(f"{shown}: {len(paths)} files exceed the limit of {MAX_FILES}; join small files")
    files = tuple(
        InputFile(number=number, path=name, size=found[name].size, version=_version(found[name]))
        for number, name in enumerate(paths)
    )
    return Inputs(root=root, format=chosen, files=files, skipped=tuple(sorted(set(found) - set(paths))))


def open_stream(root: InputRoot, file: InputFile) -> Any:
    """The file's bytes from its start, decompressed as its name says; a context manager with ``read``.

    Raises:
        InputError: it can't be opened.
    """
    with reading(root.show(file)):
        filesystem, path = root.locate(file)
        return filesystem.open_input_stream(path, compression_of(path), _STREAM_BUFFER)


def check_unchanged(root: InputRoot, file: InputFile) -> None:
    """Refuse a file that is no longer the one that the run listed: its rows would go under a wrong name.

    Raises:
        InputError: it is gone, or its size or version differs.
    """
    place = root.show(file)
    with reading(place):
        filesystem, path = root.locate(file)
        info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise InputError(
            f"{place}: no such file, though it was there when the run began; node {socket.gethostname()} misses it, "
            "and every node has to reach the input"
        )
    if (info.size, _version(info)) != (file.size, file.version):
        was, now = (
            f"{file.size} bytes, version {file.version}",
            f"{info.size} bytes, version {_version(info)}",
        )
        where = f"as node {socket.gethostname()} sees it"
        raise InputError(f"{place}: changed since the run began ({was}; now {now}), {where}; run again")


def compression_of(path: str) -> str | None:
    """The compression that a file's name announces, as pyarrow calls it."""
    return "gzip" if path.lower().endswith(".gz") else None


def format_of(path: str) -> str | None:
    """The format that a file's extension announces, None where it announces none of ``FORMATS``."""
    name = path.lower()
    for candidate, extensions in FORMATS.items():
        inner = name.removesuffix(".gz") if candidate != "parquet" else name
        if inner.endswith(extensions):
            return candidate
    return None


def _shown(uri: str) -> str:
    """A URI without user, password and query: they may be secrets, and messages end in logs."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    place = rest.partition("?")[0]
    bucket, slash, path = place.partition("/")
    return f"{scheme}://{bucket.rpartition('@')[2]}{slash}{path}"


def _version(info: Any) -> str:
    return "" if info.mtime_ns is None else str(info.mtime_ns)


def _files_below(filesystem: Any, path: str) -> dict[str, Any]:
    """Path below the folder -> FileInfo, without names that begin with ``_`` or ``.``."""
    selector = pafs.FileSelector(path, recursive=True)
    prefix = path.rstrip("/") + "/"
    found = {}
    for info in filesystem.get_file_info(selector):
        name = info.path.removeprefix(prefix)
        hidden = any(part.startswith(("_", ".")) for part in name.split("/"))
        if info.type == pafs.FileType.File and not hidden:
            found[name] = info
    return found


def _choose(root: InputRoot, names: list[str], input_format: str) -> tuple[str, list[str]]:
    """The format of the run and the paths of its files, sorted."""
    if root.is_file and input_format != "auto":
        return input_format, names
    formats = {name: format_of(name) for name in names}
    if input_format == "auto":
        present = [name for name in FORMATS if name in formats.values()]
        if len(present) > 1:
            examples = " and ".join(
                f"{name} ({next(path for path in names if formats[path] == name)})" for name in present
            )
            raise InputError(f"{root.shown}: holds files of {examples}; name one with --input-format")
        input_format = present[0] if present else "auto"
    chosen = [name for name in names if formats[name] == input_format]
    if chosen:
        return input_format, chosen
    if root.is_file:
        raise InputError(f"{root.shown}: unknown format; raybert reads {_KNOWN}; name one with --input-format")
    wanted = _KNOWN if input_format == "auto" else f"{input_format} ({' '.join(FORMATS[input_format])})"
    raise InputError(f"{root.shown}: no file of {wanted}; {_what_is_there(names)}")


def _what_is_there(names: list[str]) -> str:
    if not names:
        return "it holds no files"
    kinds = Counter(PurePosixPath(name).suffix or "no extension" for name in names)
    return "it holds " + ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5))
