"""Store and driver lock over a real S3 endpoint, before which a proxy fails; no Ray."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raybert.data.driver import NAME, DriverLock
from raybert.data.files import check_unchanged, list_inputs, open_stream, open_uri
from raybert.data.parquet import open_parquet
from raybert.data.patience import PATIENCE
from raybert.data.store import Store
from raybert.errors import InputError, OutputError, RaybertError, SettingsError
from tests.s3 import KEY, SECRET, Fault, Proxy, Server, moto_server

PART = "part-000000-000000000000-0123456789abcdef.parquet"
DATA = random.Random(7).randbytes(300_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as started:
        yield started


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[Proxy]:
    """Before the server, and what the environment leads to."""
    with Proxy(server) as started:
        for name, value in started.environment().items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def bucket(server) -> str:
    return server.bucket()


def test_a_run_s_folder_in_s3_by_environment_and_by_uri(proxy, bucket):
    store = Store(f"s3://{bucket}/out")
    store.check_writable()
    store.make_ready()
    store.write(PART, DATA)
    store.write(f"_quarantine/{PART}", pa.py_buffer(b"rows"))
    store.write("_raybert/tmp/left", b"by a killed writer")
    same = pickle.loads(pickle.dumps(Store(proxy.uri(f"{bucket}/out"))))
    assert same.list() == [f"_quarantine/{PART}", "_raybert/tmp/left", PART]
    assert same.list("part-") == [PART]
    assert same.read(PART) == DATA
    with same.open(PART) as file:
        file.seek(299_000)
        assert file.read(2000) == DATA[-1000:]
    assert same.exists(PART)
    assert not same.exists("_quarantine")
    same.write(PART, b"newer")
    assert store.read(PART) == b"newer"
    store.sweep()
    store.sweep()
    store.delete(PART)
    store.delete(PART)
    assert same.list() == [f"_quarantine/{PART}"]
    for missing in (same.read, same.open):
        with pytest.raises(FileNotFoundError):
            missing(PART)
    assert proxy.behind.names(f"{bucket}/out") == [f"_quarantine/{PART}"]


@pytest.mark.parametrize("secret", [SECRET, "with/slash", "with%2Fslash", "with:colon", "1234"])
def test_keys_in_a_uri_are_refused_and_not_repeated(secret):
    with pytest.raises(InputError) as caught:
        open_uri(f"s3://{KEY}:{secret}@bucket/in?region=us-east-1")
    assert str(caught.value) == (
        "s3://bucket/in: keys stand in the URI, which goes into a run's manifest; set them in the environment instead, "
        "for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def test_an_unknown_option_in_a_uri_is_named():
    with pytest.raises(InputError, match=r"s3://bucket/in: .*no_such_option.*"):
        open_uri("s3://bucket/in?no_such_option=1")


@pytest.mark.parametrize("kind", ["drop", "lost", "cut", "200", "500", "503"])
def test_every_step_of_a_commit_survives_a_fault(proxy, bucket, kind):
    """Each kind of request fails once, in one go through all that a store does."""
    whole = {"HEAD", "LIST", "GET", "COPY", "DELETE", "CREATE", "PART", "COMPLETE"}
    steps = {"cut": whole - {"HEAD"}, "200": {"COPY", "COMPLETE"}}.get(kind, whole)
    proxy.faults += [Fault(kind, step) for step in sorted(steps)]
    store = Store(f"s3://{bucket}/out")
    store.make_ready()
    store.write(PART, DATA)
    assert store.list() == [PART]
    assert store.read(PART) == DATA
    store.write("_raybert/tmp/left", b"x")
    store.sweep()
    store.delete(PART)
    assert store.list() == []
    assert set(proxy.struck) == {(kind, step) for step in steps}


@pytest.mark.slow
def test_a_store_of_which_each_tenth_request_fails_loses_nothing(proxy, bucket):
    proxy.share, proxy._random = 0.1, random.Random(20)
    store, rng = Store(f"s3://{bucket}/out"), random.Random(4)
    written = {f"part-{number}": rng.randbytes(rng.randrange(50_000)) for number in range(12)}
    for name, data in written.items():
        store.write(name, data)
    assert {name: store.read(name) for name in store.list()} == written
    assert sum(proxy.struck.values()) > 5


@pytest.mark.slow
@pytest.mark.parametrize("step", ["PART", "COPY", "GET"])
def test_a_store_that_is_down_for_longer_than_pyarrow_waits_loses_nothing(proxy, bucket, step, monkeypatch):
    """pyarrow gives up after 31 tries (6 s); the next round of tries finds the store up again."""
    monkeypatch.setattr(PATIENCE, "first_s", 0.1)
    proxy.faults.append(Fault("503", step, times=40))
    store = Store(f"s3://{bucket}/out")
    store.write(PART, DATA)
    assert store.read(PART) == DATA
    assert proxy.struck["503", step] == 40


@pytest.mark.slow
def test_a_store_that_stays_down_is_told_with_its_last_cause(proxy, bucket, monkeypatch):
    monkeypatch.setattr(PATIENCE, "first_s", 0.01)
    monkeypatch.setattr(PATIENCE, "attempts", 2)
    store = Store(f"s3://{bucket}/out")
    store.make_ready()
    proxy.faults.append(Fault("503", "PART", times=10_000))
    with pytest.raises(OutputError) as caught:
        store.write(PART, DATA)
    assert str(caught.value).startswith(f"s3://{bucket}/out/{PART}: AWS Error SLOW_DOWN during UploadPart operation")
    assert "(tried 2 times in 1" in str(caught.value)
    assert str(caught.value).endswith("s); run the same command again when the storage answers")
    assert proxy.behind.names(f"{bucket}/out") == []
    proxy.faults.clear()
    store.write(PART, DATA)
    assert store.list() == [PART]


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_a_refusal_is_one_line_with_a_remedy_and_comes_at_once(proxy, bucket, code):
    store = Store(proxy.uri(f"{bucket}/out"))
    proxy.faults.append(Fault("403", times=10_000, code=code))
    word = {
        "AccessDenied": "ACCESS_DENIED",
        "InvalidAccessKeyId": "INVALID_ACCESS_KEY_ID",
        "SignatureDoesNotMatch": "SIGNATURE_DOES_NOT_MATCH",
        "ExpiredToken": "ExpiredToken",
    }[code]
    with pytest.raises(OutputError) as caught:
        store.write(PART, DATA)
    assert str(caught.value) == (
        f"s3://{bucket}/out/{PART}: the store refused CreateMultipartUpload ({word}); check the credentials in the "
        "environment and what they may do: raybert lists and reads its input, and lists, reads, writes, copies and "
        "deletes in its output"
    )
    with pytest.raises(InputError) as told:
        list_inputs(proxy.uri(f"{bucket}/in"))
    for error in (caught, told):
        assert "the store refused" in str(error.value)
        assert "\n" not in str(error.value)
        assert SECRET not in str(error.value)
        assert KEY not in str(error.value)
    assert sum(proxy.struck.values()) < 10


def test_an_unknown_bucket_is_told_before_anything_starts(proxy):
    store = Store("s3://nobodys/out")
    assert store.list() == []
    for call in (store.check_writable, store.make_ready, lambda: store.write(PART, DATA)):
        with pytest.raises(OutputError, match=r"s3://nobodys/out.*: there is no such bucket; create it, or choose"):
            call()
    with pytest.raises(InputError, match=r"s3://nobodys/in: no such file or folder"):
        list_inputs("s3://nobodys/in")


def test_a_bucket_without_deletes_is_refused_before_the_first_part(proxy, bucket):
    proxy.faults.append(Fault("403", "DELETE", times=10_000))
    store = Store(f"s3://{bucket}/out")
    with pytest.raises(OutputError, match=r"out: the store refused DeleteObject \(ACCESS_DENIED\); check"):
        store.make_ready()


@pytest.mark.slow
def test_an_address_where_nobody_ever_answered_is_told_after_one_round(monkeypatch, proxy):
    monkeypatch.setattr(PATIENCE, "_answered", False)
    monkeypatch.setattr(PATIENCE, "first_s", 1000.0)  # a second round would be noticed
    with pytest.raises(OutputError, match=r"curlCode: 7.*\(tried once in"):
        Store(Server(1).uri("bucket/out")).read(PART)


def write_inputs(folder: Path) -> None:
    lines = b"".join(b'{"id": %d, "text": "%s"}\n' % (row, bytes([97 + row % 26]) * 900) for row in range(8000))
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    table = pa.table({"id": range(8000), "text": [str(row) * 200 for row in range(8000)]})
    pq.write_table(table, folder / "c.parquet", compression="none")


def test_inputs_that_break_off_while_they_are_read_are_read_on(proxy, bucket, tmp_path, monkeypatch):
    """Bodies of 7 MB come in pieces; one in three breaks off, and now and then pyarrow gives one up."""
    write_inputs(tmp_path)
    proxy.behind.upload(tmp_path, f"{bucket}/in")
    monkeypatch.setattr(PATIENCE, "first_s", 0.01)
    proxy.faults += [Fault("cut", "GET", after=after) for after in (0, 2, 3, 5)]
    for name in ("a.jsonl", "b.jsonl.gz"):
        inputs = list_inputs(f"s3://{bucket}/in/{name}")
        with open_stream(inputs.root, inputs.files[0]) as stream:
            found = b"".join(iter(lambda: stream.read(1 << 20), b""))
        assert found == (tmp_path / "a.jsonl").read_bytes()
        check_unchanged(inputs.root, inputs.files[0])
    inputs = list_inputs(f"s3://{bucket}/in/c.parquet")
    with open_parquet(inputs.root, inputs.files[0]) as opened:
        found = pa.Table.from_batches(opened.iter_batches(1024))
    assert found.equals(pq.read_table(tmp_path / "c.parquet"))
    assert proxy.struck["cut", "GET"] == 4


def test_an_input_that_was_written_anew_is_another_version(proxy, bucket, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n')
    proxy.behind.upload(tmp_path, f"{bucket}/in")
    inputs = list_inputs(f"s3://{bucket}/in")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "another"}\n')
    proxy.behind.upload(tmp_path, f"{bucket}/in")
    with pytest.raises(InputError, match="changed since the run began"):
        check_unchanged(inputs.root, inputs.files[0])


STARTER = """
import sys
from raybert.data.driver import DriverLock
from raybert.data.store import Store
from raybert.errors import SettingsError
print("ready", flush=True)
for line in sys.stdin:
    store = Store(line.strip())
    try:
        with DriverLock(store):
            print("won", flush=True)
            sys.stdin.readline()
    except SettingsError as error:
        print(f"refused: {error}", flush=True)
        sys.stdin.readline()
    print("left", flush=True)
