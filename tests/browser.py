"""A headless Chromium that opens one page, offline, and tells what it saw: through the DevTools protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_PATIENCE_S = 60.0


class Tab:
    """One tab; ``events`` are all that the browser told of it."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=_PATIENCE_S, suppress_origin=True)
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask for something, and wait for the answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path | str, *, width: int, dark: bool = False) -> None:
        """Show a file or an address, and wait until it is loaded."""
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        url = page if isinstance(page, str) else page.as_uri()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + _PATIENCE_S
        while not str(self.value("document.readyState + location.href")).startswith(f"complete{url}"):
            assert time.monotonic() < deadline, "the page was not loaded"
            time.sleep(0.05)

    def value(self, script: str) -> Any:
        """What an expression gives in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def of(self, method: str) -> list[dict[str, Any]]:
        """The events of a kind."""
        return [event["params"] for event in self.events if event["method"] == method]

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A browser with a profile of its own for the length of the block; its process ends with it."""
    assert PROGRAM is not None
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            told = profile / "DevToolsActivePort"
            deadline = time.monotonic() + _PATIENCE_S
            while not (told.is_file() and told.read_text().count("\n")):
                assert process.poll() is None, "the browser ended"
                assert time.monotonic() < deadline, "the browser did not start"
                time.sleep(0.05)
            port = int(told.read_text().split("\n")[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=_PATIENCE_S) as answer:
                pages = [each for each in json.load(answer) if each["type"] == "page"]
            tab = Tab(pages[0]["webSocketDebuggerUrl"])
            try:
                yield tab
            finally:
                tab.close()
        finally:
            process.terminate()
