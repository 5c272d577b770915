"""text-embeddings-inference's requests, in the shapes that its clients send, and Cohere's own client."""

from __future__ import annotations

from typing import Any

import cohere
import httpx as httpx1
import httpx2 as httpx
import numpy as np
import pytest

import raybert
from tests.serving import both_fixture, local_fixture, url_fixture  # noqa: F401  fixtures
from tests.tiny import stdlib_docstrings

TEXTS = ["", "a text", *stdlib_docstrings(12)]
LONG = "word " * 300 + "and the end of it"


def post(url: str, **body: Any) -> Any:
    response = httpx.post(url, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def like(predictor: Any, **options: Any) -> Any:
    """The same head in this process with other options."""
    given = {**predictor.task.given, **options}
    checkpoint = predictor.task.checkpoint
    return raybert.load(str(checkpoint.path), predictor.task.name, dtype="float32", device="cpu", threads=1, **given)


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
def test_embed(url, local, path):
    np.testing.assert_allclose(post(url + path, inputs=TEXTS), local["vec"](TEXTS), atol=1e-6)
    np.testing.assert_allclose(post(url + path, inputs="a text"), local["vec"](["a text"]), atol=1e-6)


def test_what_an_embed_request_may_change(url, local):
    with like(local["vec"], normalize=False) as raw:
        np.testing.assert_allclose(post(f"{url}/embed", inputs=TEXTS, normalize=False), raw(TEXTS), atol=1e-5)
    with like(local["vec"], prompt_name="query") as asked:
        np.testing.assert_allclose(post(f"{url}/embed", inputs=TEXTS, prompt_name="query"), asked(TEXTS), atol=1e-6)
    with like(local["vec"], dimensions=7) as short:
        np.testing.assert_allclose(post(f"{url}/embed", inputs=TEXTS, dimensions=7), short(TEXTS), atol=1e-6)
    with like(local["vec"], truncation_side="left") as left:
        expected = left([LONG])
        assert np.abs(expected - local["vec"]([LONG])).max() > 1e-3
        for side in ("Left", "left"):
            found = post(f"{url}/embed", inputs=[LONG], truncation_direction=side)
            np.testing.assert_allclose(found, expected, atol=1e-6)
    with like(local["vec"], output="tokens") as tokens:
        for found, expected in zip(post(f"{url}/embed_all", inputs=TEXTS), tokens(TEXTS), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_texts_and_ids_of_their_tokens_in_one_request(url, local):
    ids = local["vec"].task.tokenizer().backend.encode("another text", add_special_tokens=False).ids
    found = post(f"{url}/embed", inputs=["a text", ids])
    np.testing.assert_allclose(found, local["vec"](["a text", "another text"]), atol=1e-6)
    np.testing.assert_allclose(post(f"{url}/embed", inputs=ids), local["vec"](["another text"]), atol=1e-6)


def test_sparse(url, local):
    for found, expected in zip(post(f"{url}/embed_sparse", inputs=TEXTS), local["sparse"](TEXTS), strict=True):
        assert [each["index"] for each in found] == expected.ids.tolist()
        np.testing.assert_allclose([each["value"] for each in found], expected.weights, atol=1e-5)


def same_scores(found: list[dict[str, Any]], expected: Any) -> None:
    assert [each["label"] for each in found] == list(expected.scores)
    np.testing.assert_allclose([each["score"] for each in found], list(expected.scores.values()), atol=1e-6)


def test_predict(url, local):
    one, pair = local["topic"](["a text"])[0], local["topic"]([("a text", "its pair")])[0]
    same_scores(post(f"{url}/predict", inputs="a text"), one)
    same_scores(post(f"{url}/predict", inputs=["a text", "its pair"]), pair)
    for found, expected in zip(
        post(f"{url}/predict", inputs=[[text] for text in TEXTS]), local["topic"](TEXTS), strict=True
    ):
        same_scores(found, expected)
    (found,) = post(f"{url}/predict", inputs=[["a text", "its pair"]])
    same_scores(found, pair)
    with like(local["topic"], activation="none") as raw:
        same_scores(post(f"{url}/predict", inputs="a text", raw_scores=True), raw(["a text"])[0])


def test_rerank(url, local):
    query, documents = "how to open a file", TEXTS
    expected = local["rank"](query, documents)
    found = post(f"{url}/rerank", query=query, texts=documents, return_text=True)
    assert [(each["index"], each["text"]) for each in found] == [(e.index, documents[e.index]) for e in expected]
    np.testing.assert_allclose([each["score"] for each in found], [each.score for each in expected], atol=1e-6)
    with like(local["rank"], activation="none") as raw:
        found = post(f"{url}/rerank", query=query, texts=documents, raw_scores=True)
        np.testing.assert_allclose([e["score"] for e in found], [e.score for e in raw(query, documents)], atol=1e-5)
        assert set(found[0]) == {"index", "score"}


def test_similarity(url, local):
    source, *others = local["vec"](TEXTS)
    found = post(f"{url}/similarity", inputs={"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    np.testing.assert_allclose(found, np.stack(others) @ source, atol=1e-6)


def test_tokenize_and_decode(url, local):
    texts = ["A text, Über-long?", "\U0001f600 so", LONG]
    tokenizer = local["vec"].task.tokenizer()
    found = post(f"{url}/tokenize", inputs=texts)
    for tokens, text in zip(found, texts, strict=True):
        assert [each["id"] for each in tokens] == tokenizer.backend.encode(text).ids
        assert [each["special"] for each in tokens] == [True, *[False] * (len(tokens) - 2), True]
        assert (tokens[0]["start"], tokens[-1]["stop"]) == (None, None)
        assert all(each["text"] == text[each["start"] : each["stop"]] for each in tokens[1:-1])
    ids = [[each["id"] for each in tokens] for tokens in found]
    assert post(f"{url}/decode", ids=ids) == [tokenizer.text_of(row, skip_special=True) for row in ids]
    assert post(f"{url}/decode", ids=ids[0], skip_special_tokens=False)[0].startswith("[CLS]")
    bare = post(f"{url}/tokenize", inputs=texts[0], add_special_tokens=False)
    assert bare == [found[0][1:-1]]
    assert httpx.post(f"{url}/decode", json={"ids": [10**9]}).status_code == 400


def test_headers(url):
    response = httpx.post(f"{url}/embed", json={"inputs": ["a text", LONG]})
    assert response.headers["x-truncated-inputs"] == "1"
    assert response.headers["x-compute-type"] == "cpu"
    assert int(response.headers["x-compute-characters"]) == len(LONG) + 6
    for name in ("compute", "total", "tokenization", "queue", "inference"):
        assert 0 <= int(response.headers[f"x-{name}-time"]) < 60_000
    assert int(response.headers["x-compute-tokens"]) > 128


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "said"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "inputs: empty"),
        ("/embed", {"inputs": {"a": 1}}, 422, "Validation", "inputs"),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
        (
            "/embed",
            {"inputs": "a", "prompt_name": "passage"},
            422,
            "Validation",
            "'passage' is none of query",
        ),
        ("/embed", {"inputs": "a", "dimensions": 99}, 422, "Validation", "this model's vectors have 32"),
        ("/embed", {"inputs": LONG, "truncate": False}, 413, "Validation", "shorten it"),
        ("/embed", {"inputs": "a", "model": "topic"}, 424, "Backend", "it does classify, not this"),
        ("/embed", {"inputs": "a", "model": "vek"}, 404, "NotFound", "did you mean 'vec'"),
        ("/embed", {"inputs": [[1, 10**9]]}, 400, "Validation", "ids end at"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation", "3 texts; give one, or the two of a pair"),
        ("/predict", {"inputs": [["a"], ["b", "c"]]}, 422, "Validation", "of one kind"),
        ("/rerank", {"query": "a", "texts": ["b"], "documents": ["b"]}, 422, "Validation", "either texts or documents"),
        ("/rerank", {"query": "a"}, 422, "Validation", "either texts or documents"),
        ("/rerank", {"query": "a", "texts": []}, 400, "Empty", "texts: empty"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty", "sentences"),
        ("/nowhere", {}, 404, "NotFound", "/nowhere"),
    ],
)
def test_errors_have_the_peers_body(url, path, body, status, kind, said):
    response = httpx.post(url + path, json=body)
    assert response.status_code == status, response.text
    told = response.json()
    if "documents" in body:
        assert said in told["message"]
    else:
        assert set(told) == {"error", "error_type"}
        assert (told["error_type"], said in told["error"]) == (kind, True), told


def test_coheres_client(url, local):
    with httpx1.Client() as connection:  # its own is never closed
        ask_cohere(cohere.ClientV2(api_key="unused", base_url=url, httpx_client=connection), local)


def ask_cohere(client: cohere.ClientV2, local: dict[str, Any]) -> None:
    expected = local["rank"]("how to open a file", TEXTS)
    found = client.rerank(model="rank", query="how to open a file", documents=TEXTS, top_n=3)
    assert [each.index for each in found.results] == [each.index for each in expected[:3]]
    np.testing.assert_allclose(
        [each.relevance_score for each in found.results], [each.score for each in expected[:3]], atol=1e-6
    )
    assert found.id
    with pytest.raises(cohere.NotFoundError, match="unknown"):
        client.rerank(model="rang", query="a", documents=["b"])


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_coheres_requests(url, local, path):
    documents = ["one two three four five six", {"text": "seven"}]
    found = post(url + path, query="four", documents=documents, return_documents=True, max_tokens_per_doc=2)
    tokenizer = local["rank"].task.tokenizer()
    cut = []
    for text in (documents[0], "seven"):
        places = tokenizer.take([text], whole=True, offsets=True).offsets
        cut.append(text[: places[:2][-1, 1]])
    assert cut[0] != documents[0]
    expected = {each.index: each.score for each in local["rank"]("four", cut)}
    assert {each["index"]: pytest.approx(each["relevance_score"], abs=1e-6) for each in found["results"]} == expected
    assert {each["document"]["text"] for each in found["results"]} == {documents[0], "seven"}
    assert found["usage"]["total_tokens"] > 0
    response = httpx.post(url + path, json={"query": "a", "documents": []})
    assert (response.status_code, set(response.json())) == (400, {"message"})
