"""Why a model actor finds no place is arithmetic over what Ray tells of its nodes."""

from __future__ import annotations

import re

import pytest

from raybert.data.waiting import crowded, lacking


def node(cpus: float, gpus: float = 0.0) -> dict[str, float]:
    return {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})


@pytest.mark.parametrize(
    ("nodes", "free", "size", "why"),
    [
        ([node(2)], [node(2)], (1.5, 0), None),
        ([node(1), node(4)], [node(0), node(1.5)], (1.5, 0), None),
        ([node(1), node(1)], [node(1), node(1)], (1.5, 0), "no living node has 1.5 CPUs .* 1 CPUs, 1 CPUs"),
        ([node(0)], [], (0.5, 0), "no living node has 0.5 CPUs for a model actor .there are: none"),
        ([node(1), node(1)], [node(0.4), node(0.4)], (0.5, 0), "needs 0.5 CPUs of one node, and others hold them"),
        ([node(8, 1)], [node(8, 1)], (0.5, 1), None),
        ([node(8, 1), node(8)], [node(8, 0.5), node(8)], (0.5, 1), "needs 0.5 CPUs and 1 GPUs of one node, and others"),
        ([node(8), node(8)], [node(8), node(8)], (0.5, 1), "no living node has 0.5 CPUs and 1 GPUs .* 8 CPUs, 8 CPUs"),
        # Ray's numbers are sums of fractions.
        ([node(1)], [node(0.1 + 0.2)], (0.3, 0), None),
        ([node(1)], [node(0.9999999)], (1, 0), None),
    ],
)
def test_what_is_missing_is_told_of_single_nodes(nodes, free, size, why):
    found = lacking(nodes, free, cpus=size[0], gpus=size[1])
    assert (found is None) == (why is None)
    assert re.search(why or "", found or ""), found


@pytest.mark.parametrize(
    ("nodes", "free", "actors", "is_told"),
    [
        ([node(1)], [node(0)], 2, True),
        ([node(1)], [node(0)], 1, False),  # stages hold the rest
        ([node(1)], [node(0.5)], 1, False),
        ([node(1), node(1)], [node(0), node(0.5)], 3, False),
        ([node(2)], [node(0.1)], 3, False),
    ],
)
def test_actors_that_leave_nothing_to_the_stages_are_told(nodes, free, actors, is_told):
    """Only when nothing but they holds processors: a stage that runs will end."""
    assert (crowded(nodes, free, actors=actors, cpus=0.5) is not None) == is_told