"""


@pytest.mark.slow
def test_of_drivers_that_start_together_one_wins(proxy, bucket):
    """In odd rounds all of them find the record of a driver that is dead."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        starters = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", STARTER], env=environment, stdin=-1, stdout=-1, text=True, bufsize=1
                )
            )
            for _ in range(3)
        ]

        def answers() -> list[str]:
            return [starter.stdout.readline().strip() for starter in starters]

        def tell(text: str) -> None:
            for starter in starters:
                starter.stdin.write(text + "\n")

        assert answers() == ["ready"] * 3
        for number in range(4):
            uri = f"s3://{bucket}/{number}"
            store = Store(uri)
            if number % 2:
                with DriverLock(store):
                    dead = store.read(NAME).replace(b'"started": "', b'"started": "1')
                store.write(NAME, dead)
            tell(uri)
            said = answers()
            assert sorted(word.split(":")[0] for word in said) == ["refused", "refused", "won"], said
            winner = starters[said.index("won")]
            assert f'"pid": {winner.pid}'.encode() in store.read(NAME)
            tell("leave")
            assert answers() == ["left"] * 3
            assert store.list() == []
        for starter in starters:
            starter.stdin.close()


def test_a_live_driver_refuses_and_a_claim_of_a_dead_one_does_not(proxy, bucket):
    store = Store(f"s3://{bucket}/out")
    with DriverLock(store):
        dead = store.read(NAME).replace(b'"started": "', b'"started": "1')
        with pytest.raises(SettingsError, match=f"another driver writes here: pid {os.getpid()}"), DriverLock(store):
            pass
    store.write("_raybert/claims/of-a-killed-driver", dead)
    with DriverLock(store):
        assert store.list() == [NAME]
    assert store.list() == []


def test_raybert_s_errors_are_the_only_ones_that_come_out(proxy, bucket):
    """Whatever a store answers, one line names the place."""
    store = Store(f"s3://{bucket}/out")
    store.write(PART, DATA)
    filesystem = pafs.FileSystem.from_uri(f"s3://{bucket}")[0]
    assert filesystem.get_file_info(f"{bucket}/out/{PART}").size == len(DATA)
    for step, call in (("LIST", store.list), ("GET", lambda: store.read(PART)), ("HEAD", lambda: store.exists(PART))):
        proxy.faults[:] = [Fault("403", step, times=1000)]
        with pytest.raises(RaybertError, match="the store refused"):
            call()
