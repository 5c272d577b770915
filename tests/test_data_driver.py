"""One driver at a time: live ones refuse, dead ones are taken over, and of many that start together one wins."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raybert.data import driver
from raybert.data.driver import NAME, DriverLock, Record, check_driven, is_alive
from raybert.data.store import Store
from raybert.errors import OutputError, RunFailed, SettingsError
from tests.bucket import Bucket, FolderObjects

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(params=["local", "bucket"])
def store(request, tmp_path):
    """A local disk, and an object store, on which nothing can be locked."""
    return open_store(request.param, tmp_path)


def open_store(kind: str, folder: Path) -> Store:
    if kind == "local":
        return Store(folder)
    return Store("out", filesystem=pafs.PyFileSystem(Bucket(FolderObjects(folder))))


def lock(store: Store, **seconds: float) -> DriverLock:
    return DriverLock(store, **{"heartbeat_s": 0.05, "settle_s": 0.05, **seconds})


def read(store: Store) -> Record:
    return Record(**json.loads(store.read(NAME)))


def plant(store: Store, silent_s: float = 0.0, **changes: object) -> Record:
    """Put a record into the folder: this process's, but for the changes."""
    heartbeat = (datetime.now(UTC) - timedelta(seconds=silent_s)).isoformat()
    record = replace(driver._own_record(), heartbeat=heartbeat, **changes)
    store.write(NAME, json.dumps(asdict(record)).encode())
    return record


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_record_names_this_process_beats_and_goes(store):
    with lock(store) as held:
        first = read(store)
        assert first.pid == os.getpid()
        assert first.host
        assert is_alive(first)
        assert datetime.now(UTC) - datetime.fromisoformat(first.heartbeat) < timedelta(seconds=20)
        until(lambda: read(store).heartbeat > first.heartbeat)
        assert replace(read(store), heartbeat="") == replace(first, heartbeat="")
        held.check()
        assert not held.lost
    assert store.list() == []


def test_temporaries_are_swept_on_entering_and_leaving(store):
    store.write("_raybert/tmp/left by a killed writer", b"half")
    with lock(store, heartbeat_s=60):
        assert store.list() == [NAME]
        store.write("_raybert/tmp/left by another", b"half")
        store.write("part-1", b"whole")
    assert store.list() == ["part-1"]


