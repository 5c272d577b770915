"""One corpus and one run over it on a single machine, which every run over nodes has to equal byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.lab import why_not
from tests.crash.conftest import Clean, run_undisturbed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a lab where there can be none."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and (reason := why_not()) is not None:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"a lab of nodes {reason}"))


@pytest.fixture(scope="session")
def clean(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Three files of 40 rows in splits of five."""
    return run_undisturbed(tmp_path_factory.mktemp("single"), tiny, files=3, rows=40, split_rows=5)
