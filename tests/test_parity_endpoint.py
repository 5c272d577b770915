"""Law 4 over HTTP: an endpoint answers what a batch job wrote, whatever else it has to do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import raybert
import raybert.data
from raybert.data.parity import parity
from raybert.errors import UsageError
from raybert.serve.security import ApiKeys
from tests.commands import Cli, assert_one_line, cli_fixture  # noqa: F401
from tests.jobs import shared_ray, some_texts, write_lines
from tests.serving import served
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

KEY = "0123456789abcdef"


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with shared_ray():
        yield


@pytest.fixture(name="heads", scope="module")
def heads_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    top = tmp_path_factory.mktemp("models")
    parts = ("classifier", "masked-lm", "next-sentence", "qa")
    config = {"id2label": {0: "O", 1: "B-X", 2: "I-X"}, "problem_type": "multi_label_classification"}
    many = str(write_tiny_checkpoint(top / "many", heads=parts, config=config))
    return {
        "vec": (many, "embed", {"normalize": True}),
        "words": (many, "embed", {"output": "sparse"}),
        "each": (many, "embed", {"output": "tokens", "max_length": 40}),
        "topic": (many, "classify"),
        "people": (many, "ner", {"aggregation": "first", "stride": 7}),
        "fill": (many, "fill-mask", {"top_k": 3}),
    }


@pytest.fixture(name="made", scope="module")
def made_fixture(heads: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    texts = [*some_texts(60), "a [MASK] in [MASK]", "word " * 300, ""]
    write_lines(folder / "in.jsonl", [{"text": text} for text in texts])
    given = {"dtype": "float32", "device": "cpu", "split_rows": 30}
    raybert.data.run(heads, input=str(folder / "in.jsonl"), output=str(folder / "out"), **given)
    return folder / "out"


def renamed(heads: dict[str, Any]) -> dict[str, Any]:
    """Heads are found by what they are, whatever they are called."""
    return {f"served_{name}": head for name, head in heads.items()}


def test_rows_of_every_head(made: Path, heads: dict[str, Any], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(renamed(heads), keys=ApiKeys([KEY])) as url:
        report = parity(made, rows=63, url=url, api_key=KEY)
        assert report.ok, [each.first for each in report.heads]
        assert [each.name for each in report.heads] == list(heads)
        assert {each.rows for each in report.heads} == {63}
        monkeypatch.setenv("RAYBERT_API_KEY", KEY)
        done = cli("parity", str(made), "--rows", 5, "--url", url)
        assert done.code == 0, done.err
        assert done.out.endswith("ok: 5 rows of 3 parts\n")
        with pytest.raises(UsageError, match="401"):
            parity(made, rows=1, url=url)


def test_another_head_is_refused(made: Path, heads: dict[str, Any], cli: Cli) -> None:
    model, task, _ = heads["vec"]
    with served({**heads, "vec": (model, task, {"normalize": False})}) as url:
        done = cli("parity", str(made), "--url", url)
    assert_one_line(done, 2)
    assert "head vec: http://127.0.0.1" in done.err
    assert "serves no head of the run's fingerprint" in done.err
    gone = cli("parity", str(made), "--url", url)
    assert_one_line(gone, 2)
    assert f"{url}/info: no raybert answers there" in gone.err


@contextmanager
def loaded(url: str, texts: list[str], heads: list[str]) -> Iterator[list[int]]:
    """Other clients meanwhile, of all families; yields the statuses that they got."""
    statuses: list[int] = []
    ended = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                number += 7
                some = texts[number % len(texts) :][: 1 + number % 5] or texts[:1]
                bodies: list[tuple[str, dict[str, Any]]] = [
                    ("/embed", {"inputs": some}),
                    ("/v1/label", {"heads": heads, "inputs": some}),
                    ("/models/people", {"inputs": some, "parameters": {"aggregation_strategy": "none"}}),
                    ("/embed_all", {"inputs": some[0], "truncation_direction": "Left"}),
                ]
                path, body = bodies[number % len(bodies)]
                statuses.append(client.post(url + path, json=body).status_code)

    with ThreadPoolExecutor(3) as clients:
        asking = [clients.submit(ask, number) for number in range(3)]
        try:
            yield statuses
        finally:
            ended.set()
            for each in asking:
                each.result()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_real_texts_a_head_under_load(tmp_path: Path) -> None:
    """A real BERT; its classifier and its tagger are drawn at random, which makes their scores close to one another."""
    tokenizer = raybert.BertTokenizer.from_pretrained("demo")
    for name, kind, labels in (
        ("topic", raybert.BertForSequenceClassification, 5),
        ("people", raybert.BertForTokenClassification, 5),
    ):
        model = kind.from_pretrained("demo", new_head=True, num_labels=labels, seed=3)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    heads = {
        "vec": ("demo", "embed"),
        "topic": (str(tmp_path / "topic"), "classify"),
        "people": (str(tmp_path / "people"), "ner"),
    }
    texts = stdlib_docstrings(1000)
    write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    raybert.data.run(
        heads, input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), dtype="float32", device="cpu"
    )
    with served(heads) as url, loaded(url, texts, list(heads)) as statuses:
        report = parity(tmp_path / "out", rows=1000, url=url)
    assert report.ok, [(each.name, each.differing, each.first) for each in report.heads]
    vec = report.heads[0]
    assert vec.worst_cosine is not None
    assert vec.worst_cosine >= 0.999999
    assert {each.rows for each in report.heads} == {1000}
    assert len(statuses) > 20
    assert set(statuses) == {200}
