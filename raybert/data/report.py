"""The report of a run: figures in ``_raybert/report.json``, and ``_raybert/report.html``, a page that shows them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

from raybert.data.manifest import NAME as MANIFEST
from raybert.data.manifest import load
from raybert.data.reporting.facts import make_facts
from raybert.data.store import TEMPORARIES, Store
from raybert.errors import UsageError

JSON, PAGE = "_raybert/report.json", "_raybert/report.html"


def report(output: str | os.PathLike[str] | Store) -> dict[str, Any]:
    """Write both files; equal folders give equal files.

    Args:
        output: the folder's path or URI, or its store.

    Returns:
        The figures, as report.json holds them.

    Raises:
        UsageError: there is no run in that folder, or matplotlib is not installed.
        OutputError: the run can't be read, or the report not be written.
    """
    store = output if isinstance(output, Store) else Store(output)
    draw = _page()
    manifest = load(store)
    if manifest is None:
        raise UsageError(f"{store.place(MANIFEST)}: not found; name the --output folder of a run")
    facts = make_facts(store, manifest)
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # The page shows what the file holds: numbers as JSON gives them back.
    page = draw(json.loads(text))
    store.write(JSON, text.encode())
    store.write(PAGE, page.encode())
    if store.folder is not None:
        with suppress(OSError):  # a run is at work and writes there too
            (store.folder / TEMPORARIES).rmdir()
    return facts


def _page() -> Any:
    try:
        import matplotlib  # noqa: F401  looked for before anything is read
    except ModuleNotFoundError as error:
        raise UsageError("report: drawing needs matplotlib; pip install 'raybert[report]'") from error
    from raybert.data.reporting.page import make_page

    return make_page
