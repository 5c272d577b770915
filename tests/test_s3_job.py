"""The batch job from S3 into S3, and before the store a proxy that fails."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raybert.data import run
from raybert.data.verify import verify
from tests.jobs import joining, parts, run_cli, small_ray, some_texts, tree_bytes, write_lines
from tests.s3 import Fault, Proxy, moto_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Place:
    """A bucket with a corpus, as the workers of one Ray reach it."""

    def __init__(self, proxy: Proxy, model: Path, folder: Path) -> None:
        self.proxy, self.model, self.folder = proxy, model, folder
        self.bucket = proxy.behind.bucket()
        self.rows = [{"id": at, "text": text if at % 7 else None} for at, text in enumerate(some_texts(90))]
        self.publish(**{"a.jsonl": self.rows[:40], "b.jsonl.gz": self.rows[40:80]})
        run_local = self.run("local", output=str(folder / "local"), input=str(folder / "in"))
        assert run_local.parts == 8
        self.clean = self.run("clean")

    def publish(self, **files: list[dict[str, Any]]) -> None:
        """Write files of the corpus, here and there."""
        for name, rows in files.items():
            write_lines(self.folder / "in" / name, rows)
            new = self.folder / "new"
            write_lines(new / name, rows)
            self.proxy.behind.upload(new, f"{self.bucket}/in")
            shutil.rmtree(new)

    def uri(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"

    def run(self, name: str, **changes: Any) -> Any:
        """The job into the folder of that name."""
        fixed: dict[str, Any] = {"input": self.uri("in"), "output": self.uri(name)}
        settings = {"split_rows": 10, "keep": ["id"], "dtype": "float32", "actors": 1}
        return run({"embed": (str(self.model), "embed")}, **{**fixed, **settings, **changes})

    def begun(self, name: str) -> str:
        """A folder that begins with the clean run's manifest, and so with its operators."""
        manifest = self.folder / name / "_raybert" / "manifest.json"
        manifest.parent.mkdir(parents=True)
        filesystem = self.proxy.behind.filesystem()
        manifest.write_bytes(filesystem.open_input_file(f"{self.bucket}/clean/_raybert/manifest.json").read())
        self.proxy.behind.upload(self.folder / name, f"{self.bucket}/{name}")
        return name

    def tree(self, name: str) -> dict[str, bytes]:
        folder = self.folder / f"tree of {name}"
        shutil.rmtree(folder, ignore_errors=True)
        return tree_bytes(self.proxy.behind.download(f"{self.bucket}/{name}", folder))


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with moto_server() as server, Proxy(server) as proxy, small_ray(env=proxy.environment()):
        yield Place(proxy, tiny, tmp_path_factory.mktemp("s3"))


@pytest.fixture(autouse=True)
def _whole(place):
    """Each test begins with a store that works."""
    yield
    place.proxy.faults.clear()
    place.proxy.share = 0.0


def test_from_s3_into_s3_the_rows_are_those_of_files(place):
    local, found = place.folder / "local", place.folder / "found"
    place.proxy.behind.download(f"{place.bucket}/clean", found)
    for name, other in zip(parts(local), parts(found), strict=True):
        assert name[:24] == other[:24]
        assert pq.read_table(local / name).equals(pq.read_table(found / other))
    assert sorted(path.name for path in (found / "_raybert").iterdir()) == ["history.json", "manifest.json"]
    told = verify(place.uri("clean"), full=True)
    assert (told.problems, told.rows_in) == ((), 80)
    again = place.run("clean")
    assert (again.rows_before, again.parts) == (80, 0)


def test_a_store_that_fails_now_and_then_changes_no_byte(place):
    name = place.begun("flaky")
    place.proxy.share = 0.05
    report = place.run(name)
    assert report.parts == 8
    assert sum(place.proxy.struck.values()) > 10
    place.proxy.share = 0.0
    assert place.tree(name) == place.tree("clean")


@pytest.mark.parametrize("step", ["COPY", "DELETE"])
def test_a_store_that_refuses_from_some_moment_on_ends_the_run_and_it_goes_on_later(place, step):
    """Temporaries may stay for a while: what ends the run is a commit that can't be made, or the lock's end."""
    name = place.begun(f"refusing-{step}")
    place.proxy.faults.append(Fault("403", step, name, times=10_000, after=12))
    words = ("embed", "--model", place.model, "--input", place.uri("in"), "--output", place.uri(name), "--actors", 1)
    done = run_cli("run", *words, env=joining(place.proxy.environment()))
    assert (done.code, len(done.errors)) == (1, 1), done
    assert done.errors[0].startswith(f"error: {place.uri(name)}/")
    assert re.search(r": the store refused \w+ \(ACCESS_DENIED\); check the credentials", done.errors[0])
    place.proxy.faults.clear()
    place.run(name)
    assert place.tree(name) == place.tree("clean")


def test_an_input_object_that_changed_is_computed_anew_and_no_other(place):
    name = place.begun("changing")
    place.run(name)
    place.publish(**{"b.jsonl.gz": place.rows[50:75]})
    report = place.run(name)
    assert (report.parts, report.rows_before) == (3, 40)
    told = verify(place.uri(name), full=True)
    assert (told.problems, told.rows_in) == ((), 65)
