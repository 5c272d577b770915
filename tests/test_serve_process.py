"""The engine's process: what a trunk here would answer, errors with their reasons, and no end that nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

from raybert.config import heads_from
from raybert.engine import EngineSettings, Trunk, choose_settings
from raybert.errors import RaybertError
from raybert.serve import process as module
from raybert.serve.computing import outcome_of
from raybert.serve.health import FRESH_S, Pulse, Unhealthy
from raybert.serve.pieces import Asked, unknown_words
from raybert.serve.process import EngineDied, EngineProcess
from raybert.serve.wire import Unpacker, packed
from raybert.tasks import Task, make_task
from raybert.tasks.program import group_heads
from raybert.text.encoding import Sequences
from tests.tiny import write_tiny_checkpoint

ENDS_S = 20
Result = TypeVar("Result")


@pytest.fixture(scope="module", name="tasks")
def tasks_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Heads of two trunks."""
    folder = tmp_path_factory.mktemp("process")
    one, other = (str(write_tiny_checkpoint(folder / str(seed), heads=("classifier",), seed=seed)) for seed in range(2))
    heads: dict[str, tuple[Any, ...]] = {"vec": (one, "embed"), "people": (one, "ner"), "other": (other, "embed")}
    return {spec.name: make_task(spec) for spec in heads_from(heads)}


@pytest.fixture(scope="module", name="settings")
def settings_fixture() -> EngineSettings:
    return choose_settings(device="cpu", dtype="float32", budget=256)


def trunks(tasks: dict[str, Task]) -> list[dict[str, Task]]:
    return [{name: tasks[name] for name in names} for names in (("vec", "people"), ("other",))]


@pytest.fixture(name="process")
def process_fixture(tasks: dict[str, Task], settings: EngineSettings) -> Iterator[EngineProcess]:
    made = EngineProcess(trunks(tasks), settings, workers=2)
    yield made
    assert has_ended(made.pid), "the test left it running"


def has_ended(pid: int) -> bool:
    over = time.monotonic() + ENDS_S
    while time.monotonic() < over:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def with_end(process: EngineProcess, work: Coroutine[Any, Any, Result]) -> Result:
    """What comes of it; the process is ended behind it."""

    async def main() -> Result:
        try:
            return await work
        finally:
            await process.close()

    return asyncio.run(main())


def windows(task: Task, *lengths: int) -> Sequences:
    rng = np.random.default_rng(sum(lengths))
    ids = rng.integers(5, len(task.tokenizer().vocabulary), sum(lengths))
    return Sequences(ids=ids.astype(np.int32), lengths=np.array(lengths, np.int32))


def test_each_piece_gets_what_its_trunk_computes_of_it(
    process: EngineProcess, tasks: dict[str, Task], settings: EngineSettings
) -> None:
    first, second = windows(tasks["vec"], 5, 20, 9), windows(tasks["vec"], 12)
    parts = {"vec": None, "people": np.array([2, 0], np.int32)}
    pieces = [Asked(sequences=first, parts=parts), Asked(sequences=second, parts={"people": None})]
    other = [Asked(sequences=second, parts={"other": None})]

    async def main() -> Any:
        return await asyncio.gather(process.run(0, pieces), process.run(1, other), process.run(0, pieces[1:]))

    together, of_other, alone = with_end(process, main())
    expected = []
    for own, asked in zip(trunks(tasks), (pieces, other), strict=True):
        trunk = Trunk(own, settings, threads=1)
        expected.append([trunk.run(piece.sequences, piece.parts) for piece in asked])
        trunk.close()
    for found, wanted in zip([*together, *of_other, *alone], [*expected[0], *expected[1], expected[0][1]], strict=True):
        assert found.keys() == wanted.keys()
        for name, arrays in wanted.items():
            np.testing.assert_allclose(found[name].values, arrays.values, rtol=1e-4, atol=1e-5)
            assert (found[name].counts is None) == (arrays.counts is None)
            if arrays.counts is not None:
                np.testing.assert_array_equal(found[name].counts, arrays.counts)


