"""Those who run a service: health by a forward, metrics of all processes, what is served, the access log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import raybert
from raybert import observability
from raybert.observability import LOGGER, json_lines
from raybert.serve import service
from raybert.serve.afterwards import Afterwards
from raybert.serve.health import FRESH_S, Pulse, Unhealthy
from raybert.serve.metrics import GONE_AFTER_S, Ledger, Meters, route_of
from raybert.serve.security import ApiKeys
from tests.serving import served


class Clock:
    """Time that goes as told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def ask_often(pulse: Pulse, times: int) -> list[BaseException | None]:
    return await asyncio.gather(*(pulse.check() for _ in range(times)), return_exceptions=True)


def test_one_probe_for_all_who_ask_and_none_while_batches_come_back() -> None:
    forwards, clock = [], Clock()

    async def forward() -> None:
        forwards.append(1)

    pulse = Pulse(forward, clock=clock)
    assert asyncio.run(ask_often(pulse, 20)) == [None] * 20
    assert len(forwards) == 1
    clock.now += FRESH_S
    asyncio.run(ask_often(pulse, 2))
    assert len(forwards) == 1
    clock.now += 0.1
    pulse.beat()
    asyncio.run(ask_often(pulse, 2))
    assert len(forwards) == 1
    clock.now += FRESH_S + 0.1
    asyncio.run(ask_often(pulse, 2))
    assert len(forwards) == 2
    pulse.close()


def test_a_forward_that_fails_and_one_that_works_again() -> None:
    works: list[bool] = []

    async def forward() -> None:
        if not works:
            raise RuntimeError("no device")

    pulse = Pulse(forward)
    found = asyncio.run(ask_often(pulse, 3))
    assert [str(each) for each in found] == ["a forward failed: RuntimeError: no device"] * 3
    assert all(isinstance(each, Unhealthy) for each in found)
    works.append(True)
    assert asyncio.run(ask_often(pulse, 1)) == [None]
    pulse.close()


def test_a_forward_that_hangs() -> None:
    pulse = Pulse(lambda: asyncio.sleep(30), hangs_s=0.2)

    async def twice() -> list[BaseException | None]:
        found = [*await ask_often(pulse, 2), *await ask_often(pulse, 1)]
        pulse.close()
        return found

    assert [str(each)[:15] for each in asyncio.run(twice())] == ["a forward hangs"] * 3


def values(text: bytes | str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    told = text.decode() if isinstance(text, bytes) else text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }


def counted(requests: int, waiting: int) -> Meters:
    meters = Meters()

    async def on_a_loop() -> None:
        meters.batch(2, 100 * requests, 0.01)

    asyncio.run(on_a_loop())  # counted afterwards: the snapshot has it
    meters.requests.labels("/embed", "200").inc(requests)
    meters.waiting.set(waiting)
    meters.replicas.labels("encoder").set(1)
    return meters


def test_the_ledger_adds_up_and_forgets_nothing_but_what_was_under_way() -> None:
    clock = Clock()
    ledger, requests = Ledger(clock), ("raybert_requests_total", (("route", "/embed"), ("status", "200")))
    one, other = counted(3, 10), counted(5, 20)
    asyncio.run(ledger.push("one", one.snapshot()))
    asyncio.run(ledger.push("other", other.snapshot()))
    found = values(asyncio.run(ledger.text()))
    assert found[requests] == 8
    assert found["raybert_waiting_tokens", ()] == 30
    assert found["raybert_replicas", (("kind", "encoder"),)] == 2
    assert found["raybert_batch_tokens_sum", ()] == 800
    assert found["raybert_batch_tokens_bucket", (("le", "+Inf"),)] == 2
    clock.now += GONE_AFTER_S + 1
    other.requests.labels("/embed", "200").inc()
    asyncio.run(ledger.push("other", other.snapshot()))
    found = values(asyncio.run(ledger.text()))
    assert found[requests] == 9
    assert found["raybert_waiting_tokens", ()] == 20
    assert found["raybert_replicas", (("kind", "encoder"),)] == 1
    asyncio.run(ledger.push("one", one.snapshot()))  # it was only silent
    assert values(asyncio.run(ledger.text()))[requests] == 9


def test_labels_are_few_whatever_is_asked() -> None:
    asked = ["/embed", "/models/a", "/models/b/pipeline/x", "/wp-login.php", "/embed/", "//"]
    assert [route_of(path) for path in asked] == ["/embed", *["/models/{name}"] * 2, *["other"] * 3]


@pytest.fixture(scope="module", name="url")
def url_fixture(tiny: Path) -> Iterator[str]:
    heads: dict[str, tuple[Any, ...]] = {"vec": (str(tiny), "embed"), "short": (str(tiny), "embed", {"max_length": 9})}
    with served(heads, keys=ApiKeys(["0123456789abcdef"])) as url:
        yield url


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/ping"])
def test_health_needs_no_key(url: str, path: str) -> None:
    response = httpx.get(url + path)
    assert (response.status_code, set(response.json())) == (200, {"status"})