def test_a_live_driver_refuses_a_second_one(store):
    with (
        lock(store),
        pytest.raises(SettingsError, match=rf"driver\.json: .* pid {os.getpid()} on \S+ ") as caught,
        lock(store),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not store.exists(NAME)
    with lock(store):
        assert store.exists(NAME)


def test_a_live_driver_is_not_taken_over_however_long_it_was_silent(store):
    record = plant(store, silent_s=3600)
    with pytest.raises(SettingsError, match="last heartbeat 3600 s ago"), lock(store):
        pass
    assert read(store) == record


HOLDER = """
import sys, time
from pathlib import Path
from raybert.data.driver import DriverLock
from tests.test_data_driver import open_store
with DriverLock(open_store(sys.argv[1], Path(sys.argv[2]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("reaped", [True, False])
def test_a_dead_process_is_taken_over_at_once(store, tmp_path, reaped):
    kind = "local" if store.folder else "bucket"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(SettingsError, match=rf"pid {process.pid} on"), lock(store):
            pass
        process.kill()
        if reaped:
            process.wait()
        else:
            until(lambda: is_alive(read(store)) is False)  # a zombie holds its pid
        started = time.monotonic()
        with lock(store):
            assert read(store).pid == os.getpid()
        assert time.monotonic() - started < 5


def test_a_pid_that_another_process_has_now_is_taken_over_at_once(store):
    plant(store, started="1")
    with lock(store):
        assert read(store).started != "1"


def test_another_host_is_left_alone_for_30_s(store):
    record = plant(store, silent_s=12, host="elsewhere", machine="another boot", pid=1)
    with pytest.raises(SettingsError, match=r"pid 1 on elsewhere \(last heartbeat 1[23] s ago\).*delete this file"):
        DriverLock(store).__enter__()
    assert read(store) == record


def test_another_host_is_taken_over_after_30_s_without_a_heartbeat(store):
    plant(store, silent_s=31, host="elsewhere", machine="another boot")
    with lock(store):
        assert read(store).pid == os.getpid()


def test_another_host_whose_clock_is_late_is_left_alone(store):
    plant(store, silent_s=300, host="elsewhere", machine="another boot", pid=1)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.02):
            plant(store, silent_s=300, host="elsewhere", machine="another boot", pid=1)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(SettingsError, match="its heartbeat goes on"), lock(store, heartbeat_s=0.2):
            pass
    finally:
        stop.set()
        thread.join()


def test_a_driver_that_ends_while_it_is_watched_makes_room(store):
    plant(store, silent_s=300, host="elsewhere", machine="another boot")
    timer = threading.Timer(0.1, store.delete, [NAME])
    timer.start()
    with lock(store, heartbeat_s=0.3):
        assert read(store).pid == os.getpid()
    timer.join()


def test_the_loser_of_a_take_over_knows_and_leaves_the_winner_alone(store):
    with lock(store) as held:
        winner = plant(store, host="elsewhere", machine="another boot", pid=4321, token="theirs")
        until(lambda: held.lost)
        with pytest.raises(RunFailed, match="lost its output to pid 4321 on elsewhere"):
            held.check()
    assert read(store) == winner


def test_a_record_that_was_removed_means_stop(store):
    with lock(store) as held:
        store.delete(NAME)
        until(lambda: held.lost)
        with pytest.raises(RunFailed, match="its record was removed"):
            held.check()


def test_a_node_with_another_disk_under_the_path_is_named(store, tmp_path):
    host = socket.gethostname()
    with lock(store) as held:
        check_driven(store, held.token)
        (tmp_path / "another disk").mkdir()
        with pytest.raises(OutputError, match=f"{NAME}: not there on node {host}; OUTPUT must be one folder that"):
            check_driven(open_store("local", tmp_path / "another disk"), held.token)
    with pytest.raises(OutputError, match="not there"):  # a worker that was cut off, when the run is over
        check_driven(store, held.token)
    with lock(store), pytest.raises(OutputError, match=f"on node {host} it names another driver, pid {os.getpid()} on"):
        check_driven(store, held.token)


def test_a_heartbeat_that_is_seen_half_written_is_read_again(store):
    with lock(store, heartbeat_s=60) as held:
        whole = store.read(NAME)
        store.write(NAME, whole[:40])
        timer = threading.Timer(0.3, store.write, (NAME, whole))
        timer.start()
        check_driven(store, held.token)
        timer.join()
        store.write(NAME, whole[:40])
        with pytest.raises(OutputError, match="can't read it; run the same command again"):
            check_driven(store, held.token)
        store.write(NAME, whole)


def test_an_output_that_was_removed_means_stop(tmp_path):
    with lock(Store(tmp_path / "out")) as held:
        (tmp_path / "out").rename(tmp_path / "away")
        until(lambda: held.lost)
    assert not (tmp_path / "out").exists()


def test_a_heartbeat_that_fails_is_tried_again(store, monkeypatch):
    with lock(store) as held:
        failures = []

        def full(*_):
            failures.append(1)
            raise OutputError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", full)
            until(lambda: len(failures) > 2)
        before = read(store)
        until(lambda: read(store).heartbeat > before.heartbeat)
        assert not held.lost


def test_an_entry_that_fails_leaves_no_record(store, monkeypatch):
    def fails(_):
        raise OutputError("the sweep failed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "sweep", fails)
        with pytest.raises(OutputError, match="the sweep failed"), lock(store):
            pass
    assert not store.exists(NAME)


def test_the_error_of_the_body_is_the_one_that_is_told(store, monkeypatch):
    def fails(*_):
        raise OutputError("the folder is gone")

    def run(error):
        with lock(store, heartbeat_s=60):
            monkeypatch.setattr(Store, "delete", fails)
            if error:
                raise error

    with pytest.raises(KeyError, match="of the body"):
        run(KeyError("of the body"))
    monkeypatch.undo()
    for name in store.list("_raybert/"):  # in an object store the claim as well
        store.delete(name)
    with pytest.raises(OutputError, match="the folder is gone"):
        run(None)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{}",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"pid": 1}',
        json.dumps(dict.fromkeys(asdict(driver._own_record()))).encode(),
    ],
)
def test_a_damaged_record_is_told_with_its_remedy(store, damaged):
    store.write(NAME, damaged)
    with pytest.raises(SettingsError, match=r"not a readable record; .* delete this file"), lock(store):
        pass
    assert store.read(NAME) == damaged


def test_without_proc_a_missing_pid_is_dead_and_another_needs_30_s(store, monkeypatch):
    monkeypatch.setattr(driver, "_machine", lambda: None)
    monkeypatch.setattr(driver, "_start_time", lambda _: None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    plant(store, pid=ended.pid)
    with lock(store) as held:
        assert not held.lost
    plant(store)
    with pytest.raises(SettingsError, match=f"pid {os.getpid()}"), lock(store):
        pass
    plant(store, silent_s=31)
    with lock(store) as held:
        assert not held.lost
    plant(store, host="elsewhere", pid=ended.pid)
    with pytest.raises(SettingsError, match="elsewhere"), lock(store):
        pass


STARTER = """
import sys
from pathlib import Path
from raybert.data.driver import DriverLock
from raybert.errors import SettingsError
from tests.test_data_driver import open_store
print("ready", flush=True)
for line in sys.stdin:
    kind, folder = line.split()
    store = open_store(kind, Path(folder))
    try:
        with DriverLock(store):
            print("won", flush=True)
            sys.stdin.readline()
    except SettingsError as error:
        print(f"refused: {error}", flush=True)
        sys.stdin.readline()
    print("left", flush=True)
"""


@pytest.mark.parametrize(("kind", "rounds"), [("local", 150), ("bucket", 8)])
def test_of_processes_that_start_together_one_wins(tmp_path, kind, rounds):
    with ExitStack() as stack:
        starters = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", STARTER], env=ENVIRONMENT, stdin=-1, stdout=-1, text=True, bufsize=1
                )
            )
            for _ in range(3)
        ]

        def tell(text: str) -> None:
            for starter in starters:
                starter.stdin.write(text + "\n")

        def answers() -> list[str]:
            return [starter.stdout.readline().strip() for starter in starters]

        assert answers() == ["ready"] * 3
        for number in range(rounds):
            folder = tmp_path / str(number)
            store = open_store(kind, folder)
            if number % 2:  # all of them find the record of a dead driver and want to take it over
                plant(store, started="1")
            tell(f"{kind} {folder}")
            said = answers()
            assert sorted(word.split(":")[0] for word in said) == ["refused", "refused", "won"], said
            winner = starters[said.index("won")]
            assert read(store).pid == winner.pid
            tell("leave")
            assert answers() == ["left"] * 3
            assert store.list() == []
        for starter in starters:
            starter.stdin.close()