def test_those_that_compute_yield_and_have_an_allocator_of_their_own(
    tasks: dict[str, Task], settings: EngineSettings
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    process = EngineProcess(trunks(tasks), settings, workers=2)
    pids = all_of(process)
    assert len(pids) == 2
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in pids] == [min(19, own + 10)] * 2
    assert [os.sched_getscheduler(pid) for pid in pids] == [os.SCHED_BATCH] * 2
    assert all("libjemalloc" in Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    asyncio.run(process.close())


def test_an_error_comes_with_its_place_and_the_next_call_is_computed(
    process: EngineProcess, tasks: dict[str, Task]
) -> None:
    good = Asked(sequences=windows(tasks["vec"], 7), parts={"vec": None})
    beyond = Sequences(ids=np.array([2, 10**6, 3], np.int32), lengths=np.array([3], np.int32))

    async def main() -> None:
        with pytest.raises(IndexError) as raised:
            await process.run(0, [Asked(sequences=beyond, parts={"vec": None})])
        assert "raybert/model/packed.py" in raised.value.__notes__[0]
        with pytest.raises(KeyError):
            await process.run(0, [Asked(sequences=good.sequences, parts={"nobody": None})])
        assert len((await process.run(0, [good]))[0]["vec"].values) == 1

    with_end(process, main())


def test_who_leaves_takes_nothing_from_the_others(process: EngineProcess, tasks: dict[str, Task]) -> None:
    many = [Asked(sequences=unknown_words(tasks["vec"], 8, 30), parts={"vec": None})]

    async def main() -> None:
        calls = [asyncio.create_task(process.run(0, many)) for _ in range(12)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in found] == [True, False] * 6
        assert all(len(each[0]["vec"].values) == 8 for each in found[1::2])

    with_end(process, main())


def test_what_keeps_it_from_starting_is_raised_here(
    tmp_path: Path, settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_checkpoint(tmp_path / "gone")
    (spec,) = heads_from({"vec": (str(model), "embed")})
    task = make_task(spec)
    for file in model.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(RaybertError, match="gone"):
        EngineProcess([{"vec": task}], settings, workers=1)
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(EngineDied, match=r"as it began \(status 1\)"):
        EngineProcess([{"vec": task}], settings, workers=1)
    left = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    assert not [each for each in left if "raybert.serve.computing" in each.cmdline()]


def all_of(process: EngineProcess) -> list[int]:
    """The process that was started, and those that it forked."""
    return [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]


@pytest.mark.parametrize(("workers", "victim"), [(1, 0), (3, 0), (3, 1), (3, 2)])
def test_one_that_is_killed(tasks: dict[str, Task], settings: EngineSettings, workers: int, victim: int) -> None:
    heard: list[EngineDied] = []
    process = EngineProcess(trunks(tasks), settings, workers=workers, died=heard.append)
    asked = [Asked(sequences=unknown_words(tasks["vec"], 8, 30), parts={"vec": None})]
    now, other = [0.0], [Asked(sequences=asked[0].sequences, parts={"other": None})]
    pulse = Pulse(lambda: process.run(1, other), clock=lambda: now[0])
    pids = all_of(process)
    assert len(pids) == workers

    async def main() -> None:
        await pulse.check()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that calls are under way when it dies
        calls = [asyncio.create_task(process.run(0, asked)) for _ in range(2 * workers)]
        await asyncio.sleep(0.1)
        if victim:
            os.kill(pids[0], signal.SIGCONT)  # it must notice, and end with its child
        os.kill(pids[victim], signal.SIGKILL)
        found = await asyncio.gather(*calls, return_exceptions=True)
        errors = [each for each in found if isinstance(each, BaseException)]
        assert len(errors) >= 2  # of those that the victim had; its parent may have computed its own
        for error in errors:
            assert isinstance(error, EngineDied)
            assert str(error) == "the engine's process has ended (status -9)"
        with pytest.raises(EngineDied):
            await process.run(0, asked)
        now[0] += 2 * FRESH_S
        with pytest.raises(Unhealthy, match="a forward failed: EngineDied: the engine's process has ended"):
            await pulse.check()

    with_end(process, main())
    assert [str(each) for each in heard] == ["the engine's process has ended (status -9)"]
    assert all(map(has_ended, pids))


def test_one_of_several_that_hangs(tasks: dict[str, Task], settings: EngineSettings) -> None:
    process = EngineProcess(trunks(tasks), settings, workers=2)
    trunk = process.trunk(0)
    asked = [Asked(sequences=windows(tasks["vec"], 7), parts={"vec": None})]
    now = [0.0]
    pulse = Pulse(lambda: trunk.run(asked), longest_s=lambda: trunk.longest_s() and now[0], hangs_s=5)
    pids = all_of(process)

    async def main() -> None:
        assert trunk.longest_s() == 0
        await pulse.check()
        os.kill(pids[1], signal.SIGSTOP)
        stuck = [asyncio.create_task(trunk.run(asked)) for _ in range(2)]
        done, waits = await asyncio.wait(stuck, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waits)) == (1, 1)  # each went to a process of its own
        for _ in range(5):  # and further ones to the one that is free
            assert len((await trunk.run(asked))[0]["vec"].values) == 1
        now[0] = 4.0
        await pulse.check()
        assert 0 < trunk.longest_s() < ENDS_S
        now[0] = 6.0
        with pytest.raises(Unhealthy, match="a forward hangs since 6 s"):
            await pulse.check()
        await process.close()
        with pytest.raises(EngineDied, match="was ended"):
            await waits.pop()

    with_end(process, main())
    assert all(map(has_ended, pids))


def test_one_that_hangs_is_ended_all_the_same(process: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENDS_S", 0.2)

    async def main() -> None:
        os.kill(process.pid, signal.SIGSTOP)

    with_end(process, main())
    assert has_ended(process.pid)


def test_it_ends_with_the_one_that_it_computes_for(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "vec")
    words = (
        "from raybert.config import heads_from\n"
        "from raybert.engine import choose_settings\n"
        "from raybert.serve.process import EngineProcess\n"
        "from raybert.tasks import make_task\n"
        f"(spec,) = heads_from({{'vec': ({str(model)!r}, 'embed')}})\n"
        "settings = choose_settings(device='cpu', dtype='float32')\n"
        "process = EngineProcess([{'vec': make_task(spec)}], settings, workers=1)\n"
        "print(process.pid, flush=True)\n"
        "input()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", words], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert has_ended(pid)


def test_it_ends_so_also_in_the_middle_of_a_long_call(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "vec")
    words = (
        "import asyncio\n"
        "from raybert.config import heads_from\n"
        "from raybert.engine import choose_settings\n"
        "from raybert.serve.pieces import Asked, unknown_words\n"
        "from raybert.serve.process import EngineProcess\n"
        "from raybert.tasks import make_task\n"
        f"(spec,) = heads_from({{'vec': ({str(model)!r}, 'embed')}})\n"
        "task = make_task(spec)\n"
        "settings = choose_settings(device='cpu', dtype='float32', budget=8)\n"
        "process = EngineProcess([{'vec': task}], settings, workers=2)\n"
        "many = [Asked(sequences=unknown_words(task, 400_000, 8), parts={'vec': None})]\n"
        "async def main():\n"
        "    calls = [asyncio.ensure_future(process.run(0, many)) for _ in range(2)]\n"
        "    await asyncio.sleep(2)\n"
        "    assert not any(call.done() for call in calls)\n"
        "    print(process.pid, flush=True)\n"
        "    await asyncio.wait(calls)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pids = [pid, *(child.pid for child in psutil.Process(pid).children())]
        assert len(pids) == 2
        parent.kill()
    assert all(map(has_ended, pids))


class OddError(Exception):
    """One that a pickle does not bring back."""

    def __init__(self, *, row: int) -> None:
        super().__init__(f"row {row}")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("a"), ValueError, "a"),
        (OddError(row=7), RuntimeError, "OddError: row 7"),
        (SystemExit(1), RuntimeError, "SystemExit(1)"),
    ],
)
def test_every_error_arrives(error: BaseException, kind: type[Exception], words: str) -> None:
    def fails() -> Any:
        raise error

    (outcome,) = Unpacker().feed(packed(outcome_of(3, fails)))
    assert (outcome.ticket, type(outcome.error), str(outcome.error)) == (3, kind, words)
    assert "in fails" in outcome.error.__notes__[0]


