"""Store: whole files or none, on a local disk and in an object store, whatever fails."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from raybert.data.patience import PATIENCE
from raybert.data.store import Store
from raybert.errors import InputError, OutputError
from tests.bucket import Bucket

FINAL = "part-000000-000000000000-0123456789abcdef.parquet"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(PATIENCE, "first_s", 0.001)


@pytest.fixture(params=["local", "folders", "bucket"])
def store(request, tmp_path):
    """A local disk; a filesystem that is not local but has folders; an object store."""
    if request.param == "local":
        return Store(tmp_path / "out")
    if request.param == "folders":
        (tmp_path / "out").mkdir()
        below = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
        return Store("out", filesystem=below)
    return Store("bucket/out", filesystem=pafs.PyFileSystem(Bucket()))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read_listed_and_deleted(store):
    store.make_ready()
    data = random.Random(0).randbytes(100_000)
    store.write(FINAL, data)
    store.write(f"_quarantine/{FINAL}", pa.py_buffer(b"rows"))
    store.write("_raybert/manifest.json", b"{}")
    assert store.read(FINAL) == data
    with store.open(FINAL) as file:
        file.seek(99_990)
        assert file.read(100) == data[-10:]
    assert store.list() == [f"_quarantine/{FINAL}", "_raybert/manifest.json", FINAL]
    assert store.list("part-") == [FINAL]
    assert store.list("_quarantine/part-") == [f"_quarantine/{FINAL}"]
    assert store.list("_quar") == [f"_quarantine/{FINAL}"]
    assert store.list("nothing/at/all") == []
    store.write(FINAL, b"newer")
    assert store.read(FINAL) == b"newer"
    store.delete(FINAL)
    store.delete(FINAL)
    assert not store.exists(FINAL)
    assert store.exists("_raybert/manifest.json")
    assert not store.exists("_quarantine")
    for missing in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            missing(FINAL)


def test_a_listing_of_parts_does_not_visit_other_folders(monkeypatch):
    bucket = Bucket()
    bucket.objects = {"out/part-1": b"", "out/_quarantine/part-1": b"", "out/_raybert/tmp/x": b""}
    visited = []
    listing = bucket.get_file_info_selector
    monkeypatch.setattr(
        bucket, "get_file_info_selector", lambda selector: visited.append(selector.base_dir) or listing(selector)
    )
    assert Store("out", filesystem=pafs.PyFileSystem(bucket)).list("part-") == ["part-1"]
    assert visited == ["out"]


def test_an_empty_folder_lists_nothing(store):
    assert store.list() == []
    store.sweep()


def test_sweep_takes_all_temporaries_and_nothing_else(store):
    store.make_ready()
    store.write("_raybert/tmp/left-over", b"half")
    store.write(FINAL, b"whole")
    store.sweep()
    assert store.list() == [FINAL]
    store.write(FINAL, b"after the sweep")
    assert store.list() == [FINAL]


@pytest.mark.parametrize("filesystem", [None, pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())])
def test_a_store_travels_opened_or_not(tmp_path, filesystem):
    store = Store(tmp_path, filesystem=filesystem)
    pickle.loads(pickle.dumps(store)).write(FINAL, b"x")
    assert store.read(FINAL) == b"x"
    assert pickle.loads(pickle.dumps(store)).read(FINAL) == b"x"


def test_paths_and_uris_name_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store("a b#c").write(FINAL, b"x")
    relative = pickle.dumps(Store("a b#c"))
    monkeypatch.chdir("/")
    assert pickle.loads(relative).read(FINAL) == b"x"
    assert Store(f"file://{tmp_path}/a%20b%23c").folder == tmp_path / "a b#c"
    with pytest.raises(InputError, match=r"s3://"):
        Store("what://is/this").make_ready()


def test_messages_hold_no_secrets():
    place = Store("s3://key:secret@bucket/out?endpoint_override=host:1").place(FINAL)
    assert place == f"s3://bucket/out/{FINAL}"


@pytest.mark.parametrize("before", [None, b"the older file"])
@pytest.mark.parametrize("fault", ["open", "write", "close", "short", "info", "copy"])
def test_object_store_that_fails_at_any_step_never_shows_half_a_file(fault, before):
    bucket = Bucket()
    store = Store("out", filesystem=pafs.PyFileSystem(bucket))
    if before:
        store.write(FINAL, before)
    bucket.fault = fault
    with pytest.raises(OutputError, match=FINAL) as caught:
        store.write(FINAL, b"a" * 1000)
    assert "\n" not in str(caught.value)
    assert bucket.objects.get(f"out/{FINAL}") == before
    bucket.fault = ""
    store.write(FINAL, b"a" * 1000)
    store.sweep()
    assert bucket.objects == {f"out/{FINAL}": b"a" * 1000}


def test_a_temporary_that_can_not_be_deleted_is_left_to_the_sweep():
    bucket = Bucket()
    store = Store("out", filesystem=pafs.PyFileSystem(bucket))
    bucket.fault = "delete"
    store.write(FINAL, b"whole")
    assert store.read(FINAL) == b"whole"
    assert len(bucket.objects) == 2
    bucket.fault = ""
    store.sweep()
    assert list(bucket.objects) == [f"out/{FINAL}"]


def test_an_object_store_that_denies_is_found_before_the_first_part():
    class Denying(Bucket):
        def open_output_stream(self, path, metadata):
            raise OSError("When uploading: AWS Error ACCESS_DENIED during PutObject operation: Access Denied.")

    bucket = Denying()
    store = Store("s3-like/out", filesystem=pafs.PyFileSystem(bucket))
    with pytest.raises(OutputError, match=r"the store refused PutObject \(ACCESS_DENIED\); check the credentials"):
        store.make_ready()


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_a_local_write_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, step, failure):
    store = Store(tmp_path)
    store.make_ready()

    def fails(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fails)
        with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt):
            store.write(FINAL, b"x" * 1000)
    assert files_below(tmp_path) == []


def test_a_write_survives_a_sweep_of_its_temporary(tmp_path, monkeypatch):
    store = Store(tmp_path)
    fsync, swept = os.fsync, []

    def sweep_once(descriptor):
        if not swept and list((tmp_path / "_raybert/tmp").iterdir()):
            swept.append(True)
            store.sweep()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sweep_once)
    store.write(FINAL, b"x" * 1000)
    assert swept
    assert store.read(FINAL) == b"x" * 1000
    assert files_below(tmp_path) == [FINAL]


@pytest.mark.parametrize("step", ["get_file_info", "copy_file"])
def test_an_upload_survives_a_sweep_of_its_temporary(step, monkeypatch):
    bucket, swept = Bucket(), []
    store = Store("out", filesystem=pafs.PyFileSystem(bucket))
    real = getattr(bucket, step)

    def sweep_once(*arguments):
        if not swept:
            swept.append(True)
            bucket.objects.clear()
        return real(*arguments)

    monkeypatch.setattr(bucket, step, sweep_once)
    store.write(FINAL, b"x" * 1000)
    assert swept
    assert bucket.objects == {f"out/{FINAL}": b"x" * 1000}


@pytest.mark.parametrize("step", ["get_file_info", "delete_file"])
def test_a_store_is_ready_though_another_driver_sweeps(step, monkeypatch):
    bucket = Bucket()
    store = Store("out", filesystem=pafs.PyFileSystem(bucket))
    real = getattr(bucket, step)

    def sweep_first(*arguments):
        swept = len(bucket.objects)
        bucket.objects.clear()
        assert swept == 1
        return real(*arguments)

    monkeypatch.setattr(bucket, step, sweep_first)
    store.make_ready()
    assert bucket.objects == {}


WRITER = """
import hashlib, random, sys
from raybert.data.store import Store
store, draw = Store(sys.argv[1]), random.Random(int(sys.argv[2]))
store.make_ready()
print("ready", flush=True)
while True:
    body = draw.randbytes(draw.randrange(1, 3_000_000))
    folder = draw.choice(["", "_quarantine/"])
    store.write(f"{folder}{draw.randrange(20):02d}", hashlib.sha256(body).digest() + body)
