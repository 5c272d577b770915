"""The application on Ray Serve, both forms of it: over HTTP they answer as the heads in this process do."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
import openai
import pytest
import yaml
from ray.serve._private.logging_utils import get_serve_logs_dir

import raybert
from raybert.serve import plan
from raybert.serve.app import build
from raybert.serve.settings import ServiceArgs
from raybert.serve.tracing import ENDPOINTS
from tests.jobs import Cli, run_cli, small_ray, wait_for
from tests.serving import free_port, ready
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint
from tests.traces import CALLER, Receiver, receiving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="models")
def models_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two encoders."""
    folder = tmp_path_factory.mktemp("models")
    made = [write_tiny_checkpoint(folder / f"bert{seed}", tokenizer_json=True, seed=seed) for seed in (0, 1)]
    return made[0], made[1]


@pytest.fixture(scope="module", name="receiver")
def receiver_fixture() -> Iterator[Receiver]:
    """Where the traces of all processes go."""
    with receiving() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINTS[1], receiver.url)
        yield receiver


@pytest.fixture(scope="module", name="form", params=["collocated", "graph"])
def form_fixture(request: pytest.FixtureRequest) -> str:
    """Of the service."""
    return str(request.param)


@pytest.fixture(scope="module", name="url")
def url_fixture(models: tuple[Path, Path], form: str, receiver: Receiver) -> Iterator[str]:
    """Two models, three heads, on a Ray of their own."""
    from ray import serve

    first, second = map(str, models)
    heads = [
        {"task": "embed", "model": first, "options": {"normalize": True}},
        {"task": "embed", "model": first, "name": "short", "options": {"max_length": 8}},
        {"task": "embed", "model": second},
    ]
    args = ServiceArgs.model_validate({"heads": heads, "form": form, "dtype": "float32", "threads": 1})
    port = free_port()
    with small_ray(cpus=6):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(args), name="raybert", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def test_health_metrics_and_what_is_served(url: str) -> None:
    assert httpx.get(f"{url}/livez").status_code == httpx.get(f"{url}/readyz", timeout=60).status_code == 200
    assert httpx.get(f"{url}/info", params={"model": "short"}).json()["max_input_length"] == 8
    assert httpx.post(f"{url}/embed", json={"inputs": "a text"}).status_code == 200

    def told() -> bool:
        text = httpx.get(f"{url}/metrics").text
        return 'raybert_requests_total{route="/embed",status="200"} 1.0' in text and "raybert_batch_tokens_sum" in text

    wait_for(told, "the metrics of every process", within_s=30)


def test_answers_are_those_of_the_heads(url: str, models: tuple[Path, Path]) -> None:
    texts = ["", "a text", *stdlib_docstrings(30)]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        assert [model.id for model in client.models.list()] == ["bert0", "short", "bert1"]
        options = {"bert0": {"normalize": True}, "short": {"max_length": 8}, "bert1": {}}
        for name, given in options.items():
            found = client.embeddings.create(model=name, input=texts)
            with raybert.load(models[name == "bert1"], "embed", dtype="float32", device="cpu", **given) as embed:
                np.testing.assert_allclose([each.embedding for each in found.data], embed(texts), atol=1e-6)


def test_a_request_is_one_trace(url: str, form: str, receiver: Receiver) -> None:
    trace = f"{['collocated', 'graph'].index(form) + 1:032x}"
    headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
    assert httpx.post(f"{url}/embed", json={"inputs": "a text"}, headers=headers).status_code == 200

    def came() -> set[str]:
        return {span.name for span in receiver.spans if span.trace_id.hex() == trace}

    expected = {"POST /embed", "tokenize", "compute", "decode"} | ({"encoder"} if form == "graph" else set())
    wait_for(lambda: came() == expected, "the spans of every process", within_s=30)
    spans = {span.name: span for span in receiver.spans if span.trace_id.hex() == trace}
    assert spans["POST /embed"].parent_span_id.hex() == CALLER
    if form == "graph":
        assert spans["encoder"].parent_span_id == spans["compute"].span_id


