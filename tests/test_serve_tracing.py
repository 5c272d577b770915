"""Traces of a request: sent to a real receiver of OpenTelemetry's protocol, one tree across ingress and encoder."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from raybert.errors import SettingsError
from raybert.serve.tracing import ENDPOINTS, Tracing
from tests.serving import every_head
from tests.traces import CALLER, HEADERS, TRACE, facts_of, receiving


def test_the_spans_of_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a text that nobody else may read"
    with receiving() as receiver:
        monkeypatch.setenv(ENDPOINTS[1], receiver.url)
        tracing = Tracing({ENDPOINTS[1]: receiver.url})
        with every_head(tmp_path, tracer=tracing.tracer) as (url, _):
            answer = httpx.post(
                f"{url}/models/topic", json={"inputs": secret}, headers=HEADERS | {"x-request-id": "me"}
            )
            assert answer.status_code == 200
            assert httpx.post(f"{url}/models/nobody", json={"inputs": secret}).status_code == 404
        tracing.close()
    root = receiver.named("POST /models/{name}")
    assert root.parent_span_id.hex() == CALLER
    assert facts_of(root) == {
        "http.request.method": "POST",
        "http.route": "/models/{name}",
        "http.response.status_code": 200,
        "raybert.request_id": "me",
    }
    for name in ("tokenize", "compute", "decode"):
        assert receiver.named(name).parent_span_id == root.span_id
    computed = facts_of(receiver.named("compute"))
    assert [value.string_value for value in computed["raybert.heads"].values] == ["topic"]
    assert computed["raybert.tokens"] == int(answer.headers["x-compute-tokens"])
    assert computed["raybert.queue_ms"] >= 0
    others = [span for span in receiver.spans if span.trace_id.hex() != TRACE]
    assert [facts_of(span)["http.response.status_code"] for span in others] == [404]
    assert secret.encode() not in b"".join(span.SerializeToString() for span in receiver.spans)
    assert receiver.services == {"raybert"}


def test_without_an_endpoint_nothing_is_traced() -> None:
    for environment in ({}, {ENDPOINTS[0]: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}):
        assert Tracing(environment).tracer is None


def test_an_exporter_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: .*pip install 'raybert\[tracing\]'$"):
        Tracing({ENDPOINTS[1]: "http://127.0.0.1:1"})
