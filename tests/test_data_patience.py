"""What an object store fails at for a moment is tried again, within bounds; what it refuses is told at once."""

from __future__ import annotations

import errno
import gzip
import random
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raybert.data import claim
from raybert.data.claim import Claim
from raybert.data.patience import CutShort, Patience, Patient, StoreFailed, StoreRefused, cause
from raybert.data.store import Store
from raybert.errors import SettingsError
from tests.bucket import Bucket

# What pyarrow 26 raised when tests/s3.py's proxy failed for good, and what other stores say.
TRANSIENT = [
    "When getting information for key 'x' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation: "
    "curlCode: 52, Server returned nothing (no headers, no data)",
    "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file",
    "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
    "AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No response body.",
    "When uploading part for key 'x' in bucket 'b': AWS Error SLOW_DOWN during UploadPart operation: Reduce your rate",
    "AWS Error INTERNAL_FAILURE during ListObjectsV2 operation: We encountered an internal error",
    "google::cloud::Status(UNAVAILABLE: try again)",
]
REFUSED = {
    "AWS Error ACCESS_DENIED during PutObject operation: Access Denied": "refused PutObject (ACCESS_DENIED)",
    "AWS Error INVALID_ACCESS_KEY_ID during GetObject operation: ?": "refused GetObject (INVALID_ACCESS_KEY_ID)",
    "AWS Error UNKNOWN (HTTP status 403) during GetObject operation: Unable to parse ExceptionName: ExpiredToken "
    "Message: ?": "refused GetObject (ExpiredToken)",
    "google::cloud::Status(PERMISSION_DENIED: no)": "refused (PERMISSION_DENIED)",
}


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """Seconds that were waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


class Failing:
    """Work that fails so often with that error, then succeeds."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


@pytest.mark.parametrize(
    "error",
    [*map(OSError, TRANSIENT), ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError(), CutShort(5, "short")],
)
def test_what_passes_is_tried_again_after_waits_that_double(error, waits):
    work = Failing(error, 4)
    assert Patience()(work) == "done"
    assert work.calls == 5
    assert [round(wait / 2**number, 6) <= 1.0 for number, wait in enumerate(waits)] == [True] * 4
    assert [round(wait / 2**number, 6) >= 0.5 for number, wait in enumerate(waits)] == [True] * 4


def test_what_stays_is_told_with_the_last_cause_and_without_pyarrow_s_words_around_it():
    work = Failing(OSError(TRANSIENT[4] + " (Request ID: XYZ)"), 100)
    with pytest.raises(StoreFailed) as caught:
        Patience()(work)
    said = "AWS Error SLOW_DOWN during UploadPart operation: Reduce your rate (tried 5 times in 0 s)"
    assert caught.value.strerror == said
    assert cause(caught.value) == said
    assert work.calls == 5


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_is_told_at_once(text, waits):
    work = Failing(OSError(text), 100)
    with pytest.raises(StoreRefused, match="check the credentials in the environment") as caught:
        Patience()(work)
    assert f"the store {REFUSED[text]};" in str(caught.value)
    assert (work.calls, waits) == (1, [])


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError("AWS Error NO_SUCH_BUCKET"), pa.ArrowInvalid("not Parquet")]
)
def test_any_other_error_passes_as_it_is(error):
    work = Failing(error, 100)
    with pytest.raises(type(error)) as caught:
        Patience()(work)
    assert caught.value is error
    assert work.calls == 1


def test_an_object_that_is_gone_is_not_found():
    with pytest.raises(FileNotFoundError, match="NO_SUCH_KEY"):
        Patience()(Failing(OSError("When copying: AWS Error NO_SUCH_KEY during CopyObject operation: gone"), 100))


def test_a_process_has_a_quota_that_successes_refill_slowly():
    patience = Patience(quota=6, regained=0.5)
    calls = 0

    def works(times: int) -> Failing:
        return Failing(OSError(TRANSIENT[3]), times)

    for _ in range(3):  # each takes three and gives half of one back
        work = works(3)
        try:
            patience(work)
        except StoreFailed:
            break
        finally:
            calls += work.calls
    assert calls == 4 + 4 + 2
    assert patience(works(0)) == "done"
    assert patience(works(0)) == "done"
    assert patience(works(1)) == "done"


def test_after_giving_up_what_is_left_is_tried_once_until_the_store_answers():
    patience = Patience()
    for calls in (5, 1):
        work = Failing(OSError(TRANSIENT[0]), 100)
        with pytest.raises(StoreFailed):
            patience(work)
        assert work.calls == calls
    assert patience(Failing(OSError(), 0)) == "done"
    assert patience(Failing(OSError(TRANSIENT[0]), 2)) == "done"


