"""An endpoint in place of this process: what `raybert.data.parity` compares a run's rows with."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from raybert.errors import RunFailed, UsageError
from raybert.tasks import Task
from raybert.tasks.answer import Answer
from raybert.tasks.classify import Classification
from raybert.tasks.embed_tokens import SparseVector
from raybert.tasks.fill_mask import Fill
from raybert.tasks.ner import Entity

_ITEMS = 16  # of a request
_REQUESTS = 4  # at a time
_PATIENCE_S = 120.0


class Endpoint:
    """A served raybert's answers to a run's heads, by fingerprint; every head in each request, as a client would ask.

    Args:
        url: of the service.
        tasks: the run's heads.
        dtype: of the run's arithmetic.
        api_key: where it asks for one.

    Raises:
        UsageError: nothing answers there, or it serves no head of the same fingerprint.
    """

    def __init__(self, url: str, tasks: Mapping[str, Task], dtype: str, *, api_key: str | None = None) -> None:
        self._url, self._key, self._tasks = url.rstrip("/"), api_key, tasks
        served = {name: self._get(f"/info?model={name}")["fingerprint"] for name in self._get("/info")["models"]}
        self._served = {name: self._same(name, task.fingerprint(dtype), served) for name, task in tasks.items()}

    def _same(self, name: str, fingerprint: str, served: Mapping[str, str]) -> str:
        for head, found in served.items():
            if found == fingerprint:
                return head
        there = ", ".join(f"{head} {found[:12]}" for head, found in served.items())
        raise UsageError(
            f"head {name}: {self._url} serves no head of the run's fingerprint {fingerprint[:12]} (it has {there}); "
            "serve the run's checkpoint with its options and its dtype"
        )

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """Each head's answers to texts or pairs, as its predictor gives them.

        Raises:
            UsageError: the endpoint refuses, or answers otherwise than it should.
            RunFailed: it fails.
        """
        pieces = [items[begin : begin + _ITEMS] for begin in range(0, len(items), _ITEMS)]
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="raybert-endpoint") as clients:
            rows = [row for piece in clients.map(self._labelled, pieces) for row in piece]
        return {
            name: [_read(task, row["heads"][self._served[name]]) for row in rows] for name, task in self._tasks.items()
        }

    def _labelled(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        heads = list(dict.fromkeys(self._served.values()))
        rows: list[dict[str, Any]] = self._post("/v1/label", {"heads": heads, "inputs": [_sent(i) for i in items]})
        for row, item in zip(rows, items, strict=True):
            if "error" in row:
                raise UsageError(f"{self._url}: {str(item)[:40]!r}: {row['error']}")
        return rows

    def _get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self._url + path))  # noqa: S310  the user names the address

    def _post(self, path: str, body: Any) -> Any:
        raw = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return self._ask(urllib.request.Request(self._url + path, raw, headers))["data"]  # noqa: S310

    def _ask(self, request: urllib.request.Request) -> Any:
        if self._key:
            request.add_header("authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = f"{request.full_url}: {error.code} {error.read(300).decode('utf-8', 'replace')}"
            raise (RunFailed if error.code >= 500 else UsageError)(said) from error
        except (OSError, ValueError) as error:
            raise UsageError(f"{request.full_url}: no raybert answers there ({error})") from error


def _sent(item: Any) -> Any:
    if isinstance(item, str):
        return item
    first, second = item
    return {"text": first, "text_pair": second} if isinstance(second, str) else {"prompt": first, "choices": second}


def _read(task: Task, value: Any) -> Any:
    """What a predictor would give for one item, of what `/v1/label` tells."""
    return _READERS.get(task.name, float)(value)


def _vectors(value: Any) -> Any:
    if isinstance(value, dict):
        return SparseVector(np.array(value["ids"], np.int32), np.array(value["weights"], np.float32))
    return np.array(value, np.float32)


def _classification(value: Any) -> Classification:
    return Classification(value["label"], value["score"], value["scores"], value.get("labels"))


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "embed": _vectors,
    "classify": _classification,
    "next-sentence": _classification,
    "multiple-choice": _classification,
    "ner": lambda value: [Entity(**each) for each in value],
    "qa": lambda value: [Answer(**each) for each in value],
    "fill-mask": lambda value: [[Fill(**each) for each in mask] for mask in value],
}
