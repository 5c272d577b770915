"""OpenAI's own client against the server: vectors, token ids, models, errors, retries."""

from __future__ import annotations

import base64
import re
import struct

import httpx2 as httpx
import numpy as np
import openai
import pytest

import raybert
from raybert.serve.limits import Limits
from raybert.serve.security import ApiKeys
from tests.serving import served
from tests.tiny import stdlib_docstrings

KEY = "0123456789abcdef"


@pytest.fixture(scope="module", name="url")
def url_fixture(tiny):
    with served({"vec": (str(tiny), "embed", {"normalize": True}), "raw": (str(tiny), "embed")}) as url:
        yield url


@pytest.fixture(scope="module", name="client")
def client_fixture(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module", name="local")
def local_fixture(tiny):
    with raybert.load(tiny, "embed", dtype="float32", device="cpu", normalize=True) as embed:
        yield embed


def vectors(response: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [each.index for each in response.data] == list(range(len(response.data)))
    return np.array([each.embedding for each in response.data], np.float32)


@pytest.mark.parametrize("encoding", [openai.omit, "float", "base64"])
def test_vectors_are_those_of_the_model(client, local, encoding):
    texts = ["", "a text", *stdlib_docstrings(20)]
    found = client.embeddings.create(model="vec", input=texts, encoding_format=encoding)
    if encoding == "base64":
        rows = [struct.unpack(f"<{local.task.width}f", base64.b64decode(each.embedding)) for each in found.data]
        np.testing.assert_allclose(rows, local(texts), atol=1e-6)
    else:
        np.testing.assert_allclose(vectors(found), local(texts), atol=1e-6)
    assert (found.object, found.model) == ("list", "vec")
    windows = local.task.encode(texts)
    assert found.usage.prompt_tokens == found.usage.total_tokens == len(windows.ids)


def test_one_text(client, local):
    np.testing.assert_allclose(
        vectors(client.embeddings.create(model="vec", input="a text")), local(["a text"]), atol=1e-6
    )


def test_token_ids(client, local):
    texts = ["a text", "another one"]
    ids = [local.task.tokenizer().backend.encode(text, add_special_tokens=False).ids for text in texts]
    np.testing.assert_allclose(vectors(client.embeddings.create(model="vec", input=ids)), local(texts), atol=1e-6)
    one = client.embeddings.create(model="vec", input=ids[0])
    np.testing.assert_allclose(vectors(one), local(texts[:1]), atol=1e-6)


def test_ids_of_another_tokenizer_are_a_bad_request(client):
    with pytest.raises(openai.BadRequestError, match=r"token 1 has id 100257, and this model's ids end at ") as caught:
        client.embeddings.create(model="vec", input=[[1, 100257]])
    assert caught.value.param == "input"


@pytest.mark.parametrize("name", ["vec", "raw"])
def test_fewer_dimensions(client, local, tiny, name):
    found = vectors(client.embeddings.create(model=name, input=["a text"], dimensions=8))
    with raybert.load(tiny, "embed", dtype="float32", device="cpu", normalize=name == "vec", dimensions=8) as expected:
        np.testing.assert_allclose(found, expected(["a text"]), atol=1e-6)
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions 100000: this model's vectors have") as caught:
        client.embeddings.create(model=name, input=["a text"], dimensions=100000)
    assert caught.value.param == "dimensions"


def test_models(client):
    found = client.models.list()
    assert [(each.id, each.object, each.owned_by) for each in found] == [
        ("vec", "model", "raybert"),
        ("raw", "model", "raybert"),
    ]


def test_an_unknown_model_is_told_with_the_nearest(client):
    with pytest.raises(openai.NotFoundError, match="model 'vecs': unknown; did you mean 'vec'"):
        client.embeddings.create(model="vecs", input="a")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "vec", "input": []}, 400, "input: empty"),
        ({"model": "vec", "input": [[]]}, 422, "input"),
        ({"model": "vec", "input": None}, 422, "input"),
        ({"model": "vec", "input": {"a": 1}}, 422, "input"),
        ({"model": "vec", "input": ["a", 1]}, 422, "input"),
        ({"model": "vec", "input": [True]}, 422, "input"),
        ({"model": "vec", "input": [10**30]}, 400, "ids end at"),
        ({"model": "vec", "input": "a", "encoding_format": "int8"}, 422, "encoding_format"),
        ({"model": "vec", "input": "a", "dimensions": 0}, 422, "dimensions"),
        ({"input": "a"}, 404, "model: not given; there is vec, raw"),
        ({"model": "vec"}, 422, "input: Field required"),
        ([], 422, "body"),
    ],
)
def test_a_body_that_means_nothing(url, body, status, said):
    response = httpx.post(f"{url}/v1/embeddings", json=body)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"input": "\\ud800", "model": "vec"}', b"[" * 100_000, b'{"input": NaN}']
)
def test_a_body_that_is_no_json_or_no_text(url, content):
    response = httpx.post(f"{url}/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["message"]


def test_too_long_a_text_is_cut_and_told_or_refused(url, local):
    text = "word " * 2000
    body = {"model": "vec", "input": ["a", text]}
    response = httpx.post(f"{url}/v1/embeddings", json=body)
    assert (response.status_code, response.headers["x-truncated-inputs"]) == (200, "1")
    assert int(response.headers["x-compute-tokens"]) == response.json()["usage"]["total_tokens"]
    found = [each["embedding"] for each in response.json()["data"]]
    np.testing.assert_allclose(found, local(["a", text]), atol=1e-6)
    response = httpx.post(f"{url}/v1/embeddings", json=body | {"truncate": False})
    assert response.status_code == 413
    assert re.match(r"input\[1\]: \d+ tokens exceed vec's \d+; shorten it", response.json()["error"]["message"])


def test_limits_and_keys(tiny):
    limits = Limits(max_items=3, max_body_bytes=2000)
    with served({"vec": (str(tiny), "embed")}, limits=limits, keys=ApiKeys([KEY])) as url:
        for path in ("/v1/embeddings", "/embeddings"):
            assert httpx.post(url + path, json={"input": "a"}).status_code == 401
        assert httpx.get(f"{url}/v1/models").status_code == 401
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
            assert len(client.embeddings.create(model="vec", input=["a"] * 3).data) == 3
            with pytest.raises(openai.APIStatusError, match="input: 4 items exceed 3") as caught:
                client.embeddings.create(model="vec", input=["a"] * 4)
            assert caught.value.status_code == 413
            with pytest.raises(openai.APIStatusError, match="exceeds 2000; send it in pieces") as caught:
                client.embeddings.create(model="vec", input="a" * 3000)
            assert caught.value.status_code == 413
        wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="f" * 16, max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError, match="no valid API key"):
            wrong.embeddings.create(model="vec", input="a")


def test_a_route_that_is_none_and_a_method_that_is_none(url):
    response = httpx.get(f"{url}/v1/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown")
    response = httpx.get(f"{url}/v1/embeddings")
    told = {"message": "/v1/embeddings: takes POST, not GET", "type": "invalid_request_error", "param": None}
    assert (response.status_code, response.json()) == (405, {"error": told | {"code": "method"}})
