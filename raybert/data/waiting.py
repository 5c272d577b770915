"""A job that stands still because its cluster has no place for a model actor says so, and goes on waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raybert.cluster import ENCODE_CPUS, alive_nodes

_QUIET_S = 30.0
_LOOKS = 6  # in the time that a job may stand still
_POOLED = "MapWorker"  # what the class of Ray Data's actors is called


def lacking(nodes: list[dict[str, float]], free: list[dict[str, float]], *, cpus: float, gpus: float) -> str | None:
    """Why no model actor can start; pure.

    Args:
        nodes: resources of each living node, as Ray names them.
        free: what of them nobody has booked.
        cpus: that an actor books.
        gpus: likewise.

    Returns:
        What is missing, in words; None where an actor has a place.
    """

    def fits(node: dict[str, float]) -> bool:
        return node.get("CPU", 0.0) >= cpus - 1e-6 and node.get("GPU", 0.0) >= gpus - 1e-6

    if any(fits(node) for node in free):
        return None
    size = _size(cpus, gpus)
    if any(fits(node) for node in nodes):
        return f"a model actor needs {size} of one node, and others hold them; the run goes on when they are free"
    there = ", ".join(_size(node["CPU"], node.get("GPU", 0.0)) for node in nodes if node.get("CPU"))
    return f"no living node has {size} for a model actor (there are: {there or 'none'}); the run goes on when one joins"


def crowded(nodes: list[dict[str, float]], free: list[dict[str, float]], *, actors: int, cpus: float) -> str | None:
    """Why nothing is read, encoded or written though model actors live; pure.

    Ray moves the actors of a node that dies to those that live, also where they then leave no place for anything else.

    Args:
        nodes: resources of each living node.
        free: what of them nobody has booked.
        actors: model actors that live.
        cpus: that one books.

    Returns:
        What is wrong, in words; None where a stage has a place, or others than the actors hold processors.
    """
    booked = sum(node.get("CPU", 0.0) for node in nodes) - sum(node.get("CPU", 0.0) for node in free)
    if abs(booked - actors * cpus) > 1e-3 or any(node.get("CPU", 0.0) >= ENCODE_CPUS - 1e-6 for node in free):
        return None
    return (
        f"{actors} model actors hold all CPUs of the nodes that are left, and reading and writing find none; "
        "stop the run and start it again: it goes on with what there is"
    )


def _size(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"


@contextmanager
def watched(
    cpus: float, gpus: float, *, is_idle: Callable[[], bool] | None = None, quiet_s: float = _QUIET_S
) -> Iterator[None]:
    """Warn while a job stands still because the cluster has no place for a model actor.

    Args:
        cpus: that an actor books.
        gpus: likewise.
        is_idle: whether the job needs a place, asked from a thread; None: while no model actor lives, or only they do.
        quiet_s: how long that may last before the first warning; the next ones come after twice, four times as long.
    """
    ended = threading.Event()

    def why() -> str | None:
        actors = 0 if is_idle is not None else _actors()
        if is_idle is not None and not is_idle():
            return None
        if actors:
            return crowded(alive_nodes(), _free(), actors=actors, cpus=cpus)
        return lacking(alive_nodes(), _free(), cpus=cpus, gpus=gpus)

    def watch() -> None:
        idle_s, patience_s, step_s = 0.0, quiet_s, quiet_s / _LOOKS
        while not ended.wait(step_s):
            try:
                what = why()
            except Exception:  # noqa: BLE001  a head that does not answer ends the run, which tells it
                what = None
            if what is None:
                idle_s, patience_s = 0.0, quiet_s
                continue
            idle_s += step_s
            if idle_s >= patience_s:
                # Where nobody has set up logging, Python prints a warning's text to stderr.
                logging.getLogger("raybert").warning("raybert: waiting for %.0f s: %s", idle_s, what)
                patience_s = 2 * idle_s

    thread = threading.Thread(target=watch, name="raybert-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(quiet_s)  # it may be asking a head that does not answer


def _actors() -> int:
    """How many actors of this job's pool live on living nodes, those that load their model included."""
    import ray
    from ray._private.state import state  # the public list asks the dashboard, which a private Ray goes without

    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    job = ray.get_runtime_context().get_job_id()
    actors = [each for each in state.actor_table(None).values() if each["JobID"] == job and each["State"] != "DEAD"]
    # One that waits for a place has no port yet. One that lost its place keeps the number of the process that it had,
    # and Ray has it lie on the head, which looks for another.
    placed = [each for each in actors if each["ActorClassName"].startswith(_POOLED) and each["Address"]["Port"]]
    return sum(each["Address"]["NodeID"] in living for each in placed)


def _free() -> list[dict[str, float]]:
    """What nobody has booked, of each living node."""
    from ray._private.state import available_resources_per_node  # the public sum can't tell nodes apart

    return [dict(node) for node in available_resources_per_node().values()]
