"""Sharing out a cluster is arithmetic; joining Ray leaves the caller's signals alone and tells errors in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from raybert.cluster import (
    ENCODE_CPUS,
    READ_CPUS,
    WRITE_CPUS,
    Shares,
    cause_of,
    connected,
    first_line,
    share_out,
)
from raybert.engine import native_bfloat16
from raybert.errors import CheckpointError, DeviceError, RunFailed, SettingsError


def cpus(*sizes: float) -> list[dict[str, float]]:
    return [{"CPU": size, "memory": 1e9} for size in sizes]


def gpus(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"CPU": cpu, "GPU": gpu} for cpu, gpu in pairs]


@pytest.mark.parametrize(
    ("nodes", "asked", "actors", "booked", "streams"),
    [
        (cpus(1), {}, 1, 0.5, 1),
        (cpus(2), {}, 1, 1.5, 2),
        (cpus(8), {}, 1, 7.5, 8),
        (cpus(16), {}, 2, 7.5, 8),
        (cpus(2, 2), {}, 2, 1.5, 2),
        (cpus(1, 1), {}, 2, 0.51, 1),  # not 0.5: when one node dies, its actor must not fill the other
        (cpus(2, 2), {"actors": (6, 6)}, 6, 0.51, 1),
        (cpus(16, 8), {}, 3, 7.5, 8),
        (cpus(16, 4, 4), {}, 2, 7.5, 8),  # the small nodes are no place for an actor of eight streams
        (cpus(2), {"actors": (2, 2)}, 2, 0.75, 1),
        (cpus(2), {"actors": (1, 4)}, 4, 0.37, 1),
        (cpus(4, 2), {"actors": (3, 3)}, 3, 1.5, 2),
        (cpus(2), {"cpus_per_actor": 0.5}, 1, 0.5, 1),
        (cpus(2), {"actors": (2, 2), "cpus_per_actor": 0.5}, 2, 0.5, 1),
        (cpus(2, 2), {"actors": (1, 1), "cpus_per_actor": 2}, 1, 2, 2),
        (gpus((16, 2)), {"device": "cpu"}, 2, 7.5, 8),
        (gpus((16, 2)), {"gpus_per_actor": 0}, 2, 7.5, 8),
        ([*cpus(2), {"GPU": 0.0, "node:head": 1.0}], {}, 1, 1.5, 2),
    ],
)
def test_actors_fill_the_processors_that_other_stages_leave(nodes, asked, actors, booked, streams):
    shares = share_out(nodes, **asked)
    assert (shares.most, shares.cpus, shares.gpus, shares.streams) == (actors, booked, 0.0, streams)
    assert shares.least == asked.get("actors", (actors,))[0]


@pytest.mark.parametrize(
    ("nodes", "asked", "actors", "booked", "each"),
    [
        (gpus((16, 2)), {}, (2, 2), 0.5, 1.0),
        (gpus((16, 2)), {"device": "cuda", "actors": (1, 2)}, (1, 2), 0.5, 1.0),
        (gpus((8, 1)), {"gpus_per_actor": 0.5}, (2, 2), 0.5, 0.5),
        (gpus((8, 4), (8, 4)), {"gpus_per_actor": 2}, (4, 4), 0.5, 2),
        (gpus((8, 4)), {"cpus_per_actor": 1}, (4, 4), 1, 1.0),
        (gpus((4, 8)), {}, (8, 8), 0.43, 1.0),  # few processors for eight GPUs
    ],
)
def test_actors_fill_the_gpus(nodes, asked, actors, booked, each):
    shares = share_out(nodes, **asked)
    assert (shares.least, shares.most) == actors
    assert (shares.cpus, shares.gpus, shares.streams) == (booked, each, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 13, 16, 32, 64, 96, 192])
@pytest.mark.parametrize("actors", [None, 1, 2, 3, 17])
def test_reading_and_writing_always_find_a_place(size, actors):
    shares = share_out(cpus(size), actors=None if actors is None else (1, actors))
    stages = shares.readers * READ_CPUS + shares.encoders * ENCODE_CPUS + shares.writers * WRITE_CPUS
    assert shares.most * shares.cpus + stages <= size + 1e-6
    assert shares.cpus not in (READ_CPUS, ENCODE_CPUS, WRITE_CPUS)


@pytest.mark.parametrize("asked", [READ_CPUS, ENCODE_CPUS, WRITE_CPUS])
def test_no_actor_books_what_a_stage_books(asked):
    """Ray Data would fuse the two, and the model's process would do the stage's work."""
    assert share_out(cpus(2), cpus_per_actor=asked).cpus == pytest.approx(asked - 0.01)


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        (cpus(2), {"cpus_per_actor": 2}, "1 actors x 2 CPUs: the nodes have 2 CPUs .* --cpus-per-actor 1.5 or less"),
        (cpus(2), {"actors": (1, 4), "cpus_per_actor": 0.5}, "4 actors x 0.5 CPUs: .* --cpus-per-actor 0.37 or less"),
        (cpus(2, 2), {"cpus_per_actor": 3, "actors": (1, 1)}, "1 actors x 3 CPUs: the nodes have 2, 2 CPUs"),
        (cpus(1), {"actors": (1, 100)}, "100 actors: the nodes have 1 CPUs .*; pass fewer --actors"),
        (cpus(0.5), {}, "1 actors: the nodes have 0.5 CPUs"),
        ([{"GPU": 1.0}], {}, "no node has a CPU"),
        (cpus(2), {"actors": (0, 0)}, "actors 0:0: at least 1"),
        (cpus(2), {"actors": (3, 2)}, "actors 3:2: at least 1, and MIN at most MAX"),
        (cpus(2), {"cpus_per_actor": 0}, "cpus-per-actor 0: takes a number above 0"),
        (gpus((8, 1)), {"gpus_per_actor": -1}, "gpus-per-actor -1"),
        (gpus((8, 2)), {"gpus_per_actor": 1.5}, "gpus-per-actor 1.5: takes 0, a fraction of one GPU, or a whole"),
        (gpus((8, 1)), {"actors": (2, 2)}, "2 actors x 1 GPUs: the nodes have 1; pass fewer --actors"),
        (gpus((8, 1), (8, 1)), {"gpus_per_actor": 2}, "1 actors x 2 GPUs: the nodes have 1, 1"),
        (gpus((2, 2)), {"cpus_per_actor": 1}, "2 actors x 1 CPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused(nodes, asked, message):
    with pytest.raises(SettingsError, match=message):
        share_out(nodes, **asked)


@pytest.mark.parametrize(
    ("nodes", "actors", "booked", "streams"),
    [
        (cpus(8), None, 6.5, 8),
        (cpus(2), None, 0.5, 2),
        (cpus(1), None, 0.0, 1),
        (cpus(2), (2, 2), 0.25, 1),
        (cpus(16, 2), (3, 3), 4.66, 5),
    ],
)
def test_other_stages_of_a_dataset_find_a_place_too(nodes, actors, booked, streams):
    """`raybert.data.apply` does not know what stands before and after it; Ray Data books a whole CPU for a task."""
    shares = share_out(nodes, actors=actors, others=1.0)
    assert (shares.cpus, shares.streams) == (booked, streams)


def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(DeviceError, match="no node of the cluster has a GPU; pass --device cpu"):
        share_out(cpus(8), device="cuda")


def test_shares_are_fixed():
    with pytest.raises(AttributeError):
        share_out(cpus(2)).most = 3
    assert isinstance(share_out(cpus(2)), Shares)


def test_an_address_where_nothing_listens_is_one_line():
    with pytest.raises(RunFailed) as caught, connected("127.0.0.1:1"):
        pass
    assert str(caught.value).startswith("Ray at '127.0.0.1:1': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 505 Version\r\n\r\n", b""])
def test_an_address_where_something_else_listens_is_one_line(answer):
    """Ray would go on trying for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as door:
                door.recv(1024)
                door.sendall(answer)

        stranger = threading.Thread(target=serve)
        stranger.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(RunFailed, match=f"Ray at '{address}': what listens there is no Ray; "), connected(address):
            pass
        stranger.join()


