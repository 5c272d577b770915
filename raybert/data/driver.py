"""One driver at a time: ``_raybert/driver.json`` says who writes into a run's folder.

The record names the process (host, boot, pid namespace, pid, start time) and carries a heartbeat. On a
local disk all decisions are made under an exclusive ``flock`` of the ``_raybert`` folder itself, so of two
drivers that start together exactly one wins, and the lock of a process that died is gone with it. In an object
store a claim takes the place of the flock: see `raybert.data.claim`. On a network disk without flock a driver
writes its record, waits, and reads again who is there: the last writer stays, and the others see it.

Clocks of other hosts are not trusted alone: a foreign record that looks old is watched before it is taken
over.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from raybert.data.claim import Claim
from raybert.data.store import Store
from raybert.errors import OutputError, RunFailed, SettingsError

NAME = "_raybert/driver.json"
HEARTBEAT_S = 5.0
STALE_S = 30.0
_READINGS, _BETWEEN_READINGS_S = 5, 0.2
SETTLE_S = 2.0  # on a disk without flock: longer than a driver takes from reading "nobody" to having written


@dataclass(frozen=True, kw_only=True)
class Record:
    """What ``driver.json`` holds.

    Attributes:
        host: name of the host.
        machine: boot id and pid namespace, within which equal pids are the same process; None without /proc.
        pid: process id.
        started: the process's start in clock ticks since the boot: tells a re-used pid; None without /proc.
        token: drawn anew at every start.
        heartbeat: when the driver last said that it lives: UTC, ISO 8601.
    """

    host: str
    machine: str | None
    pid: int
    started: str | None
    token: str
    heartbeat: str

    @property
    def who(self) -> str:
        """The process, for messages."""
        return f"pid {self.pid} on {self.host}"


class DriverLock:
    """Context manager: inside, this process is the folder's one driver and ``driver.json`` says so.

    Temporaries that others left are swept on entering and leaving; the record is removed on leaving.

    Args:
        store: the output folder.
        heartbeat_s: seconds between heartbeats.
        stale_s: seconds without a heartbeat after which a driver that can't be looked up counts as dead.
        settle_s: seconds to wait before reading again, on a disk without flock.

    Raises:
        SettingsError: on entering: another driver is alive, or may be.
    """

    def __init__(
        self,
        store: Store,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        stale_s: float = STALE_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._store = store
        self._heartbeat_s, self._stale_s, self._settle_s = heartbeat_s, stale_s, settle_s
        self._record = _own_record()
        self._stop = threading.Event()
        self._lost_to: str | None = None
        self._thread = threading.Thread(target=self._beat, name="raybert-heartbeat", daemon=True)

    @property
    def token(self) -> str:
        """What `check_driven` knows this driver by."""
        return self._record.token

    @property
    def lost(self) -> bool:
        """Another driver took over, or the record was removed: this one must stop."""
        return self._lost_to is not None

    def check(self) -> None:
        """Stop a run whose folder is no longer its own.

        Raises:
            RunFailed: the lock is lost; the message says to whom.
        """
        if self._lost_to is not None:
            place = self._store.place(NAME)
            raise RunFailed(f"{place}: this run lost its output to {self._lost_to}; what it committed stays")

    def check_free(self) -> None:
        """Refuse early, before anything is started; entering decides.

        Raises:
            SettingsError: another driver is alive, or may be.
        """
        found = _read(self._store)
        if found is not None:
            self._is_over(found)

    def __enter__(self) -> DriverLock:
        self._store.make_ready()
        try:
            watched = None
            while not self._acquire(watched):
                watched = self._watch()
            self._store.sweep()
        except BaseException:
            with suppress(OutputError, SettingsError):  # the first error is the one to tell
                self._release()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._release(sweep=True)
        except (OutputError, SettingsError):
            if error is None:  # else the body's own error tells more; a record that stays is taken over
                raise

    def _release(self, *, sweep: bool = False) -> None:
        with self._exclusive():
            if self._is_mine():
                if sweep:
                    self._store.sweep()
                self._store.delete(NAME)

    def _acquire(self, watched: Record | None) -> bool:
        """Write this driver's record if nobody lives; False when a foreign record has to be watched first."""
        with self._exclusive() as exclusive:
            found = _read(self._store)
            if found is not None and found != watched and not self._is_over(found):
                return False
            self._write()
        if not exclusive:
            time.sleep(self._settle_s)
            winner = _read(self._store)
            if winner is None or winner.token != self._record.token:
                raise self._refusal(winner, "started at the same moment")
        return True

    def _is_over(self, found: Record) -> bool:
        """Whether the driver of a record is surely dead; False: it only looks so, by another host's clock.

        Raises:
            SettingsError: it is alive, or may be.
        """
        alive = is_alive(found)
        if alive is False:
            return True
        silent_s = (datetime.now(UTC) - datetime.fromisoformat(found.heartbeat)).total_seconds()
        if alive or silent_s < self._stale_s:
            raise self._refusal(found, f"last heartbeat {max(0, round(silent_s))} s ago")
        return False

    def _watch(self) -> Record | None:
        """Observe a foreign record for two heartbeats; returns it if nothing changed."""
        before = _read(self._store)
        time.sleep(2 * self._heartbeat_s)
        after = _read(self._store)
        if before != after and after is not None:
            raise self._refusal(after, "its heartbeat goes on")
        return after

    def _refusal(self, found: Record | None, why: str) -> SettingsError:
        place = self._store.place(NAME)
        if found is None:
            return SettingsError(f"{place}: another driver came and went ({why}); run the same command again")
        return SettingsError(
            f"{place}: another driver writes here: {found.who} ({why}); wait for it or stop it, "
            f"and if it is surely dead, delete this file"
        )

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            try:
                # An object store is not claimed for each beat: who takes over waits longer than one.
                with nullcontext() if self._store.folder is None else self._exclusive():
                    if not self._is_mine():
                        found = _read(self._store)
                        self._lost_to = "no one: its record was removed" if found is None else found.who
                        return
                    self._write()
            except (OutputError, SettingsError):
                continue  # a full or slow disk for a while: the process itself still shows that it lives

    def _is_mine(self) -> bool:
        found = _read(self._store)
        return found is not None and found.token == self._record.token

    def _write(self) -> None:
        self._record = replace(self._record, heartbeat=_now())
        self._store.write(NAME, _encoded(self._record))

    @contextmanager
    def _exclusive(self) -> Iterator[bool]:
        """Hold off other drivers of this folder; yields whether the disk or store can do that."""
        folder = self._store.folder
        if folder is None:
            record = _encoded(replace(self._record, heartbeat=_now()))
            with Claim(self._store, self._record.token, record, _is_dead, patience_s=self._stale_s):
                yield True
            return
        try:
            descriptor = os.open((folder / NAME).parent, os.O_RDONLY)
        except FileNotFoundError:  # OUTPUT was removed, and the record with it: that is seen next
            descriptor = None
        if descriptor is None:
            yield False
            return
        try:
            exclusive = _lock(descriptor, patience_s=self._stale_s)
            yield exclusive
            if exclusive:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may still hold the descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, patience_s: float) -> bool:
    """Take the flock; False where the disk has none or its holder hangs: then a second reading decides."""
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a network disk that can't lock a folder
            return False
        else:
            return True
    return False


