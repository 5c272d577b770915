"""An object store for tests, as pyarrow sees one, kept in a dict or (for several processes) in a folder."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs


class FolderObjects(MutableMapping[str, bytes]):
    """Objects as files of one flat folder; each appears whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unfinished = folder.with_name(f"{folder.name}.unfinished")
        for each in (folder, self.unfinished):
            each.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: str) -> bytes:
        try:
            return (self.folder / quote(key, safe="")).read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: bytes) -> None:
        unfinished = self.unfinished / uuid4().hex
        unfinished.write_bytes(value)
        unfinished.replace(self.folder / quote(key, safe=""))

    def __delitem__(self, key: str) -> None:
        try:
            (self.folder / quote(key, safe="")).unlink()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter([unquote(path.name) for path in self.folder.iterdir()])

    def __len__(self) -> int:
        return len(list(self.folder.iterdir()))


class Bucket(pafs.FileSystemHandler):
    """An object appears when its upload is closed, even where the writer raised.

    ``fault`` names the step that fails: open, write, close, short (the upload loses its end and says nothing),
    info, copy, delete.
    """

    def __init__(self, objects: MutableMapping[str, bytes] | None = None) -> None:
        self.objects = {} if objects is None else objects
        self.fault = ""

    def failing(self, step: str) -> None:
        if self.fault == step:
            raise OSError(errno.EIO, f"the store broke off at {step}")

    def value(self, path: str) -> bytes:
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def get_type_name(self):
        return "bucket"

    def get_file_info(self, paths):
        self.failing("info")
        return [self.info(path) for path in paths]

    def info(self, path):
        if (value := self.objects.get(path)) is not None:
            return pafs.FileInfo(path, pafs.FileType.File, size=len(value))
        folder = any(key.startswith(f"{path}/") for key in self.objects)
        return pafs.FileInfo(path, pafs.FileType.Directory if folder else pafs.FileType.NotFound)

    def get_file_info_selector(self, selector):
        base = f"{selector.base_dir}/"
        below = {key[len(base) :].split("/")[0] for key in self.objects if key.startswith(base)}
        return [self.info(base + name) for name in sorted(below)]

    def open_output_stream(self, path, metadata):
        self.failing("open")
        bucket = self

        class Upload(io.BytesIO):
            def write(self, data):
                if bucket.fault == "write":
                    super().write(bytes(data)[: len(data) // 2])
                    bucket.failing("write")
                return super().write(data)

            def close(self):
                if not self.closed:
                    value = self.getvalue()
                    bucket.objects[path] = value[:-1] if bucket.fault == "short" else value
                super().close()
                bucket.failing("close")

        return pa.PythonFile(Upload(), mode="w")

    def open_input_file(self, path):
        return pa.BufferReader(self.value(path))

    open_input_stream = open_input_file

    def copy_file(self, src, dest):
        self.failing("copy")
        self.objects[dest] = self.value(src)

    def delete_file(self, path):
        self.failing("delete")
        self.value(path)
        with suppress(KeyError):
            del self.objects[path]

    def delete_dir(self, path):
        for key in [key for key in self.objects if key.startswith(f"{path}/")]:
            with suppress(KeyError):  # another process was quicker
                del self.objects[key]

    def create_dir(self, path, recursive):
        """An object store has no folders."""

    def refuse(self, *_):
        raise NotImplementedError

    normalize_path = staticmethod(lambda path: path)
    delete_dir_contents = delete_root_dir_contents = move = open_append_stream = refuse