def test_where_nobody_ever_answered_the_address_is_more_likely_wrong():
    text = "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server"
    patience = Patience()
    with pytest.raises(StoreFailed, match="tried once"):
        patience(Failing(OSError(text), 100))
    patience(Failing(OSError(), 0))
    assert patience(Failing(OSError(text), 4)) == "done"


class Breaking:
    """Opens files of a local disk whose reads fail or fall short, by a seed."""

    def __init__(self, seed: int) -> None:
        self.rng, self.failed = random.Random(seed), 0
        self.type_name = "breaking"

    def normalize_path(self, path: str) -> str:
        return path

    def open_input_file(self, path: str) -> Breaking:
        self.file = pafs.LocalFileSystem().open_input_file(path)
        return self

    def size(self) -> int:
        return int(self.file.size())

    def seek(self, place: int) -> None:
        self.file.seek(place)

    def read(self, size: int) -> bytes:
        data = bytes(self.file.read(size))
        draw = self.rng.random()
        self.failed += draw < 0.4
        if draw < 0.2:
            raise OSError(TRANSIENT[1])
        return data[: len(data) // 2] if draw < 0.4 else data


@pytest.mark.parametrize("seed", range(8))
def test_a_file_that_breaks_off_is_read_on_byte_for_byte(seed, tmp_path: Path):
    inner, data = Breaking(seed), random.Random(seed).randbytes(400_000)
    patient = pafs.PyFileSystem(Patient(inner, Patience(attempts=50, quota=1e9)))
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    for name, compression in (("a", None), ("a.gz", "gzip")):
        with patient.open_input_stream(str(tmp_path / name), compression, 10_000) as stream:
            assert b"".join(iter(lambda: bytes(stream.read(7919)), b"")) == data
    with patient.open_input_file(str(tmp_path / "a")) as file:
        assert file.size() == len(data)
        file.seek(399_990)
        assert bytes(file.read(100)) == data[-10:]
        assert bytes(file.read(100)) == b""
    table = pa.table({"number": range(50_000)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=9000)
    opened = pq.ParquetFile(str(tmp_path / "t.parquet"), filesystem=patient, pre_buffer=False, buffer_size=4096)
    assert opened.read().equals(table)
    assert inner.failed > 10


def test_what_a_broken_read_ends_with_comes_through_every_reader(tmp_path: Path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(random.Random(0).randbytes(100_000)))
    pq.write_table(pa.table({"number": range(50_000)}), tmp_path / "t.parquet")
    inner = Breaking(0)
    patient = pafs.PyFileSystem(Patient(inner))
    with patient.open_input_stream(str(tmp_path / "a.gz"), "gzip", 10_000) as stream:
        inner.rng.random = lambda: 0.1
        with pytest.raises(StoreFailed, match="curlCode: 18"):
            stream.read()
    inner.rng.random = lambda: 1.0
    opened = pq.ParquetFile(str(tmp_path / "t.parquet"), filesystem=patient, pre_buffer=False, buffer_size=4096)
    inner.rng.random = lambda: 0.1
    with pytest.raises(StoreFailed, match="curlCode: 18"):
        list(opened.iter_batches(100))


def test_two_are_never_inside_a_claim_together(monkeypatch):
    monkeypatch.undo()  # real waits
    monkeypatch.setattr(claim, "_WAIT_S", 0.002)
    bucket, inside, most, entered = Bucket(), [0], [0], []

    def contend(name: str) -> None:
        store = Store("out", filesystem=pafs.PyFileSystem(bucket))
        for _ in range(5):
            with Claim(store, name, b"", lambda _: False, patience_s=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1
                entered.append(name)

    contenders = [threading.Thread(target=contend, args=(f"contender{number}",)) for number in range(4)]
    for each in contenders:
        each.start()
    for each in contenders:
        each.join()
    assert (most[0], len(entered)) == (1, 20)
    assert bucket.objects == {}


def test_a_claim_that_stands_for_long_or_whose_writer_is_dead_is_removed(waits):
    store = Store("out", filesystem=pafs.PyFileSystem(Bucket()))
    for content, stale_s in ((b"dead", 60.0), (b"who knows", 0.0)):
        store.write("_raybert/claims/other", content)
        with Claim(store, "me", b"me", lambda found: found == b"dead", patience_s=1, stale_s=stale_s):
            assert store.list("_raybert/claims/other") == []
    assert len(waits) <= 4
    store.write("_raybert/claims/other", b"who knows")
    with (
        pytest.raises(SettingsError, match=r"out/_raybert/claims/other: another driver holds on; if no raybert run"),
        Claim(store, "me", b"me", lambda _: False, patience_s=-61),
    ):
        pass
    assert store.list() == ["_raybert/claims/other"]
