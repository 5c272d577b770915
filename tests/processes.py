"""Looking at the processes of a running job, in /proc alone: who descends from whom, how much memory each held."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

_MEMORY = ("VmHWM", "RssAnon", "RssFile", "RssShmem")


@dataclass
class Peak:
    """What one process showed while it was watched.

    Attributes:
        titles: every title it had, in order: Ray names a worker after what it runs.
        peak: VmHWM in bytes, what the kernel kept of its largest resident size, shared pages included.
        shares: RssAnon, RssFile, RssShmem in bytes at the largest sum that was seen.
    """

    titles: list[str] = field(default_factory=list)
    peak: int = 0
    shares: dict[str, int] = field(default_factory=dict)

    def see(self, memory: dict[str, int]) -> None:
        """Take in one reading of ``memory``."""
        self.peak = max(self.peak, memory["VmHWM"])
        shares = {name: memory[name] for name in _MEMORY[1:]}
        if sum(shares.values()) >= sum(self.shares.values()):
            self.shares = shares


def parents() -> dict[int, int]:
    """Process -> its parent, of all processes."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, itself left out."""
    children: dict[int, list[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    found, ahead = [], [pid]
    while ahead:
        below = children.get(ahead.pop(), [])
        found += below
        ahead += below
    return found


def title(pid: int) -> str:
    """The command line, which Ray's workers overwrite with what they run; empty for a process that ended."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode("utf-8", "replace").strip()


def memory(pid: int) -> dict[str, int] | None:
    """VmHWM and the shares of the resident size in bytes; None for a process that ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "VmHWM" not in fields:  # a zombie
        return None
    return {name: int(fields[name].split()[0]) * 1024 for name in _MEMORY}


def watch(process: Popen[str], *, every_s: float = 0.1, looks: int = 25) -> dict[int, Peak]:
    """Watch a process and all that descends from it until it ends.

    Args:
        process: the first of them.
        every_s: seconds between two readings of everybody's memory, whose peaks the kernel keeps.
        looks: so often in between the titles are read, which nobody keeps: a small task is over in milliseconds.
    """
    peaks: dict[int, Peak] = {}
    while process.poll() is None:
        pids = [process.pid, *descendants(process.pid)]
        for pid in pids:
            if (seen := memory(pid)) is not None:
                peaks.setdefault(pid, Peak()).see(seen)
        for _ in range(looks):
            for pid in pids:
                if (name := title(pid)) and pid in peaks and name not in peaks[pid].titles:
                    peaks[pid].titles.append(name)
            time.sleep(every_s / looks)
    return peaks


@contextmanager
def stopped(process: Popen[str], *, patience_s: float = 60) -> Iterator[Popen[str]]:
    """The process, which is ended by SIGTERM if the block leaves it running, and waited for."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(patience_s)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder for Ray: pytest's own have paths too long for the 107 bytes of a Unix socket's."""
    folder = Path(tempfile.mkdtemp(prefix="rb-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Ray's log monitor may still write into it