def test_each_request_is_a_line_in_a_file_of_the_replica(url: str) -> None:
    assert httpx.post(f"{url}/embed", json={"inputs": "a text"}, headers={"x-request-id": "seek-me"}).status_code == 200
    folder = Path(get_serve_logs_dir())

    def lines() -> list[str]:
        found = folder.glob("access_raybert_ingress_*.log")
        return [line for file in found for line in file.read_text().splitlines() if "seek-me" in line]

    wait_for(lambda: bool(lines()), "the line", within_s=10)
    assert [json.loads(line)["path"] for line in lines()] == ["/embed"]


def test_errors_are_those_of_the_family(url: str) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json={"model": "shor", "input": "a"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "model 'shor': unknown; did you mean 'short'?"


@pytest.mark.timeout(400)
def test_the_command_serves_and_drains(models: tuple[Path, Path]) -> None:
    """Every request that was let in before SIGTERM is answered; nothing is left, and stdout has one line."""
    port, texts = free_port(), stdlib_docstrings(200)
    url = f"http://127.0.0.1:{port}"
    words = ("serve", "--model", models[0], "--name", "vec", "--dtype", "float32", "--port", port)
    with Cli(*words) as cli, ThreadPoolExecutor(8) as clients:
        cli.until(lambda: ready(url), "it is ready")
        begun = [clients.submit(httpx.post, f"{url}/embed", json={"inputs": texts}, timeout=120) for _ in range(8)]
        cli.until(lambda: held(url) > 0, "requests under way")
        time.sleep(1)  # all of them have arrived; what comes later finds no route
        cli.process.send_signal(signal.SIGTERM)
        statuses = [each.result().status_code for each in begun]
        done = cli.finish()
    assert statuses == [200] * 8
    assert (done.code, done.out) == (0, f"ready: {url} serves vec\n"), done.err
    assert done.errors == ["draining: what is under way is answered, then the service ends"]


def test_a_large_answer_crosses_between_processes(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Vectors of 100,000 tokens, more than gRPC lets pass unless told."""
    heads = [{"task": "embed", "model": str(models[0])}]
    config = plan.of_heads(heads, dtype="float32", device="cpu", replicas=(1, 1), threads=1)
    config["applications"][0]["args"]["form"] = "graph"
    file, port = tmp_path / "graph.yaml", free_port()
    file.write_text(yaml.safe_dump(config))
    long = " ".join(stdlib_docstrings(30))[:1500]
    with Cli("serve", file, "--port", port) as cli:
        url = f"http://127.0.0.1:{port}"
        cli.until(lambda: ready(url), "it is ready")
        response = httpx.post(f"{url}/embed_all", json={"inputs": [long] * 800, "truncate": True}, timeout=120)
        assert response.status_code == 200, response.text[:500]
        found = response.json()
        cli.process.send_signal(signal.SIGTERM)
        cli.finish()
    assert 4 * sum(len(tokens) * len(tokens[0]) for tokens in found) > 4 << 20


def held(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=30).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("raybert_held_tokens "))


@pytest.mark.timeout(300)
def test_ctrl_c_while_it_waits_for_a_place(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A cluster that is too small is told, again and again; whoever has seen enough gets out at once."""
    config = plan.of_heads(
        [{"task": "embed", "model": str(models[0])}], dtype="auto", device="cpu", replicas=(1, 1), threads=1
    )
    config["applications"][0]["deployments"][0]["ray_actor_options"] = {"num_cpus": 1000}
    file = tmp_path / "large.yaml"
    file.write_text(yaml.safe_dump(config))
    with Cli("serve", file, "--port", free_port()) as cli:
        cli.until(lambda: "waiting for raybert/ingress" in cli.told(), "it says what it waits for")
        cli.process.send_signal(signal.SIGINT)
        done = cli.finish()
    assert (done.code, done.out) == (130, ""), done.err
    assert done.errors == ["interrupted"]


def test_a_service_that_cannot_start_says_why(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A checkpoint whose weights are damaged passes the check, which reads none; the replica's reason is told."""
    broken = shutil.copytree(models[0], tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run_cli("serve", "--model", broken, "--port", free_port())
    assert (done.code, done.out) == (1, "")
    (line,) = done.errors
    assert line.startswith("error: ")
    assert "model.safetensors" in line
