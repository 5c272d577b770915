"""Several nodes on one machine, each with its own network, processes and host name, in one Ray cluster.

Everything lives in Linux namespaces below one process. A node is cut off by taking its link down, and dies as a machine
does, all of its processes at once, when its first one is killed. When the lab's first process is, the kernel ends all
nodes and takes their networks and mounts with them. Root is not needed where users may make namespaces::

    lab ── bridge ─┬─ node1: 10.0.0.1, the head; drivers run here
                   ├─ node2: 10.0.0.2
                   └─ ...
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.jobs import PATIENCE_S, Finished, environment, ray_folder, wait_for
from tests.processes import descendants, title

PORT = 6379
SILENCE_S = 5.0  # after which Ray's head surely calls a node dead: three checks, a second each
_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
_STORE_BYTES = 100 << 20
_NEW_SPACES = ("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
_NEW_LAB = (*_NEW_SPACES, "--ipc", "--user", "--map-root-user")
_PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
_BRIDGE = "ip link add bridge0 type bridge && ip link set bridge0 up"


def why_not() -> str | None:
    """Why this machine can't have a lab; None where it can."""
    missing = [tool for tool in ("ip", "mount", "nsenter", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"needs the programs {', '.join(missing)} (Debian: iproute2, mount, util-linux)"
    tried = subprocess.run([*_NEW_LAB, "sh", "-ec", _BRIDGE], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"this user may not make namespaces with a network of their own: {tried.stderr.strip()}"
    return None


class Node:
    """One machine of the lab; made by `Lab.start`.

    Attributes:
        name: its host name, and its link's.
        address: in the lab's network.
        first: its first process; all others end with it.
        ray: the process that started its Ray and waits for its end.
    """

    def __init__(self, lab: Lab, number: int, first: int) -> None:
        self.name, self.address = f"node{number}", f"10.0.0.{number}"
        self.ray: subprocess.Popen[str] | None = None
        self._lab, self.first = lab, first
        self._space = _process_space(first)

    def cut(self) -> None:
        """Take it off the network: whatever runs there goes on, and reaches nobody."""
        self._lab.shell(f"ip link set {self.name} down")

    def mend(self) -> None:
        """Put it back on the network."""
        self._lab.shell(f"ip link set {self.name} up")

    def kill(self) -> None:
        """End all of its processes at once."""
        os.kill(self.first, signal.SIGKILL)
        wait_for(lambda: not self.processes(), f"the end of {self.name}", within_s=30)

    def processes(self) -> dict[int, str]:
        """Process id -> title of everything that runs there."""
        pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
        return {pid: text for pid in pids if _process_space(pid) == self._space and (text := title(pid))}

    def workers(self, word: str) -> list[int]:
        """Ray's workers there that run ``word`` right now."""
        return [pid for pid, text in self.processes().items() if text.startswith("ray::") and word in text]

    @contextmanager
    def program(
        self, code: str, *words: object, env: Mapping[str, str | None] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Python code in a process there, which ends with the block at the latest."""
        command = [sys.executable, "-c", code, *words]
        with _enter(self.first, *command, env=self._lab.environment(env), stdin=subprocess.DEVNULL, **_PIPES) as made:
            try:
                yield made
            finally:
                for pid in [made.pid, *descendants(made.pid)] if made.poll() is None else ():
                    os.kill(pid, signal.SIGKILL)

    def shell(self, script: str) -> None:
        """Run a shell's commands there."""
        _shell(self.first, script)


class Run:
    """``raybert ...`` on the head, with the cluster's address; made by `Lab.running`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._err: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._err.extend(iter(self.process.stderr.readline, ""))

    @property
    def err(self) -> str:
        """What it has said on stderr so far."""
        return "".join(self._err)

    def finish(self, *, within_s: float = PATIENCE_S) -> Finished:
        """Wait for its end."""
        assert self.process.stdout is not None
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run goes on after {within_s:g} s; it said: {self.err}") from None
        self._reader.join()
        return Finished(code, self.process.stdout.read(), self.err)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true answer of ``condition``, while the command goes on."""

        def asked() -> Any:
            if (answer := condition()) or self.process.poll() is None:
                return answer
            raise AssertionError(f"it ended before {what}: {self.finish()}")

        return wait_for(asked, what)


class Lab:
    """Nodes and their network; made by `lab`."""

    def __init__(self, first: int, folder: Path) -> None:
        self._first, self._folder = first, folder
        self._started: list[subprocess.Popen[str]] = []
        self.nodes: list[Node] = []

    @property
    def head(self) -> Node:
        """The node on which drivers run."""
        return self.nodes[0]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.head.address}:{PORT}"

    def shell(self, script: str) -> None:
        """Run a shell's commands beside the nodes, where the bridge is."""
        _shell(self._first, script)

    def machine(self) -> Node:
        """A new machine on the network, without a Ray."""
        number = len(self.nodes) + 1
        mounts = f"hostname node{number}; mount -t tmpfs tmpfs {self._folder}; ip link set lo up"
        waiting = f"{mounts}; echo ready; exec sleep infinity"
        outer = _enter(self._first, *_NEW_SPACES, "sh", "-ec", waiting, **_PIPES)
        self._started.append(outer)
        node = Node(self, number, _first_below(outer))
        # A process has a number in each namespace that it is seen from: here, in the lab, in its own node.
        in_lab = _status(node.first, "NSpid").split()[-2]
        self.shell(f"ip link add {node.name} type veth peer name eth0 netns {in_lab}")
        self.shell(f"ip link set {node.name} master bridge0 up")
        # Ray finds a driver's own address by a route to the internet.
        node.shell(f"ip addr add {node.address}/24 dev eth0; ip link set eth0 up; ip route add default dev eth0")
        self.nodes.append(node)
        return node

    def start(self, cpus: float = 1, *, env: Mapping[str, str | None] | None = None, node: Node | None = None) -> Node:
        """Start Ray on a machine: on the first one a head, on another a node of its cluster. `ready` waits for it.

        Args:
            cpus: that Ray may book.
            env: variables of its workers, beside the usual ones.
            node: the machine; None is a new one.
        """
        node = node or self.machine()
        if node is self.head:
            checks = json.dumps(_CHECKS)
            role = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--system-config={checks}"]
        else:
            role = [f"--address={self.address}"]
        sizes = [f"--num-cpus={cpus}", f"--object-store-memory={_STORE_BYTES}"]
        node.ray = _enter(
            node.first,
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *role, *sizes),
            *(f"--node-ip-address={node.address}", f"--temp-dir={self._folder}"),
            env=self.environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._started.append(node.ray)
        return node

    def ready(self, *nodes: Node) -> None:
        """Wait until these nodes belong to the cluster."""
        for node in nodes:
            assert node.ray is not None
            assert node.ray.stdout is not None
            said: list[str] = []
            for line in iter(node.ray.stdout.readline, ""):
                said.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                raise AssertionError(f"Ray did not start on {node.name}: {''.join(said)}")

    @contextmanager
    def running(
        self, *words: object, address: str | None = None, env: Mapping[str, str | None] | None = None
    ) -> Iterator[Run]:
        """``raybert`` on the head for the length of the block; joins this cluster unless an address is given."""
        cli = "from raybert.cli import main; main()"
        with self.head.program(cli, *words, "--address", address or self.address, env=env) as process:
            yield Run(process)

    def run(self, *words: object, env: Mapping[str, str | None] | None = None) -> Finished:
        """One command line from start to end."""
        with self.running(*words, env=env) as run:
            return run.finish()

    def end(self) -> None:
        """Kill the lab's first process, and so all others."""
        os.kill(self._first, signal.SIGKILL)
        for process in self._started:
            with process:
                pass
        for node in self.nodes:
            wait_for(lambda node=node: not node.processes(), f"the end of {node.name}", within_s=30)

    def environment(self, changes: Mapping[str, str | None] | None) -> dict[str, str]:
        """Variables of a process in the lab: this process's with these changes, and what Ray needs there."""
        return environment(self._folder, dict(changes or {}))


@contextmanager
def lab(cpus: Sequence[float], *, env: Mapping[str, str | None] | None = None) -> Iterator[Lab]:
    """A head without CPUs to book and a node of each of these sizes, for the length of the block.

    Args:
        cpus: of the nodes.
        env: variables of all nodes' workers.
    """
    with ExitStack() as held:
        folder = held.enter_context(ray_folder())
        script = f"ip link set lo up; {_BRIDGE}; echo ready; exec sleep infinity"
        process = subprocess.Popen([*_NEW_LAB, "sh", "-ec", script], text=True, **_PIPES)
        held.enter_context(process)
        held.callback(process.kill)  # its child, the lab's first process, is killed with it
        made = Lab(_first_below(process), folder)
        held.callback(made.end)
        made.ready(made.start(0, node=made.machine(), env=env))
        made.ready(*[made.start(size, env=env) for size in cpus])
        yield made


def _first_below(outer: subprocess.Popen[str]) -> int:
    """The first process of the namespaces that ``outer`` made, once they are ready."""
    assert outer.stdout is not None
    assert outer.stderr is not None
    assert outer.stdout.readline() == "ready\n", outer.stderr.read()
    return descendants(outer.pid)[-1]


def _enter(first: int, *words: object, **popen: Any) -> subprocess.Popen[str]:
    spaces = ("--user", "--net", "--mount", "--pid", "--uts", "--ipc")
    command = ["nsenter", f"--target={first}", *spaces, "--preserve-credentials", *[str(word) for word in words]]
    return subprocess.Popen(command, text=True, **popen)


def _shell(first: int, script: str) -> None:
    with _enter(first, "sh", "-ec", script, stderr=subprocess.PIPE) as shell:
        assert shell.stderr is not None
        said = shell.stderr.read()
    assert shell.returncode == 0, f"{script}: {said}"


def _process_space(pid: int) -> str | None:
    """Which namespace of processes a process is in; None once it ended."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith(f"{field}:"))