def test_metrics_tell_what_was_asked(url: str) -> None:
    before = values(httpx.get(f"{url}/metrics").text)
    keys = {"authorization": "Bearer 0123456789abcdef"}
    body = {"model": "short", "inputs": ["a text", "word " * 50]}
    assert httpx.post(f"{url}/embed", json=body, headers=keys).status_code == 200
    assert httpx.post(f"{url}/embed", json=body).status_code == 401
    assert httpx.post(f"{url}/embed", json={**body, "model": "x"}, headers=keys).status_code == 404
    found = values(httpx.get(f"{url}/metrics").text)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return found[key] - before.get(key, 0.0)

    for status in ("200", "401", "404"):
        assert grown("raybert_requests_total", route="/embed", status=status) == 1
    assert grown("raybert_errors_total", kind="key") == grown("raybert_errors_total", kind="unknown") == 1
    assert (grown("raybert_texts_total"), grown("raybert_truncated_total")) == (2, 1)
    assert grown("raybert_tokens_total") == grown("raybert_batch_tokens_sum") > 9
    assert grown("raybert_queue_seconds_count") == grown("raybert_inference_seconds_count") == 1
    assert found["raybert_waiting_tokens", ()] == found["raybert_held_tokens", ()] == 0


def test_info(url: str, tiny: Path) -> None:
    keys = {"authorization": "Bearer 0123456789abcdef"}
    with raybert.load(tiny, "embed", dtype="float32", device="cpu", max_length=9) as local:
        told = httpx.get(f"{url}/info", params={"model": "short"}, headers=keys).json()
        assert told["fingerprint"] == local.fingerprint
        assert told["max_input_length"] == 9
    told = httpx.get(f"{url}/info", headers=keys).json()
    assert told["served_model_name"] == "vec"
    assert told["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (told["model_dtype"], told["models"]) == ("float32", ["vec", "short"])
    assert httpx.get(f"{url}/info").status_code == 401


def test_the_access_log_has_no_bodies(url: str) -> None:
    stream = io.StringIO()
    with json_lines(stream):
        headers = {"authorization": "Bearer 0123456789abcdef", "x-request-id": "mine-1"}
        body = {"inputs": "a secret text", "model": "vec"}
        response = httpx.post(f"{url}/embed", json=body, headers=headers)
        assert response.headers["x-request-id"] == "mine-1"
        odd = httpx.get(f"{url}/livez", headers={"x-request-id": "a b"})
        assert len(odd.headers["x-request-id"]) == 32
        httpx.get(f"{url}/metrics")  # what is told a moment later is told now
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    first = next(line for line in lines if line["request_id"] == "mine-1")
    assert (first["event"], first["request_id"], first["method"], first["path"]) == (
        "request",
        "mine-1",
        "POST",
        "/embed",
    )
    assert (first["status"], first["tokens"]) == (200, int(response.headers["x-compute-tokens"]))
    assert "secret" not in stream.getvalue()
    assert "0123456789abcdef" not in stream.getvalue()
    assert not logging.getLogger(LOGGER).handlers


@pytest.fixture(name="quiet")
def quiet_fixture() -> Iterator[None]:
    """The logger of raybert as it was."""
    logger = logging.getLogger(LOGGER)
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    for handler in set(logger.handlers) - set(before[2]):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(before[0])
    logger.propagate = before[1]


@pytest.mark.usefixtures("quiet")
def test_requests_go_to_a_file_and_what_goes_wrong_to_stderr_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observability, "_MOST_BYTES", 300)
    file, stream = tmp_path / "logs" / "access.log", io.StringIO()
    for _ in range(2):
        observability.log_requests(file, stream)
    logger = logging.getLogger(LOGGER)
    for number in range(5):
        logger.info("GET /livez 200", extra={"event": "request", "request_id": str(number)})
    logger.error("a forward failed")
    lines = [
        json.loads(line)
        for each in sorted(file.parent.iterdir(), reverse=True)
        for line in each.read_text().splitlines()
    ]
    assert [line.get("request_id") for line in lines] == ["0", "1", "2", "3", "4", None]
    assert len(list(file.parent.iterdir())) > 1
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["a forward failed"]


def test_what_a_service_starts_with_is_not_looked_through_again() -> None:
    """In a process of its own, since there is no way back."""
    words = (
        "import gc, weakref\n"
        "from raybert.serve.memory import keep_what_is_there\n"
        "class Ring: pass\n"
        "def ring():\n"
        "    one = Ring(); one.itself = one; return weakref.ref(one)\n"
        "garbage = ring(); keep_what_is_there(); assert garbage() is None\n"
        "assert gc.get_freeze_count() > len(gc.get_objects())\n"
        "garbage = ring(); gc.collect(); assert garbage() is None\n"
    )
    subprocess.run([sys.executable, "-c", words], check=True, timeout=60)


@pytest.mark.parametrize(("words", "threads"), [(20, {"loop"}), (3000, {"raybert-text"})])
def test_long_texts_leave_the_event_loop_to_others(
    url: str, monkeypatch: pytest.MonkeyPatch, words: int, threads: set[str]
) -> None:
    seen: list[str] = []

    def watched(work: Any) -> Any:
        def call(*args: Any) -> Any:
            name = threading.current_thread().name
            seen.append("raybert-text" if name.startswith("raybert-text") else "loop")
            return work(*args)

        return call

    monkeypatch.setattr(service, "_encoded", watched(service._encoded))
    headers = {"authorization": "Bearer 0123456789abcdef"}
    response = httpx.post(f"{url}/embed", json={"inputs": words * "word ", "model": "vec"}, headers=headers)
    assert response.status_code == 200
    assert set(seen) == threads


def test_what_is_told_afterwards_is_told_also_behind_a_failure() -> None:
    later, told, failed = Afterwards(), [], []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))
        later.do(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        later.do(lambda: told.append(1))
        await asyncio.sleep(0.5)
        assert told == [1]  # the timer failed, and nothing more was asked for
        later.do(lambda: told.append(2))
        await asyncio.sleep(0.5)
        assert told == [1, 2]

    asyncio.run(main())
    assert [type(error) for error in failed] == [ZeroDivisionError]
