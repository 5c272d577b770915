"""Whatever is thrown at a route: an answer in time, never a 500, and nothing without a key."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from raybert.serve.door import OPEN
from raybert.serve.limits import Limits
from raybert.serve.security import ApiKeys
from tests.serving import every_head

KEY = "0123456789abcdef"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
LIMITS = Limits(max_body_bytes=300_000, body_s=1.0, max_items=50)


@pytest.fixture(scope="module", name="url")
def url_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with every_head(tmp_path_factory.mktemp("heads"), limits=LIMITS, keys=ApiKeys([KEY])) as (url, _):
        yield url


def routes(url: str, method: str) -> list[str]:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    return sorted(path.replace("{name}", "vec") for path, methods in paths.items() if method in methods)


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"inputs": "a',
    "deep list": b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep dict": b'{"inputs": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}",
    "nan": b'{"inputs": NaN, "input": NaN, "query": NaN, "ids": NaN, "documents": [NaN]}',
    "huge number": b'{"inputs": [1'
    + b"0" * 4000
    + b'], "input": [1'
    + b"0" * 4000
    + b'], "ids": [1'
    + b"0" * 400
    + b"]}",
    "large ids": b'{"inputs": [[999999999]], "input": [[999999999]], "ids": [[999999999]]}',
    "negative ids": b'{"inputs": [[-1]], "input": [[-1]], "ids": [[-1]]}',
    "surrogate": b'{"inputs": "\\ud800", "input": "\\ud800", "query": "\\ud800", "texts": ["\\udfff"]}',
    "no utf-8": b'{"inputs": "\xff\xfe"}',
    "nul": b'{"inputs": "a\\u0000b", "input": "a\\u0000b", "query": "\\u0000", "texts": ["\\u0000"]}',
    "null": b"null",
    "number": b"1e999",
    "text": b'"a text"',
    "many": json.dumps({"inputs": ["a"] * 51, "input": ["a"] * 51, "query": "a", "texts": ["a"] * 51}).encode(),
    "wrong kinds": b'{"inputs": {"a": []}, "input": {"a": 1}, "query": [], "texts": {}, "ids": "x", "model": 7}',
    "parameters": b'{"inputs": "a", "parameters": {"top_k": 1e308, "stride": -1, "vec": {"prompt": {"a": 1}}}}',
    "prompt": b'{"inputs": "a", "prompt_name": "\\u0000", "model": "vec\\n{}"}',
    "key of a reading": b'{"inputs": "a", "input": "a", "model": "vec\\n{\\"pooling\\": \\"cls\\"}"}',
    "broken key of a reading": b'{"inputs": "a", "input": "a", "model": "vec\\n{"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bodies_on_every_route(url: str, name: str) -> None:
    with httpx.Client(timeout=20, headers=HEADERS) as client:
        for path in routes(url, "post"):
            response = client.post(url + path, content=HOSTILE[name])
            assert response.status_code in (200, 400, 404, 413, 422, 424), (path, response.text)
            assert response.headers["content-type"] == "application/json"
            response.json()
        assert client.get(f"{url}/readyz").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "x"])
def test_content_types(url: str, kind: str) -> None:
    with httpx.Client(timeout=20, headers={**HEADERS, "content-type": kind}) as client:
        for path in routes(url, "post"):
            response = client.post(url + path, content=b'{"inputs": "a"}')
            assert response.status_code == 422, path
            assert "content-type: application/json" in response.text


def test_a_bomb_is_not_unpacked(url: str) -> None:
    bomb = gzip.compress(b'{"inputs": "' + b"a" * 50_000_000 + b'"}')
    headers = {**HEADERS, "content-encoding": "gzip"}
    for path in routes(url, "post"):
        response = httpx.post(url + path, content=bomb, headers=headers, timeout=20)
        assert response.status_code == 400
        assert "content-encoding" in response.text


def test_a_body_beyond_the_limit_and_one_that_says_so(url: str) -> None:
    for path in routes(url, "post"):
        response = httpx.post(url + path, content=b'{"inputs": "' + b"a" * 400_000, headers=HEADERS, timeout=20)
        assert response.status_code == 413, path


def test_a_slow_body_is_not_waited_for(url: str) -> None:
    place = urlsplit(url)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 80), timeout=20) as slow:
        slow.sendall(
            f"POST /embed HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 100\r\n\r\n{{".encode()
        )
        assert b"504" in slow.recv(100)


@pytest.mark.parametrize(
    "path", ["/../embed", "/embed/", "//embed", "/%2e%2e/embed", "/models/..%2f..%2fvec", "/models/"]
)
def test_path_tricks(url: str, path: str) -> None:
    place = urlsplit(url)
    assert place.hostname is not None
    with socket.create_connection((place.hostname, place.port or 80), timeout=20) as raw:
        raw.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        assert raw.recv(100).split()[1] == b"401"  # without a key there is nothing to find


@pytest.mark.parametrize("key", [None, "", "wrong", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", f"Bearer {KEY[:-1]}"])
def test_no_route_without_a_key(url: str, key: str | None) -> None:
    headers = {} if key is None else {"authorization": key}
    with httpx.Client(timeout=20, headers=headers) as client:
        for path in routes(url, "post"):
            assert client.post(url + path, json={"inputs": "a"}).status_code == 401, path
        for path in routes(url, "get"):
            assert client.get(url + path).status_code == (200 if path in OPEN else 401), path


def test_methods(url: str) -> None:
    with httpx.Client(timeout=20, headers=HEADERS) as client:
        for path in routes(url, "post"):
            for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                response = client.request(method, url + path)
                assert response.status_code == 405, (method, path)
                assert response.headers["allow"] == "POST"
                assert f"{path}: takes POST, not {method}" in response.text


def test_no_other_origin_is_let_in(url: str) -> None:
    response = httpx.get(f"{url}/livez", headers={"origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_description_has_every_family(url: str) -> None:
    paths: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {"/v1/embeddings", "/embed", "/predict", "/rerank", "/v2/rerank", "/models/{name}", "/v1/label"} <= set(
        paths
    )