"""


def test_kill_9_leaves_whole_files_only(tmp_path):
    draw = random.Random(7)
    cut_short, store = 0, Store(tmp_path / "out")
    for seed in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "out"), str(seed)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0, 0.1))
        while not store.list("_raybert/tmp/"):  # most kills fall into a write then
            pass
        writer.kill()
        writer.wait()
        writer.stdout.close()
        cut_short += len(store.list("_raybert/tmp/"))
        store.sweep()
        for name in store.list():
            data = store.read(name)
            assert hashlib.sha256(data[32:]).digest() == data[:32], name
    assert store.list()
    assert cut_short, "no kill fell into a write: the test proves nothing"


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A mounted tmpfs; skips, with the reason, where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_left_clean(tmp_path):
    with tmpfs(tmp_path / "disk", "size=1m"):
        store = Store(tmp_path / "disk" / "out")
        store.make_ready()
        store.write("small", b"x" * 400_000)
        with pytest.raises(OutputError, match=rf"{FINAL}: no room for 900000 bytes, \d+ bytes are free; make room"):
            store.write(FINAL, b"x" * 900_000)
        assert store.list() == ["small"]
        store.write(FINAL, b"x" * 400_000)


def test_a_file_over_the_size_limit_is_told_and_left_clean(tmp_path):
    store = Store(tmp_path)
    store.make_ready()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OutputError, match="no room for 2000000 bytes"):
            store.write(FINAL, b"x" * 2_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.list() == []


@pytest.mark.parametrize("below", ["", "/deeper/out"])
def test_a_file_in_place_of_the_folder_is_refused(tmp_path, below):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputError, match="choose another --output"):
        Store(f"{tmp_path}/file{below}").make_ready()
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_folder_without_permission_is_refused(tmp_path):
    folder = tmp_path / "mine"
    if os.geteuid():
        folder.mkdir(mode=0o500)
        with pytest.raises(OutputError, match="permission denied; choose another --output"):
            Store(folder / "out").make_ready()
        return
    with tmpfs(folder, "ro"):  # permission bits don't bind root, a read-only mount does
        for output in (folder, folder / "out"):
            with pytest.raises(OutputError, match=r"(permission denied|read-only file system); choose another"):
                Store(output).make_ready()
        with pytest.raises(OutputError, match="read-only file system; choose another --output"):
            Store(folder).write(FINAL, b"x")
