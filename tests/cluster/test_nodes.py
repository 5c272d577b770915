"""A run over several nodes gives what one machine gives, byte for byte, also when one of them dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import PORT, Lab, lab
from tests.crash.conftest import Clean
from tests.jobs import armed, assert_same_tree, left_in, parts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODEL = "MapWorker(MapBatches(_Model))"
SLOW_DISK = armed(commit_s=0.2)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Lab]:
    """A head and two nodes, whose disks are slow: a run takes some seconds."""
    with lab([1, 1], env=SLOW_DISK) as made:
        yield made


def test_three_nodes_give_what_one_machine_gives(nodes: Lab, clean: Clean, tmp_path: Path) -> None:
    output, at_work = clean.begun(tmp_path), set()

    def both() -> bool:
        at_work.update(node.name for node in nodes.nodes if node.workers(MODEL))
        return len(at_work) == 2

    with nodes.running(*clean.words(output)) as run:
        run.until(both, "model actors on two nodes")
        done = run.finish()
    assert (done.code, done.errors) == (0, [])
    assert at_work == {"node2", "node3"}
    assert_same_tree(output, clean.output)


def test_a_node_that_dies_is_replaced_by_one_that_joins(nodes: Lab, clean: Clean, tmp_path: Path) -> None:
    output = clean.begun(tmp_path)
    with nodes.running(*clean.words(output)) as run:
        run.until(lambda: len(parts(output)) >= 2, "two parts")
        # With the node that holds it the whole run would die: it counts the deaths of the others.
        assert nodes.head.workers("Tries")
        nodes.nodes[-1].kill()
        assert len(parts(output)) < len(clean.parts)
        nodes.start(1, env=SLOW_DISK)
        done = run.finish()
    assert (done.code, done.errors) == (0, [])
    assert left_in(output) == ["manifest.json"]
    assert_same_tree(output, clean.output)


def test_what_a_cluster_can_not_do_is_told_in_one_line(nodes: Lab, clean: Clean, tmp_path: Path) -> None:
    done = nodes.run(*clean.words(tmp_path / "out"), "--cpus-per-actor", 5)
    (line,) = done.errors
    assert done.code == 2
    assert "actors x 5 CPUs: the nodes have 1, 1" in line, line
    assert not (tmp_path / "out").exists()


def test_a_head_out_of_reach_is_told_within_seconds(nodes: Lab, clean: Clean, tmp_path: Path) -> None:
    """No machine at the address, nothing at the port, something else at the port."""
    alone = nodes.machine()
    serve = """
import http.server
server = http.server.HTTPServer(("0.0.0.0", 8000), http.server.BaseHTTPRequestHandler)
print("serves", flush=True)
server.serve_forever()
"""
    with alone.program(serve) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "serves\n"
        for address, why in (
            ("10.0.0.200:6379", "No route to host"),
            (f"{alone.address}:{PORT}", "Connection refused"),
            (f"{alone.address}:8000", "what listens there is no Ray"),
        ):
            with nodes.running(*clean.words(tmp_path / "out"), address=address) as run:
                done = run.finish(within_s=40)
            (line,) = done.errors
            assert done.code == 1
            assert line.startswith(f"error: Ray at '{address}': "), line
            assert why in line
    assert not (tmp_path / "out").exists()