def check_driven(store: Store, token: str) -> None:
    """Prove, where something is about to be committed, that this is the driver's own folder and the driver's still.

    A node may have another disk under OUTPUT's path, and one that was cut off may go on when the run has ended.

    Args:
        store: OUTPUT, as this process sees it.
        token: of the driver that this process works for.

    Raises:
        OutputError: it is another folder, or another driver's by now.
    """
    host = socket.gethostname()
    for _ in range(_READINGS):
        try:
            found = _read(store)
        except SettingsError:  # where no file is replaced in one step, a heartbeat is seen half-written
            time.sleep(_BETWEEN_READINGS_S)
            continue
        if found is None:
            raise OutputError(
                f"{store.place(NAME)}: not there on node {host}; OUTPUT must be one folder that every node reaches: "
                "mount it there too, or name an object store"
            )
        if found.token != token:
            raise OutputError(f"{store.place(NAME)}: on node {host} it names another driver, {found.who}")
        return
    raise OutputError(f"{store.place(NAME)}: node {host} can't read it; run the same command again")


def is_alive(record: Record) -> bool | None:
    """Whether the process of a record runs; None when that can't be known from here."""
    machine = _machine()
    if machine is not None:
        if record.machine != machine:
            return None
        started = _start_time(record.pid)
        return started is not None and started == record.started
    if record.machine is not None or record.host != socket.gethostname():
        return None
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None  # there is a process of that number; without start times it may be another one


def _own_record() -> Record:
    pid = os.getpid()
    return Record(
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        started=_start_time(pid),
        token=uuid4().hex,
        heartbeat="",
    )


def _machine() -> str | None:
    """One kernel since its boot, and one pid namespace in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the process's start; None if it is not there or a zombie, or without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the name before it may hold anything, parentheses too
    return None if state in "ZX" else rest[18]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _encoded(record: Record) -> bytes:
    return (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()


def _decoded(text: bytes) -> Record:
    """The record that `_encoded` wrote.

    Raises:
        ValueError: it is none.
        TypeError: likewise.
    """
    record = Record(**json.loads(text))
    if datetime.fromisoformat(record.heartbeat).tzinfo is None:
        raise ValueError("heartbeat without a time zone")
    return record


def _is_dead(text: bytes) -> bool:
    """Whether a record's driver is surely dead; nobody knows who wrote what is no record."""
    try:
        return is_alive(_decoded(text)) is False
    except (ValueError, TypeError):
        return False


def _read(store: Store) -> Record | None:
    try:
        return _decoded(store.read(NAME))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"{store.place(NAME)}: not a readable record; if no raybert run writes here, delete this file"
        ) from error