def test_our_own_error_is_found_inside_of_rays():
    from ray.exceptions import RayTaskError

    ours = CheckpointError("m: no weights")
    carried = RayTaskError("f", "Traceback ...\nraybert.errors.CheckpointError: m: no weights", ours)
    assert cause_of(carried) is ours
    assert cause_of(ours) is ours
    assert cause_of(ValueError("x")) is None
    chained = ValueError("x")
    chained.__cause__ = carried
    assert cause_of(chained) is ours
    text_alone = RuntimeError("The actor died\nTraceback ...\nraybert.errors.CheckpointError: m: no weights\n")
    found = cause_of(text_alone)
    assert type(found) is CheckpointError
    assert str(found) == "m: no weights"
    assert cause_of(RuntimeError("raybert.errors.open: x")) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one line", "one line"),
        ("", "ValueError"),
        ("Traceback\n  File x\nKeyError: 'a'\n  more\nray.exceptions.Foo: no\nValueError: b\n", "ValueError: b"),
        ("ValueError: b\n\nThe above ...\nray.exceptions.UserCodeException: UDF failed\nTo change\n", "ValueError: b"),
        ("\n first \nsecond", "first"),
    ],
)
def test_an_error_of_another_library_in_one_line(text, line):
    assert first_line(ValueError(text)) == line


OVER_ALL_SHAPES = """
import sys
from raybert.cluster import limit_worker
if sys.argv[1] == "limited":
    limit_worker()
import psutil, torch

def grown(lengths):
    before = psutil.Process().memory_info().rss
    for length in lengths:
        x = torch.ones((12, length, 32), dtype=torch.bfloat16)
        torch.bmm(x, x.transpose(1, 2))
    return (psutil.Process().memory_info().rss - before) / 2**20

torch.set_num_threads(1)
grown([512]); grown(range(1, 300))
print(grown(range(300, 800)))
"""


@pytest.mark.skipif(not native_bfloat16("cpu"), reason="needs a CPU whose products in bfloat16 oneDNN compiles")
def test_a_worker_levels_over_texts_of_all_lengths() -> None:
    """Of 500 more shapes nothing is kept but the larger tensors; unlimited, each keeps half a megabyte."""
    found = {}
    own = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE_CAPACITY")}
    for how in ("limited", "unlimited"):
        words = [sys.executable, "-c", OVER_ALL_SHAPES, how]
        told = subprocess.run(words, env=own, capture_output=True, text=True, check=True, timeout=120)
        found[how] = float(told.stdout)
    assert found["limited"] < 50
    assert found["unlimited"] > 100
