"""Hugging Face's own client against the server, task by task; and raybert's own route, many heads at once."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import huggingface_hub
import huggingface_hub.constants
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings

from tests.serving import both_fixture, local_fixture, url_fixture  # noqa: F401  fixtures
from tests.test_serve_tei import LONG, TEXTS, like, post
from tests.tiny import stdlib_docstrings


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library, which tests keep offline, lets its client ask this machine; its connections are closed."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield
    huggingface_hub.close_session()


def client(url: str, name: str) -> InferenceClient:
    return InferenceClient(model=f"{url}/models/{name}", token="unused")


def test_feature_extraction(url, local):
    vec = client(url, "vec")
    np.testing.assert_allclose(vec.feature_extraction("a text"), local["vec"](["a text"]), atol=1e-6)
    np.testing.assert_allclose(vec.feature_extraction(TEXTS), local["vec"](TEXTS), atol=1e-6)
    with like(local["vec"], normalize=False, prompt_name="query", truncation_side="left") as other:
        found = vec.feature_extraction([LONG], normalize=False, prompt_name="query", truncation_direction="left")
        np.testing.assert_allclose(found, other([LONG]), atol=1e-5)
    with like(local["vec"], dimensions=5) as short:
        np.testing.assert_allclose(vec.feature_extraction("a text", dimensions=5), short(["a text"]), atol=1e-6)


def test_sentence_similarity(url, local):
    source, *others = local["vec"](TEXTS)
    found = client(url, "vec").sentence_similarity(TEXTS[0], TEXTS[1:])
    np.testing.assert_allclose(found, np.stack(others) @ source, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"function_to_apply": "none"}, {"function_to_apply": "sigmoid"}])
def test_text_classification(url, local, options):
    ours = {{"function_to_apply": "activation"}.get(name, name): value for name, value in options.items()}
    with like(local["topic"], **ours) as topic:
        for text in TEXTS[:4]:
            found = client(url, "topic").text_classification(text, **options)
            (expected,) = topic([text])
            assert [each.label for each in found] == list(expected.scores)
            np.testing.assert_allclose([each.score for each in found], list(expected.scores.values()), atol=1e-5)


@pytest.mark.parametrize("aggregation", [None, "none", "simple", "first", "average", "max"])
def test_token_classification(url, local, aggregation):
    people = client(url, "people")
    with like(local["people"], **({} if aggregation is None else {"aggregation": aggregation})) as ner:
        for text in [*TEXTS[:4], LONG]:
            found = people.token_classification(text, aggregation_strategy=aggregation)
            (expected,) = ner([text])
            assert [(e.start, e.end, e.entity if aggregation == "none" else e.entity_group) for e in found] == [
                (e.start, e.end, e.label) for e in expected
            ]
            np.testing.assert_allclose([e.score for e in found], [e.score for e in expected], atol=1e-5)
            if aggregation != "none":
                assert [e.word for e in found] == [e.text for e in expected]


def test_what_token_classification_may_leave_out_and_share(url, local):
    labels = ["label 0", "label 2"]
    with like(local["people"], ignore_labels=labels, stride=9) as ner:
        found = client(url, "people").token_classification(LONG, ignore_labels=labels, stride=9)
        assert [(e.start, e.end) for e in found] == [(e.start, e.end) for e in ner([LONG])[0]]


def test_question_answering(url, local):
    answers = client(url, "answers")
    context = " ".join(stdlib_docstrings(6))
    (expected,) = local["answers"]([("what is it?", context)])
    found = answers.question_answering("what is it?", context)
    assert (found.answer, found.start, found.end) == (expected[0].text, expected[0].start, expected[0].end)
    assert found.score == pytest.approx(expected[0].score, abs=1e-6)
    changed = {"top_k": 4, "max_answer_len": 5, "handle_impossible_answer": True}
    with like(local["answers"], **changed, stride=10, max_length=60) as other:
        found = answers.question_answering("what is it?", context, **changed, doc_stride=10, max_seq_len=60)
        (expected,) = other([("what is it?", context)])
        assert [(e.answer, e.start, e.end) for e in found] == [(e.text, e.start, e.end) for e in expected]


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"targets": ["the", "a"]}])
def test_fill_mask(url, local, options):
    text = "the [MASK] of a file"
    with like(local["words"], **options) as words:
        found = client(url, "words").fill_mask(text, **options)
        ((expected,),) = words([text])
    assert [(e.token, e.token_str, e.sequence) for e in found] == [(e.token_id, e.token, e.text) for e in expected]
    np.testing.assert_allclose([e.score for e in found], [e.score for e in expected], rtol=1e-4)


def test_what_the_client_has_no_call_for(url, local):
    pair = {"text": "a text", "text_pair": "its pair"}
    ((first, *_),) = post(f"{url}/models/next", inputs=pair)
    assert first["label"] == local["next"]([("a text", "its pair")])[0].label
    ((first, *_),) = post(f"{url}/models/choice", inputs={"prompt": "it is", "choices": ["red", "blue"]})
    assert first["label"] == local["choice"]([("it is", ["red", "blue"])])[0].label
    assert post(f"{url}/models/rank", inputs=[pair]) == [
        pytest.approx(float(local["rank"].scores([("a text", "its pair")])[0]), abs=1e-6)
    ]
    masks = post(f"{url}/models/words", inputs="a [MASK] and a [MASK]")
    assert [len(mask) for mask in masks] == [5, 5]
    assert post(f"{url}/models/vec/pipeline/feature-extraction", inputs="a text")


@pytest.mark.parametrize(
    ("name", "body", "status", "said"),
    [
        (
            "people",
            {"inputs": "a", "parameters": {"aggregation": "none"}},
            422,
            "parameters.aggregation: unknown to ner",
        ),
        ("people", {"inputs": "a", "parameters": {"aggregation_strategy": "best"}}, 422, "aggregation"),
        ("vec", {"inputs": "a", "parameters": {"truncate": "no"}}, 422, "parameters.truncate: takes one of"),
        ("vec", {"inputs": "a", "encoding_format": "int8"}, 422, "parameters.encoding_format: takes one of"),
        ("people", {"inputs": 3}, 422, "inputs: ner takes a text"),
        ("people", {"inputs": ["a", 3]}, 422, "inputs[1]: ner takes a text"),
        ("answers", {"inputs": "a"}, 422, "inputs: qa takes"),
        ("words", {"inputs": "[MASK]", "parameters": {"top_k": 5000}}, 422, "top_k: 5000 exceed 1000"),
        ("words", {"inputs": "[MASK]", "parameters": {"targets": ["unheardof"]}}, 422, "name single tokens"),
        ("vec", {"inputs": {"source_sentence": "a"}}, 422, "sentence-similarity takes"),
        ("peeple", {"inputs": "a"}, 404, "did you mean 'people'"),
        ("vec", {}, 422, "inputs: Field required"),
    ],
)
def test_errors(url, name, body, status, said):
    response = httpx.post(f"{url}/models/{name}", json=body)
    assert (response.status_code, set(response.json())) == (status, {"error"})
    assert said in response.json()["error"]


def test_the_clients_own_error(url):
    with pytest.raises(HfHubHTTPError, match="unknown"):
        client(url, "nobody").fill_mask("[MASK]")


def test_langchains_embeddings(url, local):
    with openai.DefaultHttpxClient() as connection:
        embeddings = OpenAIEmbeddings(
            model="vec",
            base_url=f"{url}/v1",
            api_key="unused",  # type: ignore[arg-type]
            check_embedding_ctx_length=False,  # else it sends ids of another tokenizer, which are refused
            http_client=connection,
        )
        np.testing.assert_allclose(embeddings.embed_documents(TEXTS), local["vec"](TEXTS), atol=1e-6)
        np.testing.assert_allclose(embeddings.embed_query("a text"), local["vec"](["a text"])[0], atol=1e-6)


def test_many_heads_in_one_pass(url, local):
    inputs = [*TEXTS[:5], LONG]
    body = post(f"{url}/v1/label", heads=["topic", "people", "words"], inputs=inputs)
    assert [row["index"] for row in body["data"]] == list(range(6))
    topics, people = local["topic"](inputs), local["people"](inputs)
    for row, topic, entities in zip(body["data"], topics, people, strict=True):
        assert row["heads"]["topic"]["label"] == topic.label
        assert row["heads"]["topic"]["scores"] == pytest.approx(topic.scores, abs=1e-5)
        assert [(e["start"], e["end"], e["label"], e["text"]) for e in row["heads"]["people"]] == [
            (e.start, e.end, e.label, e.text) for e in entities
        ]
        assert row["heads"]["words"] == []
    windows = local["topic"].task.encode(inputs)
    assert [row["truncated"]["topic"] for row in body["data"]] == windows.truncated.tolist()
    assert [row["tokens"]["topic"] for row in body["data"]] == windows.tokens.tolist()
    assert windows.truncated.any()
    # topic reads the first windows of what people reads: both together forward no more than people alone.
    alone = post(f"{url}/v1/label", model="people", inputs=inputs[:5])["usage"]["total_tokens"]
    assert post(f"{url}/v1/label", heads=["topic", "people"], inputs=inputs[:5])["usage"]["total_tokens"] == alone


def test_one_bad_input_fails_alone(url, local):
    raw = b'{"model": "people", "inputs": ["a text", "\\ud800", 7, "another"]}'
    response = httpx.post(f"{url}/v1/label", content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    rows = response.json()["data"]
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert "half of a surrogate pair" in rows[1]["error"]
    assert "neither a text" in rows[2]["error"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"inputs": []}, 400, "inputs: empty"),
        ({"inputs": "a", "heads": []}, 422, "heads"),
        ({"inputs": "a", "heads": ["vec"], "model": "vec"}, 422, "either model or heads"),
        ({"inputs": "a", "heads": ["vek"]}, 404, "did you mean 'vec'"),
        ({"inputs": "a", "heads": ["rank"]}, 422, "inputs[0]: rank answers pairs of texts"),
        ({"inputs": "a", "heads": ["vec"], "parameters": {"topic": {}}}, 422, "'topic' is no head of this request"),
        ({"inputs": "a", "model": "vec", "parameters": {"vec": {"pooling": "cls"}}}, 422, "no request can change it"),
    ],
)
def test_what_label_refuses(url, body, status, said):
    response = httpx.post(f"{url}/v1/label", json=body)
    assert response.status_code == status, response.text
    assert said in response.json()["error"]["message"]
