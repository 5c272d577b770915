"""The points at which a run can be killed, and runs that pass all of them: on a local disk and in S3."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

from tests.jobs import Finished, armed, joining, run_cli, small_ray, some_texts, tree_bytes, write_lines
from tests.s3 import Server, moto_server

LEFTOVER = "_raybert/tmp/left-by-a-killed-writer"


@dataclass(frozen=True)
class Point:
    """A moment in a run, see `tests/crash/trap/faultpoints.py`."""

    step: str
    kind: str
    when: str
    nth: int = 1

    @property
    def of_driver(self) -> bool:
        """Whether the driver comes there, or a worker."""
        return self.step == "sweep" or self.kind not in ("", "part", "quarantine") or self.step == "delete"

    def __str__(self) -> str:
        return "-".join(str(word) for word in (self.when, self.step, self.kind, self.nth) if word)


def _commits(kind: str, *nths: int) -> list[Point]:
    """A commit's moments: nothing yet, a whole temporary, the final name, no temporary any more."""
    moments = (("fill", "before"), ("fill", "after"), ("place", "after"), ("drop", "after"))
    return [Point(step, kind, when, nth) for (step, when), nth in zip(moments, nths or (1,) * 4, strict=True)]


LOCAL = [
    *(
        Point(step, "", when, nth)
        for step in ("read", "encode", "compute")
        for when, nth in (("before", 1), ("after", 2))
    ),
    *_commits("quarantine", 1, 2, 3, 2),
    *_commits("part", 2, 3, 1, 4),
    *_commits("manifest"),
    *_commits("driver"),
    *_commits("history"),
    *(Point("delete", kind, when) for kind in ("part", "quarantine", "driver") for when in ("before", "after")),
    *(Point("sweep", "", when, nth) for nth in (1, 2) for when in ("before", "after")),
]
"""Every step of the protocol on a disk; the sweep comes at the start and at the end."""

S3 = [
    *LOCAL,
    *_commits("claims"),
    *(Point("delete", "claims", when, nth) for nth in (1, 2) for when in ("before", "after")),
]
"""In an object store the driver's record is guarded by claims beside."""


@dataclass
class Trial:
    """A run over one corpus into folders that all begin alike: complete, but one input file has changed since, one is
    new, and a killed writer left a temporary.

    Attributes:
        model: the checkpoint.
        folder: where everything lies.
        points: the folder of the armed point.
        env: of the commands.
        server: where OUTPUT lies, else on disk.
        expected: the tree of an undisturbed run.
    """

    model: Path
    folder: Path
    points: Path
    env: dict[str, str | None]
    server: Server | None = None
    bucket: str = ""
    expected: dict[str, bytes] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """A folder's path or URI."""
        return str(self.folder / name) if self.server is None else f"s3://{self.bucket}/{name}"

    def run(self, output: str) -> None:
        """The job, once, by a driver that is not armed: this process."""
        from raybert.data import run

        heads = {"embed": (str(self.model), "embed")}
        fixed = {"split_rows": 6, "keep": ["id"], "dtype": "float32", "actors": 1}
        run(heads, input=self.place("in"), output=self.place(output), **fixed)

    def _run_armed(self, output: str) -> Finished:
        """The same by a driver that may be killed: the command."""
        words = ("embed", "--model", self.model, "--input", self.place("in"), "--output", self.place(output))
        return run_cli("run", *words, "--actors", 1, env=self.env)

    def tree(self, output: str) -> dict[str, bytes]:
        """The whole folder."""
        if self.server is None:
            return tree_bytes(self.folder / output)
        return tree_bytes(self.server.download(f"{self.bucket}/{output}", self.folder / uuid4().hex))

    def begin(self, output: str) -> None:
        """A folder as all begin."""
        before = self.folder / "before"
        if self.server is None:
            shutil.copytree(before, self.folder / output)
        else:
            self.server.upload(before, f"{self.bucket}/{output}")

    def prepare(self) -> None:
        """The corpus, the folder that all begin with, and what an undisturbed run makes of it."""
        rows = [{"id": at, "text": text if at % 5 else None} for at, text in enumerate(some_texts(40))]
        for name, of_file in {"a.jsonl": rows[:12], "b.jsonl.gz": rows[12:24], "c.jsonl": rows[24:34]}.items():
            write_lines(self.folder / "in" / name, of_file)
        self._publish("in")
        self.run("first")
        before = self.folder / "before"
        for name, data in self.tree("first").items():
            (before / name).parent.mkdir(parents=True, exist_ok=True)
            (before / name).write_bytes(data)
        (before / LEFTOVER).parent.mkdir(exist_ok=True)
        (before / LEFTOVER).write_bytes(b"half")
        write_lines(self.folder / "in" / "b.jsonl.gz", rows[10:25])
        write_lines(self.folder / "in" / "d.jsonl", rows[30:])
        self._publish("in")
        self.begin("undisturbed")
        self.run("undisturbed")
        self.expected = self.tree("undisturbed")
        assert len([name for name in self.expected if name.startswith("part-")]) == 9
        assert LEFTOVER not in self.expected

    def _publish(self, name: str) -> None:
        if self.server is not None:
            self.server.upload(self.folder / name, f"{self.bucket}/{name}")

    def kill_at(self, point: Point) -> None:
        """Kill a worker at the point, or the driver, after which the run is started again.

        The folder must equal the undisturbed one's then, in names and bytes.
        """
        output = self._armed_folder(point, "kill")
        if point.of_driver:
            done = self._run_armed(output)
            assert done.code == -signal.SIGKILL, done
        self._must_end_well(point, output)

    def fill_disk_at(self, point: Point) -> None:
        """The disk is full at the point: one line tells it, and with room again the same holds."""
        output = self._armed_folder(point, errno.ENOSPC)
        done = self._run_armed(output)
        assert (done.code, len(done.errors)) == (1, 1), done
        assert done.errors[0].startswith(f"error: {self.place(output)}/"), done
        assert "no room for " in done.errors[0]
        self._must_end_well(point, output)

    def _armed_folder(self, point: Point, fault: str | int) -> str:
        for file in self.points.iterdir():
            file.unlink()
        (self.points / "armed.json").write_text(json.dumps(asdict(point) | {"fault": fault}))
        output = f"{fault}-{point}"
        self.begin(output)
        return output

    def _must_end_well(self, point: Point, output: str) -> None:
        self.run(output)
        assert (self.points / "fired").exists(), f"{point} was not reached"
        found = self.tree(output)
        assert sorted(found) == sorted(self.expected)
        assert [name for name in found if found[name] != self.expected[name]] == []


@contextmanager
def trial(kind: str, model: Path, folder: Path) -> Iterator[Trial]:
    """A trial on one Ray, which the commands join: each costs seconds, and a killed one leaves no Ray to wait for."""
    points = folder / "points"
    points.mkdir()
    trap = armed(points=str(points))
    if kind == "local":
        with small_ray(env=trap):
            made = Trial(model, folder, points, joining(trap))
            made.prepare()
            yield made
        return
    with moto_server() as server, small_ray(env=trap | server.environment()):
        made = Trial(model, folder, points, joining(trap | server.environment()), server, server.bucket())
        made.prepare()
        yield made
