"""The process that computes for a replica, started by `raybert.serve.process`.

It loads the trunks that it is told first. For each further socket it then forks: weights lie in memory once, and
streams on a CPU, which take Python's lock hundreds of times a forward, don't wait for each other's. Each computes what
it is asked, and ends when its replica does, however that ended: then the other end of its socket is closed. None
outlives another.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from raybert.engine import Trunk
from raybert.serve.memory import EVERY_S, give_back, keep_what_is_there
from raybert.serve.pieces import Found, unknown_words
from raybert.serve.readings import Readings, ReadingTrunk
from raybert.serve.wire import Call, Outcome, Setup, messages, packed

_PR_SET_PDEATHSIG = 1
_YIELDS = 10  # steps of niceness: of two threads that want one processor the other gets nine tenths of it


def outcome_of(ticket: int, work: Callable[[], Found]) -> Outcome:
    """What work comes to; an error takes its traceback along as a note."""
    try:
        return Outcome(ticket=ticket, found=work())
    except BaseException as error:  # noqa: BLE001  whatever it is, the caller must hear of it
        told = _that_travels(error)
        told.add_note("".join(traceback.format_exception(error)))
        return Outcome(ticket=ticket, found={}, error=told)


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
        trunk = Trunk(tasks, setup.settings, threads=setup.workers)
        first, longest = next(iter(tasks.values())), max(task.max_length for task in tasks.values())
        for count, length in ((max(1, setup.settings.budget // longest), longest), (1, 3)):
            trunk.run(unknown_words(first, count, length), dict.fromkeys(tasks), here=True)
        opened.append(ReadingTrunk(trunk, frozenset(tasks), Readings(tasks)))
    return opened


def serve(ends: Sequence[socket.socket]) -> None:
    """Compute what is asked, in a process for each of these sockets, until its other end is closed."""
    end, lock = ends[0], threading.Lock()
    trunks: list[ReadingTrunk] = []

    def tell(outcome: Outcome) -> None:
        raw = packed(outcome)
        with lock:
            end.sendall(raw)

    def compute(call: Call) -> None:
        trunk, (sequences, parts) = trunks[call.trunk], call.asked
        tell(outcome_of(call.ticket, lambda: trunk.run(sequences, parts)))

    def begin() -> Found:
        nonlocal end
        trunks.extend(open_trunks(setup))
        keep_what_is_there()
        end = _one_each(ends)
        return {}

    setup = next(messages(end))
    if setup.settings.device == "cpu":
        _yield_to_answers()
    begun = outcome_of(-1, begin)
    if end is ends[0]:
        tell(begun)
    threading.Thread(target=_keep_giving_back, daemon=True).start()
    threading.Thread(target=_end_when_closed, args=(end,), daemon=True).start()
    for call in messages(end):
        if setup.workers == 1:  # here, which saves a change of threads
            compute(call)
        else:
            trunks[call.trunk].streams.submit(compute, call)


def _yield_to_answers() -> None:
    """Answering is quick and computing is not: where both want a processor, requests are taken in and refused first.

    Niceness alone is not enough. Linux lets a process that was asleep have the processor at once, and this one wakes
    when the event loop writes to its socket: one time in seven the loop stood still for 1.6 ms there, and all who had
    asked with it (perf, 215 requests/s on 2 processors). A process of the batch class waits its turn.
    """
    os.nice(_YIELDS)
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):  # some sandboxes have no classes
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _one_each(ends: Sequence[socket.socket]) -> socket.socket:
    """Fork, so that there is a process for each socket; give this one's."""
    parent = os.getpid()
    for own in ends[1:]:
        if os.fork() == 0:
            _end_with(parent)
            for each in ends:
                if each is not own:
                    each.close()
            return own
        own.close()
    if len(ends) > 1:
        threading.Thread(target=_end_as_the_first, daemon=True).start()
    return ends[0]


def _end_with(parent: int) -> None:
    """End when that process does, also where this one is stopped or hangs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(0)


def _end_when_closed(end: socket.socket) -> None:
    """End when the other end is closed, also in the middle of a forward, and of one that hangs."""
    closed = select.poll()
    closed.register(end, 0)  # a hang-up is told in any case
    closed.poll()
    os._exit(0)


def _end_as_the_first() -> None:
    """Wait for the first child that ends, which ends all: the replica then says how."""
    _, status = os.wait()
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _keep_giving_back() -> None:
    while True:
        time.sleep(EVERY_S)
        give_back()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the replica, and that ends this
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    serve([socket.socket(fileno=int(number)) for number in sys.argv[1:]])
    os._exit(0)  # a forward that nobody waits for, or that hangs, holds nothing up