def test_messages_arrive_whole_however_they_are_cut() -> None:
    sent = [b"", {"a": 1}, np.arange(1000), "last"]
    stream, rng = b"".join(map(packed, sent)), np.random.default_rng(0)
    for most in (1, 7, 100, len(stream)):
        unpacker, found, begin = Unpacker(), [], 0
        while begin < len(stream):
            end = begin + int(rng.integers(1, most + 1))
            found += unpacker.feed(stream[begin:end])
            begin = end
        assert len(found) == len(sent)
        np.testing.assert_array_equal(found[2], sent[2])
        assert [found[at] for at in (0, 1, 3)] == [sent[at] for at in (0, 1, 3)]


def test_only_what_a_forward_sees_goes_over(tasks: dict[str, Task]) -> None:
    program = group_heads({"people": tasks["people"]})
    encoded = program.encode(["a text of some words"])
    assert encoded[0].offsets is not None  # which its answers need, and stay here
    sequences, _ = program.shared(0, encoded)
    assert type(sequences) is Sequences
    np.testing.assert_array_equal(sequences.ids, encoded[0].ids)


def test_memory_that_jemalloc_holds_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own that begins with it, as those that compute do."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    words = (
        "import psutil, numpy as np\n"
        "from raybert.serve.memory import give_back\n"
        "held = lambda: psutil.Process().memory_info().rss >> 20\n"
        "give_back(); before = held()\n"
        "pieces = [np.ones(3 << 20, np.uint8) for _ in range(50)]; full = held(); del pieces\n"
        "give_back(); print(full - before, held() - before)\n"
    )
    environment = os.environ | module._allocator() | {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
    told = subprocess.run([sys.executable, "-c", words], env=environment, check=True, timeout=60, capture_output=True)
    full, left = map(int, told.stdout.split())
    assert full > 140
    assert left < 10
