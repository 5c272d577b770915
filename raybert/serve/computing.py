"""The process that computes for a replica, started by `raybert.serve.process`.

It loads the trunks that it is told first, and then computes what it is asked, each call on the next free stream. It
ends when its replica does, however that ended: then the other end of the socket is closed.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from raybert.engine import Trunk
from raybert.serve.memory import EVERY_S, give_back, keep_what_is_there
from raybert.serve.pieces import Found, run_together, unknown_words
from raybert.serve.readings import Readings, ReadingTrunk
from raybert.serve.wire import Call, Outcome, Setup, messages, packed


def outcome_of(ticket: int, work: Callable[[], Sequence[Found]]) -> Outcome:
    """What work comes to; an error takes its traceback along as a note."""
    try:
        return Outcome(ticket=ticket, found=work())
    except BaseException as error:  # noqa: BLE001  whatever it is, the caller must hear of it
        told = _that_travels(error)
        told.add_note("".join(traceback.format_exception(error)))
        return Outcome(ticket=ticket, error=told)


def _that_travels(error: BaseException) -> Exception:
    """The error, or its words where it is none that a caller should raise, or does not survive a pickle."""
    if not isinstance(error, Exception):
        return RuntimeError(repr(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  made the line before
    except Exception:  # noqa: BLE001  whatever keeps it here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def open_trunks(setup: Setup) -> list[ReadingTrunk]:
    """All trunks, warm: memory is taken and kernels are made, by the largest batch and the smallest."""
    opened = []
    for tasks in setup.trunks:
        # Answering is quick and computing is not: where both want a processor, requests are taken in and refused first.
        trunk = Trunk(tasks, setup.settings, threads=setup.workers, yields=True)
        first, longest = next(iter(tasks.values())), max(task.max_length for task in tasks.values())
        for count, length in ((max(1, setup.settings.budget // longest), longest), (1, 3)):
            trunk.run(unknown_words(first, count, length), dict.fromkeys(tasks))
        opened.append(ReadingTrunk(trunk, frozenset(tasks), Readings(tasks)))
    return opened


def serve(end: socket.socket) -> None:
    """Compute what is asked, until the other end is closed."""
    lock = threading.Lock()

    def tell(outcome: Outcome) -> None:
        raw = packed(outcome)
        with lock:
            end.sendall(raw)

    def compute(call: Call) -> None:
        trunk = trunks[call.trunk]
        tell(outcome_of(call.ticket, lambda: run_together(trunk.run, call.pieces)))

    def begin() -> Sequence[Found]:
        trunks.extend(open_trunks(setup))
        keep_what_is_there()
        return ()

    trunks: list[ReadingTrunk] = []
    coming = messages(end)
    setup = next(coming)
    tell(outcome_of(-1, begin))
    threading.Thread(target=_keep_giving_back, daemon=True).start()
    for call in coming:
        trunks[call.trunk].streams.submit(compute, call)


def _keep_giving_back() -> None:
    while True:
        time.sleep(EVERY_S)
        give_back()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the replica, and that ends this
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        serve(ours)
    os._exit(0)  # a forward that nobody waits for, or that hangs, holds nothing up
