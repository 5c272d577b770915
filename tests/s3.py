"""S3 for tests: moto's server in a process of its own, and a proxy before it that fails as stores and networks do.

    with moto_server() as server, Proxy(server) as proxy:
        store = Store(proxy.uri("bucket/out"))   # or without the endpoint in the URI: proxy.environment()
        proxy.faults.append(Fault("503", "PUT", times=2))

A bucket of a name of its own is made by `Server.bucket`; nothing outlives the block.
"""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import pyarrow.fs as pafs

KEY, SECRET = "raybert-tests", "not-to-be-shown"
STEPS = ("GET", "HEAD", "LIST", "PUT", "COPY", "DELETE", "CREATE", "PART", "COMPLETE")
"""What a request asks for; the last three are the steps of a multipart upload."""

_MOTO = """
import os, sys, threading
from moto.server import main
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # with who started it
main()
"""
_OF_THE_WAY = ("connection", "content-length", "expect", "transfer-encoding")
_CODES = {"200": "InternalError", "500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}


@dataclass
class Server:
    """An S3 endpoint.

    Attributes:
        port: on 127.0.0.1.
    """

    port: int

    def environment(self) -> dict[str, str | None]:
        """Variables with which pyarrow's S3 filesystem comes here; nothing in the home folder is asked."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }

    def uri(self, path: str) -> str:
        """The same endpoint in a URI's query; credentials come from the environment."""
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def filesystem(self) -> pafs.S3FileSystem:
        """What a test looks with: no retries of raybert's, no proxy."""
        return pafs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            endpoint_override=f"127.0.0.1:{self.port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def bucket(self) -> str:
        """A new bucket's name."""
        name = f"b{uuid4().hex}"
        self.filesystem().create_dir(name)
        return name

    def upload(self, folder: Path, path: str) -> None:
        """All files of a folder as objects below ``path``."""
        filesystem = self.filesystem()
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            key = f"{path}/{file.relative_to(folder).as_posix()}"
            with filesystem.open_output_stream(key, compression=None) as stream:  # .gz is compressed already
                stream.write(file.read_bytes())

    def download(self, path: str, folder: Path) -> Path:
        """All objects below ``path`` as files; the empty objects that stand for folders are none."""
        filesystem = self.filesystem()
        folder.mkdir(parents=True)
        for info in filesystem.get_file_info(pafs.FileSelector(path, recursive=True)):
            if info.type == pafs.FileType.File:
                file = folder / info.path.removeprefix(f"{path}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(filesystem.open_input_file(info.path).read())
        return folder

    def names(self, path: str) -> list[str]:
        """Objects below ``path``."""
        found = self.filesystem().get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
        return sorted(each.path.removeprefix(f"{path}/") for each in found if each.type == pafs.FileType.File)


@contextmanager
def moto_server() -> Iterator[Server]:
    """moto's server on a free port, ended at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the Ctrl-C of a test that is stopped goes to the test
        )
        try:
            deadline = time.monotonic() + 60
            while not _answers(port):
                assert process.poll() is None, log.seek(0) or log.read()
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.05)
            yield Server(port)
        finally:
            process.kill()
            process.communicate()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class Fault:
    """What goes wrong with some requests.

    Attributes:
        kind: ``drop`` (the connection ends before the store saw the request), ``lost`` (the store did it, and the
            connection ends before the answer), ``cut`` (the answer's body ends half-way), ``late`` (it waits half a
            second), or an HTTP status with an error as its body: ``500``, ``503``, ``403``, and the ``200`` with which
            S3 may begin to answer a copy before it fails.
        step: one of `STEPS`; empty for any.
        name: a piece of the object's key; empty for any.
        times: so often.
        after: so many such requests pass before.
        code: S3's word for the status; by default the usual one.
    """

    kind: str
    step: str = ""
    name: str = ""
    times: int = 1
    after: int = 0
    code: str = ""

    def strikes(self, step: str, key: str) -> bool:
        """Whether this request is hit; counted."""
        if not self.times or self.step not in ("", step) or self.name not in key:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class Proxy(Server):
    """A server before another one: requests pass, unless a fault strikes. A context manager.

    Attributes:
        faults: those that are planned.
        share: this share of all requests fails beside, in ways that ``seed`` draws.
        seen: how many requests there were, by step.
        struck: how many faults, by (kind, step).

    Args:
        behind: the real one.
        share: see above.
        seed: see above.
    """

    def __init__(self, behind: Server, *, share: float = 0.0, seed: int = 0) -> None:
        self.behind = behind
        self.faults: list[Fault] = []
        self.share = share
        self.seen: Counter[str] = Counter()
        self.struck: Counter[tuple[str, str]] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._http = _Front(self)
        super().__init__(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def fault(self, step: str, key: str) -> Fault | None:
        """What is to happen to a request."""
        with self._lock:
            self.seen[step] += 1
            found = next((fault for fault in self.faults if fault.strikes(step, key)), None)
            if found is None and self._random.random() < self.share:
                found = Fault(self._random.choice(("drop", "lost", "500", "503", "late", "cut")))
            if found is not None:
                self.struck[found.kind, step] += 1
            return found


class _Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Front
    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        body = self.body()
        step, key = step_of(self.command, self.path, "x-amz-copy-source" in self.headers)
        fault = self.server.proxy.fault(step, key)
        kind = fault.kind if fault is not None else ""
        if kind == "late":
            time.sleep(0.5)
        if kind == "drop":
            self.close_connection = True
            return
        if fault is not None and kind.isdigit():
            code = fault.code or _CODES[kind]
            what = f"<Error><Code>{code}</Code><Message>The proxy says {code}.</Message></Error>".encode()
            self.answer(int(kind), [("Content-Type", "application/xml")], what)
            return
        status, headers, content = self.asked(body)
        if kind == "lost":
            self.close_connection = True
            return
        self.answer(status, headers, content, cut=kind == "cut")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.behind.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_WAY}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in _OF_THE_WAY:
                self.send_header(name, value)
        of_head = self.command == "HEAD" and lengths
        self.send_header("Content-Length", lengths[0] if of_head else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def log_message(self, *_: object) -> None:
        """Tests look at ``seen`` and ``struck``."""

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # a client that was killed
            super().handle_one_request()


def step_of(method: str, target: str, copies: bool) -> tuple[str, str]:
    """Which of `STEPS` a request is, and the path that it names."""
    url = urlsplit(target)
    query = parse_qs(url.query, keep_blank_values=True)
    step = method
    if method == "POST":
        step = "CREATE" if "uploads" in query else "DELETE" if "delete" in query else "COMPLETE"
    elif method == "PUT" and copies:
        step = "COPY"
    elif method == "PUT" and "partNumber" in query:
        step = "PART"
    elif method == "GET" and "list-type" in query:
        step = "LIST"
    prefix = query.get("prefix", [""])[0]
    return step, f"{unquote(url.path)}/{prefix}" if prefix else unquote(url.path)
