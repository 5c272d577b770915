"""A run's output folder: whole files appear under their names, or nothing does.

``Store.write`` is the only way anything gets into OUTPUT. The bytes are complete before it opens a file,
and they reach their final name in one step: on a local disk by ``os.replace`` of a temporary that was
fsynced, in an object store by a server-side copy of a temporary whose stored size was checked. A stream to
a final name is never opened, because pyarrow completes an upload even when the writer raised. What an object
store fails at for a moment is tried again (`raybert.data.patience`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs

from raybert.data.files import open_uri
from raybert.data.patience import PATIENCE, CutShort, StoreRefused, cause
from raybert.errors import OutputError

TEMPORARIES = "_raybert/tmp"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_ATTEMPTS = 3  # a sweep may take a temporary or its folder from under a late writer; once is the usual case


class Store:
    """One folder on a local disk or in an object store; picklable, opened on first use.

    Names are relative to the folder, with ``/`` between parts (``_quarantine/part-...``).

    Args:
        uri: a local path (made absolute here, since workers run in other folders) or a pyarrow URI: s3://, gs://...
        filesystem: a pyarrow filesystem in which ``uri`` is a path; by default the URI names it.
    """

    def __init__(self, uri: str | os.PathLike[str], *, filesystem: pafs.FileSystem | None = None) -> None:
        text = os.fspath(uri)
        is_path = filesystem is None and "://" not in text
        self.uri = str(Path(text).expanduser().resolve()) if is_path else text
        self._given = filesystem
        self._opened: tuple[pafs.FileSystem, str] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Carry the URI (and a filesystem that was given), never an open connection."""
        return (_rebuild, (self.uri, self._given))

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def folder(self) -> Path | None:
        """The folder as a local path; None for an object store."""
        filesystem, root = self._open()
        return Path(root) if filesystem.type_name == "local" else None

    def place(self, name: str) -> str:
        """Say where ``name`` lies, for messages: without what a URI may hold of keys and options."""
        shown = self.uri
        if "://" in shown:
            scheme, _, rest = shown.partition("://")
            shown = f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"
        return f"{shown.rstrip('/')}/{name}" if name else shown

    def make_ready(self) -> None:
        """Create what a run needs and prove that it can be written to.

        Raises:
            OutputError: the folder can't be created or written to.
        """
        with self.blame(""):
            if (folder := self.folder) is None:
                temporary = f"{TEMPORARIES}/{uuid4().hex}"
                with suppress(FileNotFoundError):  # a driver that starts at the same moment swept it: it was there
                    PATIENCE(lambda: self._put(temporary, b""))
                    self._open()[0].delete_file(self._path(temporary))
                return
            _make_folder(folder / TEMPORARIES)
            for each in (folder, folder / "_raybert"):  # not the temporaries: another driver may sweep them
                _check_writable(each)

    def check_writable(self) -> None:
        """Refuse a place of which is known already that it can't be written to; nothing is created.

        Raises:
            OutputError: naming the folder; or there is no such bucket.
        """
        with self.blame(""):
            if (folder := self.folder) is None:
                self._check_bucket()
                return
            while not folder.exists():
                folder = folder.parent
            _check_writable(folder)

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Commit ``data`` under ``name``: all of it durably, or nothing; an older file is replaced.

        Raises:
            OutputError: the disk is full, the folder can't be written to, or the store refused.
        """
        with self.blame(name, size=len(data)):
            for _ in range(_ATTEMPTS - 1):
                with suppress(FileNotFoundError):
                    return self._commit(name, data)
            return self._commit(name, data)

    def list(self, prefix: str = "") -> list[str]:
        """Names of all files that begin with ``prefix``, sorted; ``""`` lists the whole folder.

        Only folders that can hold such a name are visited: ``part-`` never reads ``_quarantine``.
        """
        with self.blame(prefix):
            base = prefix.rpartition("/")[0]
            return sorted(name for name in self._walk(base, prefix) if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
            OutputError: the store refused.
        """
        with self.blame(name, missing_passes=True), self._open()[0].open_input_file(self._path(name)) as file:
            return bytes(file.read())

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for random access; the caller closes it. Raises as ``read`` does."""
        with self.blame(name, missing_passes=True):
            return self._open()[0].open_input_file(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        with self.blame(name):
            return bool(self._open()[0].get_file_info(self._path(name)).type == pafs.FileType.File)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        with self.blame(name), suppress(FileNotFoundError):
            self._open()[0].delete_file(self._path(name))

    def sweep(self) -> None:
        """Remove all temporaries: only the one driver of a run may, at its start and end."""
        with self.blame(TEMPORARIES):
            if self.folder is None:
                with suppress(FileNotFoundError):
                    self._open()[0].delete_dir(self._path(TEMPORARIES))
                return
            folder = self.folder / TEMPORARIES
            for file in folder.iterdir() if folder.is_dir() else ():
                file.unlink(missing_ok=True)
            with suppress(OSError):  # a late writer's temporary keeps the folder; the next sweep takes both
                folder.rmdir()

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if self._opened is None:
            filesystem, root = (self._given, self.uri) if self._given is not None else open_uri(self.uri)
            self._opened = (filesystem, root.rstrip("/"))
        return self._opened

    def _path(self, name: str) -> str:
        return f"{self._open()[1]}/{name}" if name else self._open()[1]

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        selector = pafs.FileSelector(self._path(folder), allow_not_found=True)
        for info in self._open()[0].get_file_info(selector):
            name = f"{folder}/{info.base_name}" if folder else info.base_name
            if info.type == pafs.FileType.File:
                yield name
            elif f"{name}/".startswith(prefix):
                yield from self._walk(name, prefix)

    def _commit(self, name: str, data: bytes | pa.Buffer) -> None:
        """The three steps of a commit: a whole temporary, its final name, and nothing left of the temporary."""
        temporary = f"{TEMPORARIES}/{uuid4().hex}"
        try:
            self._fill(temporary, data)
            self._place(temporary, name)
        finally:
            self._drop(temporary)

    def _fill(self, temporary: str, data: bytes | pa.Buffer) -> None:
        """Write a temporary that outlives a power cut, or an object whose stored size is right."""
        if self.folder is None:
            PATIENCE(lambda: self._put(temporary, data))
            return
        path = self.folder / temporary
        _make_folder(path.parent)
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _place(self, temporary: str, name: str) -> None:
        """Give a temporary its final name, in one step."""
        if self.folder is not None:
            final = self.folder / name
            _make_folder(final.parent)
            (self.folder / temporary).replace(final)
            _sync_folder(final.parent)
            return
        filesystem, source, target = self._open()[0], self._path(temporary), self._path(name)
        try:
            filesystem.copy_file(source, target)
        except FileNotFoundError:  # a filesystem with real folders
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            filesystem.copy_file(source, target)

    def _drop(self, temporary: str) -> None:
        """Remove a temporary if it is still there; one that stays is taken by the sweep."""
        with suppress(OSError, pa.ArrowException):
            if self.folder is None:
                self._open()[0].delete_file(self._path(temporary))
            else:
                (self.folder / temporary).unlink(missing_ok=True)

    def _put(self, name: str, data: bytes | pa.Buffer) -> None:
        """Upload, and check the stored size: an upload that broke off may still have been completed."""
        filesystem, path = self._open()[0], self._path(name)
        try:
            stream = filesystem.open_output_stream(path)
        except FileNotFoundError:  # a filesystem with real folders
            filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            stream = filesystem.open_output_stream(path)
        with stream:
            stream.write(data)
        stored = filesystem.get_file_info(path).size
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, "a sweep took it", path)
        if stored != len(data):
            raise CutShort(errno.EIO, f"{len(data)} bytes were sent and {stored} arrived", path)

    def _check_bucket(self) -> None:
        filesystem, root = self._open()
        bucket = root.partition("/")[0]
        try:
            found = filesystem.get_file_info(bucket)
        except StoreRefused:  # who may write into a folder of a bucket may still not ask about the bucket
            return
        if filesystem.type_name.endswith(("s3", "gcs")) and found.type == pafs.FileType.NotFound:
            raise OSError(errno.EIO, f"NO_SUCH_BUCKET {bucket}")

    @contextmanager
    def blame(self, name: str, *, size: int = 0, missing_passes: bool = False) -> Iterator[None]:
        """Turn what the disk or store says into one OutputError that names the place and a remedy."""
        try:
            yield
        except FileNotFoundError as error:
            if missing_passes:
                raise
            what = f"{self.place(name)}: its folder vanished; run the same command again"
            raise OutputError(what) from error
        except (OSError, pa.ArrowException) as error:
            raise OutputError(self._explain(name, size, error)) from error

    def _explain(self, name: str, size: int, error: Exception) -> str:
        number = getattr(error, "errno", None)
        place = self.place(name)
        if isinstance(error, StoreRefused):
            return f"{place}: {error.strerror}"
        if "NO_SUCH_BUCKET" in str(error):
            return f"{place}: there is no such bucket; create it, or choose another --output"
        if number in _NO_ROOM:
            where = "" if self.folder is None else f", {_free_bytes(self.folder)} bytes are free"
            return f"{place}: no room for {size} bytes{where}; make room and run the same command again"
        if number in _NO_RIGHT:
            what = "read-only file system" if number == errno.EROFS else "permission denied"
            return f"{place}: {what}; choose another --output"
        if number in _NO_FOLDER:
            return f"{place}: a file stands in the place of a folder, or the reverse; choose another --output"
        return f"{place}: {cause(error)}; run the same command again when the storage answers"


def _rebuild(uri: str, filesystem: pafs.FileSystem | None) -> Store:
    return Store(uri, filesystem=filesystem)


def _make_folder(folder: Path) -> None:
    """Create a folder durably: the entry of each new folder is synced in its parent."""
    missing = []
    upward = folder
    while not upward.exists():
        missing.append(upward)
        upward = upward.parent
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            # mkdir looks a second time whether a folder is there: another driver's sweep may lie between the looks.
            if (folder.is_symlink() or folder.exists()) and not folder.is_dir():
                raise
        else:
            break
    for each in reversed(missing):
        _sync_folder(each.parent)


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
