"""The application on Ray Serve, both forms of it: over HTTP they answer as the heads in this process do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import openai
import pytest

import raybert
from raybert.serve.app import build
from raybert.serve.settings import ServiceArgs
from tests.jobs import small_ray
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="models")
def models_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two encoders."""
    folder = tmp_path_factory.mktemp("models")
    made = [write_tiny_checkpoint(folder / f"bert{seed}", tokenizer_json=True, seed=seed) for seed in (0, 1)]
    return made[0], made[1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module", name="url", params=["collocated", "graph"])
def url_fixture(models: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[str]:
    """Two models, three heads, on a Ray of their own."""
    from ray import serve

    first, second = map(str, models)
    heads = [
        {"task": "embed", "model": first, "options": {"normalize": True}},
        {"task": "embed", "model": first, "name": "short", "options": {"max_length": 8}},
        {"task": "embed", "model": second},
    ]
    args = ServiceArgs.model_validate({"heads": heads, "form": request.param, "dtype": "float32", "threads": 1})
    port = free_port()
    with small_ray(cpus=6):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(args), name="raybert", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def test_answers_are_those_of_the_heads(url: str, models: tuple[Path, Path]) -> None:
    texts = ["", "a text", *stdlib_docstrings(30)]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        assert [model.id for model in client.models.list()] == ["bert0", "short", "bert1"]
        options = {"bert0": {"normalize": True}, "short": {"max_length": 8}, "bert1": {}}
        for name, given in options.items():
            found = client.embeddings.create(model=name, input=texts)
            with raybert.load(models[name == "bert1"], "embed", dtype="float32", device="cpu", **given) as embed:
                np.testing.assert_allclose([each.embedding for each in found.data], embed(texts), atol=1e-6)


def test_errors_are_those_of_the_family(url: str) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json={"model": "shor", "input": "a"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "model 'shor': unknown; did you mean 'short'?"
