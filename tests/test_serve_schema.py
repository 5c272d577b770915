"""Requests made from the OpenAPI document, right and wrong ones: no 500, no hang, and errors that say something."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode

from raybert.serve.limits import Limits
from tests.serving import every_head

pytestmark = pytest.mark.slow

HEADS = ("vec", "topic", "people", "answers", "words", "sparse", "next", "choice", "rank", "nobody")
CALM = hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))


@pytest.fixture(scope="module", name="schema")
def schema_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[schemathesis.BaseSchema]:
    with every_head(tmp_path_factory.mktemp("heads"), limits=Limits(max_items=50)) as (url, _):
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", GenerationMode)
def test_every_operation(schema: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    seen: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        @CALM
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode), head=strategies.sampled_from(HEADS))
        def ask(case: schemathesis.Case, head: str) -> None:
            if "name" in case.path_parameters:
                case.path_parameters["name"] = head
            response = case.call(timeout=20)
            seen.setdefault(case.operation.label, set()).add(response.status_code)
            assert response.status_code in (200, 400, 404, 405, 413, 422, 424), response.text
            assert response.headers["x-request-id"]
            if response.status_code >= 400:
                assert response.json()

        if mode is GenerationMode.POSITIVE or operation.body or operation.query:
            ask()
    assert len(seen) >= 15
    if mode is GenerationMode.POSITIVE:
        assert not [label for label, statuses in seen.items() if label.startswith("GET") and 200 not in statuses]
