"""Nodes that vanish, fall silent and come back, or see other disks: no row is lost, none is written twice or elsewhere.

Minutes; to run them::

    pytest tests/cluster/test_partitions.py -m soak
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raybert.data.verify import verify
from tests.cluster.lab import SILENCE_S, Lab, Node, lab
from tests.crash.conftest import Clean
from tests.jobs import Finished, armed, assert_same_tree, left_in, parts, tree_bytes, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
MODEL, READ, WRITE = "MapWorker(MapBatches(_Model))", "MapBatches(_read)", "MapBatches(_write)"
SLOW_DISK = armed(commit_s=0.2)
SLOW_S = 15.0  # what a node takes for a commit that is to end after the run


@pytest.mark.parametrize("holds", [MODEL, READ])
def test_the_node_that_holds_the_only_actor_dies(clean: Clean, tmp_path: Path, holds: str) -> None:
    """Nothing is left that could compute; the run says so, waits, and goes on when a node joins."""
    output = clean.begun(tmp_path)
    with lab([1], env=SLOW_DISK) as nodes, nodes.running(*clean.words(output)) as run:
        (_, only) = nodes.nodes
        run.until(lambda: len(parts(output)) >= 1 and only.workers(holds), f"a part, and {holds} at work")
        assert nodes.head.workers("Tries")
        only.kill()
        assert len(parts(output)) < len(clean.parts)
        run.until(lambda: "waiting for 30 s: no living node has 0.5 CPUs for a model actor" in run.err, "a warning")
        nodes.start(1, env=SLOW_DISK)
        done = run.finish()
    assert done.code == 0, done
    assert_complete(output, clean)


def assert_complete(output: Path, clean: Clean) -> None:
    """The folder is that of the undisturbed run, and proves it."""
    assert left_in(output) == ["manifest.json"]
    assert_same_tree(output, clean.output)
    assert verify(output, full=True).ok


@pytest.mark.parametrize("comes_back", ["while the run goes on", "when the run has ended"])
def test_a_node_that_was_cut_off_does_no_harm(clean: Clean, tmp_path: Path, comes_back: str) -> None:
    """It goes on writing what others compute again; its late commit finds the run over, or equals theirs."""
    output = clean.begun(tmp_path)
    fast = armed(commit_s=1.0 if comes_back == "while the run goes on" else 0.1)
    with lab([1], env=fast) as nodes:
        cut_off = nodes.start(1, env=armed(commit_s=SLOW_S))
        nodes.ready(cut_off)
        with nodes.running(*clean.words(output)) as run:
            run.until(lambda: cut_off.workers(MODEL) and is_writing(cut_off, output), "its commit")
            cut_off.cut()
            cut = time.monotonic()
            if comes_back == "while the run goes on":
                time.sleep(2 * SILENCE_S)
                assert run.process.poll() is None
                cut_off.mend()
            done = run.finish()
        assert (done.code, done.errors) == (0, [])
        assert time.monotonic() - cut > SILENCE_S
        assert parts(output) == clean.parts
        # What lies under its final name is right at any moment, whoever wrote it last.
        found, expected = tree_bytes(output), tree_bytes(clean.output)
        assert [name for name in expected if found.get(name) != expected[name]] == []
        if comes_back == "when the run has ended":
            assert cut_off.workers(WRITE)
            wait_for(lambda: not is_writing(cut_off, output), "its late commit", within_s=10 * SLOW_S)
            cut_off.mend()
        wait_for(lambda: not cut_off.workers(""), "the end of its workers", within_s=120)
        again = nodes.run(*clean.words(output))
        assert (again.code, again.errors) == (0, [])
    assert_complete(output, clean)


def is_writing(node: Node, output: Path) -> bool:
    """A worker of the node has a temporary of a part open or waits to give it its name."""
    temporaries = output / "_raybert" / "tmp"
    return bool(node.workers(WRITE)) and temporaries.is_dir() and any(temporaries.iterdir())


@pytest.fixture(scope="module")
def strangers() -> Iterator[Lab]:
    """Two nodes with disks of their own wherever a test puts one."""
    with lab([1, 1]) as made:
        yield made


def run_with_hidden(strangers: Lab, clean: Clean, output: Path, hidden: Path) -> Finished:
    """A run while one node has an empty disk of its own in a folder's place."""
    stranger = strangers.nodes[-1]
    stranger.shell(f"mount -t tmpfs tmpfs {hidden}")
    try:
        return strangers.run(*clean.words(output))
    finally:
        stranger.shell(f"umount -l {hidden}")


def test_a_node_that_does_not_share_the_output_is_named(strangers: Lab, clean: Clean, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    done = run_with_hidden(strangers, clean, output, output)
    (line,) = done.errors
    assert done.code == 1
    assert line.startswith(f"error: {output}/_raybert/driver.json: not there on node node3; OUTPUT must be one folder")
    assert len(parts(output)) < len(clean.parts)
    done = strangers.run(*clean.words(output))
    assert (done.code, done.errors) == (0, [])
    assert verify(output, full=True).ok


def test_a_node_without_the_checkpoint_is_named(strangers: Lab, clean: Clean, tmp_path: Path) -> None:
    done = run_with_hidden(strangers, clean, tmp_path / "out", clean.model)
    (line,) = done.errors
    assert done.code == 2
    assert line.startswith(f"error: {clean.model}: no config.json")
    assert line.endswith("so it is on node node3, though the driver could read it: put the same files on every node")


def test_a_node_without_the_input_is_named(strangers: Lab, clean: Clean, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run_with_hidden(strangers, clean, output, clean.input)
    (line,) = done.errors
    assert done.code == 1
    assert "node node3 misses it, and every node has to reach the input" in line
    done = strangers.run(*clean.words(output))
    assert (done.code, done.errors) == (0, [])
    assert verify(output, full=True).ok


def test_a_cluster_whose_processors_are_taken_says_so(strangers: Lab, clean: Clean, tmp_path: Path) -> None:
    """Another job holds them; the run waits for its end."""
    hold = """
import ray, time
ray.init(address={address!r}, log_to_driver=False)
held = [ray.remote(num_cpus=0.9)(type("Holder", (), {{"hold": lambda self: None}})).remote() for _ in range(2)]
ray.get([each.hold.remote() for each in held])
print("held", flush=True)
time.sleep(45)
"""
    with strangers.head.program(hold.format(address=strangers.address)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = strangers.run(*clean.words(tmp_path / "out"))
    assert done.code == 0, done
    assert "raybert: waiting for 30 s: a model actor needs 0.51 CPUs of one node, and others hold them" in done.err


def test_a_head_alone_has_no_processor(clean: Clean, tmp_path: Path) -> None:
    with lab([]) as nodes:
        done = nodes.run(*clean.words(tmp_path / "out"))
    assert done.errors == ["error: cluster: no node has a CPU; reading and writing need one"]
    assert done.code == 2
