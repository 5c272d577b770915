"""Input paths: what a URI means, which files lie below it, in which format, and whether they changed."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raybert.data.formats import FORMATS, KNOWN, compression_of, format_of
from raybert.data.globs import common_folder, matches, name_matches, spells_extension, split_pattern, split_query
from raybert.data.patience import Patient, StoreRefused
from raybert.data.splits import MAX_FILES, InputFile
from raybert.errors import InputError

_STREAM_BUFFER = 4 << 20  # an object store answers a few large requests faster than many small ones
_PASSWORD = re.compile(r"(?<=://)[^/?@]*:(?!\d+(?:[/?]|$))[^?]*@")  # user:password@; of host:port no slash follows
_A_PART = "part-000000-000000000000-0000000000000000.parquet"


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
class Source:
    """One place that was named as input: a file, a folder or a pattern.

    Attributes:
        folder: absolute local path or URI without query: of the folder, of the file's, or of the pattern's beginning.
        patterns: of the names below it; the file's name alone for a file, none for a folder.
        query: of the URI, with its question mark.
        named: it is a file, named without a wildcard.
        shown: as the caller wrote it, without secrets.
    """

    folder: str
    patterns: tuple[str, ...]
    query: str
    named: bool
    shown: str

    def lists(self, folder: str) -> bool:
        """Whether parts of a run in this folder, an absolute path or URI, would be found here."""
        top = self.folder.rstrip("/") + "/"
        if self.named or not f"{folder}/".startswith(top):
            return False
        names = [name for name in folder.removeprefix(top.rstrip("/")).split("/") if name]
        return not self.patterns or matches([*names, _A_PART], self.patterns)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of one input.

    Attributes:
        root: the folder above them all, or the one file.
        format: one of ``FORMATS``, one for all files.
        files: sorted by path and numbered in that order.
        skipped: paths of files that no format claims; names with ``_`` or ``.`` in front are not among them.
        sources: what was named.
    """

    root: InputRoot
    format: str
    files: tuple[InputFile, ...]
    skipped: tuple[str, ...]
    sources: tuple[Source, ...]


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn what a filesystem raises while ``place`` is opened or listed into an InputError of one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{place}: no such file or folder") from error
    except StoreRefused as error:
        raise InputError(f"{place}: {error.strerror}") from error
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

    Credentials come from the environment, as pyarrow's filesystems read them; an endpoint too, or from the URI's query.
    What an object store fails at for a moment is tried again: see `raybert.data.patience`.

    Raises:
        InputError: no filesystem reads such a URI, or it holds a password: a manifest would keep it.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    if (keyless := _PASSWORD.sub("", uri)) != uri:
        raise InputError(
            f"{_shown(keyless)}: keys stand in the URI, which goes into a run's manifest; set them in the environment "
            "instead, for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (ValueError, OSError, pa.ArrowException) as error:
        shown, remedy = _shown(uri), "use a local path, file://, s3:// or gs://"
        reason = first_line(error).replace(uri, shown)
        raise InputError(f"{shown}: {reason}; {remedy}") from error
    if filesystem.type_name == "local":
        return filesystem, path
    return pafs.PyFileSystem(Patient(filesystem)), path


def list_inputs(uris: str | Sequence[str], input_format: str = "auto", *, root: str | None = None) -> Inputs:
    """The input files: files, folders, and patterns such as ``in/2024-*/*.jsonl.gz`` or ``s3://bucket/**/*.csv``.

    Of a folder, and of a folder that a pattern matches, all files below it count that the format claims. Names that
    begin with ``_`` or ``.`` are passed by, as are files whose extension belongs to no format. A file that is named
    without a wildcard, or by a pattern that spells its extension, needs none when the format is given. A file found
    twice counts once.

    A file's path below the root is its name in the run. The root of one file or folder is that itself, of a pattern the
    folder in front of the first wildcard, of several the folder above them all. When the list changes, that folder may:
    then the same files have other names, are computed anew, and count as vanished under the old ones. An earlier root
    that still holds them all is kept, so that this happens only when the list grows beyond it.

    Args:
        uris: a local path or URI, or several; patterns use ``*``, ``?``, ``[..]`` and ``**``. A local path that exists
            is taken as it stands.
        input_format: ``auto`` goes by the extensions, or one of ``FORMATS``.
        root: of an earlier run that this listing continues.

    Raises:
        InputError: nothing there, nothing readable, more than one format, a format that is not read, or places that
            have no folder in common.
    """
    if input_format not in ("auto", *FORMATS):
        raise InputError(f"input format {input_format!r} is not one of auto, {', '.join(FORMATS)}")
    given = [uris] if isinstance(uris, str) else list(uris)
    if not given:
        raise InputError("input: none given; name a file, folder, URI or pattern")
    listed = [_find(uri) for uri in given]
    sources = tuple(source for source, _ in listed)
    infos = {info.path: info for _, found in listed for info in found}
    top, inside = _root(given, sources, root, infos)
    found = {path.removeprefix(inside): info for path, info in infos.items()}
    spelled = {
        info.path.removeprefix(inside)
        for source, of_source in listed
        for info in of_source
        if source.named or spells_extension(source.patterns)
    }
    chosen, paths = _choose(top, sorted(found), input_format, spelled)
    if len(paths) > MAX_FILES:
        raise InputError(f"{top.shown}: {len(paths)} files exceed the limit of {MAX_FILES}; join small files")
    files = tuple(
        InputFile(number=number, path=name, size=found[name].size, version=_version(found[name]))
        for number, name in enumerate(paths)
    )
    skipped = tuple(sorted(set(found) - set(paths)))
    return Inputs(root=top, format=chosen, files=files, skipped=skipped, sources=sources)


def input_root(uri: str) -> InputRoot:
    """The root at a path or URI that a listing gave; its files are not looked for.

    Raises:
        InputError: nothing is there.
    """
    shown = _shown(uri)
    with reading(shown):
        filesystem, path = open_uri(uri)
        top = filesystem.get_file_info(path)
    if top.type == pafs.FileType.NotFound:
        raise InputError(f"{shown}: no such file or folder")
    place = uri if "://" in uri else path
    return InputRoot(uri=place, is_file=bool(top.type == pafs.FileType.File), shown=shown)


def _find(uri: str) -> tuple[Source, list[Any]]:
    """One named place, and the FileInfo of each file there."""
    shown = _shown(uri)
    with reading(shown):
        folder, patterns = split_pattern(uri)
        if "://" not in uri and Path(uri).expanduser().exists():
            folder, patterns = uri, ()
        filesystem, path = open_uri(folder)
        local = filesystem.type_name == "local"
        place, query = (path, "") if local else split_query(folder)
        place = place.rstrip("/") or "/"
        if patterns:
            found = list(_expand(filesystem, path, patterns))
            if not found:
                raise InputError(f"{shown}: the pattern matches no file")
            return Source(folder=place, patterns=patterns, query=query, named=False, shown=shown), found
        top = filesystem.get_file_info(path)
        if top.type == pafs.FileType.NotFound:
            raise InputError(f"{shown}: no such file or folder")
        if top.type == pafs.FileType.File:
            parent, _, name = place.rpartition("/")
            named = Source(folder=parent or "/", patterns=(name,), query=query, named=True, shown=shown)
            return named, [top]
        whole = Source(folder=place, patterns=(), query=query, named=False, shown=shown)
        return whole, _files_below(filesystem, path)


def _root(
    given: Sequence[str], sources: Sequence[Source], earlier: str | None, files: Collection[str]
) -> tuple[InputRoot, str]:
    """The root of all files, and what stands in front of their names in the filesystem's paths."""
    if earlier is not None and len({source.query for source in sources}) == 1:
        kept, query = split_query(earlier)
        same = [common_folder([kept, source.folder]) == kept.rstrip("/") for source in sources]
        if all(same) and query == sources[0].query:
            inside = _inside(earlier)
            if all(path.startswith(inside) for path in files):
                return InputRoot(uri=earlier, is_file=False, shown=_shown(earlier)), inside
    if len(given) == 1 and not (sources[0].patterns and not sources[0].named):
        uri, shown = given[0], sources[0].shown
        uri = uri if "://" in uri else open_uri(uri)[1]
        if sources[0].named:
            (path,) = files
            return InputRoot(uri=uri, is_file=True, shown=shown), path.removesuffix(PurePosixPath(path).name)
        return InputRoot(uri=uri, is_file=False, shown=shown), _inside(uri)
    folder = common_folder([source.folder for source in sources])
    if folder is None or len({source.query for source in sources}) > 1:
        places = ", ".join(source.shown for source in sources[:5])
        raise InputError(f"input: {places}: not in one bucket or on one disk; bring them together, or run them apart")
    uri = folder + sources[0].query
    return InputRoot(uri=uri, is_file=False, shown=_shown(folder)), _inside(uri)


def _inside(uri: str) -> str:
    """What stands in front of names below a folder."""
    return open_uri(uri)[1].rstrip("/") + "/"


def _expand(filesystem: Any, folder: str, patterns: tuple[str, ...]) -> Iterator[Any]:
    """The files that patterns of names below a folder mean; folders that they can't lead into are not listed."""
    top = folder.rstrip("/") + "/"
    first, rest = patterns[0], patterns[1:]
    if first == "**":
        for info in filesystem.get_file_info(pafs.FileSelector(folder, recursive=True)):
            if info.type == pafs.FileType.File and matches(info.path.removeprefix(top).split("/"), patterns):
                yield info
        return
    for info in filesystem.get_file_info(pafs.FileSelector(folder)):
        if not name_matches(info.path.removeprefix(top).rstrip("/"), first):
            continue
        if info.type == pafs.FileType.Directory:
            yield from _expand(filesystem, info.path, rest) if rest else _files_below(filesystem, info.path)
        elif info.type == pafs.FileType.File and not rest:
            yield info


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


def _shown(uri: str) -> str:
    """A URI without user, password and query: they may be secrets, and messages end in logs."""
    if "://" not in uri:
        return uri
    scheme, _, place = split_query(uri)[0].partition("://")
    bucket, slash, path = place.partition("/")
    return f"{scheme}://{bucket.rpartition('@')[2]}{slash}{path}"


def _version(info: Any) -> str:
    return "" if info.mtime_ns is None else str(info.mtime_ns)


def _files_below(filesystem: Any, path: str) -> list[Any]:
    """FileInfo of the files below a folder, without names that begin with ``_`` or ``.``."""
    prefix = path.rstrip("/") + "/"
    return [
        info
        for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        if info.type == pafs.FileType.File and matches(info.path.removeprefix(prefix).split("/"), ())
    ]


def _choose(root: InputRoot, names: list[str], input_format: str, spelled: Collection[str]) -> tuple[str, list[str]]:
    """The format of the run and the paths of its files, sorted; ``spelled`` ones need no extension of the format."""
    formats = {name: format_of(name) for name in names}
    if input_format == "auto":
        present = [name for name in FORMATS if name in formats.values()]
        if len(present) > 1:
            examples = " and ".join(
                f"{name} ({next(path for path in names if formats[path] == name)})" for name in present
            )
            raise InputError(f"{root.shown}: holds files of {examples}; name one with --input-format")
        input_format = present[0] if present else "auto"
        spelled = ()
    chosen = [name for name in names if formats[name] == input_format or name in spelled]
    if chosen:
        return input_format, chosen
    if root.is_file:
        raise InputError(f"{root.shown}: unknown format; raybert reads {KNOWN}; name one with --input-format")
    wanted = KNOWN if input_format == "auto" else f"{input_format} ({' '.join(FORMATS[input_format])})"
    raise InputError(f"{root.shown}: no file of {wanted}; {_what_is_there(names)}")


def _what_is_there(names: list[str]) -> str:
    if not names:
        return "it holds no files"
    kinds = Counter(PurePosixPath(name).suffix or "no extension" for name in names)
    return "it holds " + ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(5))
