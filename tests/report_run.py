"""A run for the tests of reports: every kind of answer, two files, bad rows, filtered ones, hostile texts and names.

The stages of a job make it in this process, one split after another: the files are those of a job on Ray.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybert.cluster import Shares
from raybert.config import heads_from
from raybert.data import manifest as manifests
from raybert.data.cells import from_row
from raybert.data.driver import DriverLock
from raybert.data.flow import make_job
from raybert.data.history import History, Session
from raybert.data.plan import Options, make_plan
from raybert.data.stages import ModelStage, encode_stage, load_check, read_stage, write_stage
from tests.jobs import some_texts, write_lines
from tests.tiny import stdlib_docstrings, write_tiny_checkpoint

TAGS = {"id2label": {0: "O", 1: "B-<i>X</i>", 2: "I-<i>X</i>", 3: "B-Y", 4: "I-Y"}, "num_labels": 5}
TOPICS = {"id2label": {0: "<b>sports</b>", 1: "'law' & \"order\"", 2: "science"}, "num_labels": 3}
MANY = {"num_labels": 3, "problem_type": "multi_label_classification"}
HOSTILE = " | ".join(
    (
        "<script>alert('x')</script>",
        "\"'><img src=x onerror=alert(1)> </p></main><style>*{display:none}</style>",
        "שלום \u202eevil\u202c \u2066עולם",  # noqa: RUF001  Hebrew letters, written from the right
        "emoji \U0001f600\U0001f469\u200d\U0001f467 &amp; &lt; \x07bell \x00 nul \r return",
        "<!-- a comment --> ]]> {{7*7}} javascript:alert(1)",
    )
)
HOSTILE_COLUMN = '<i>"k"\''
BAD_ROWS = 7
ROWS = 40 + 2 + 180 + BAD_ROWS
FILES = ("a<b>&\"'.jsonl", "sub/b.jsonl.gz")


@functools.cache
def made(base: Path) -> Path:
    """Two runs, ``texts`` and ``pairs``, and their input, ``in`` and ``pairs.parquet``: made once below a folder.

    Reports may be written; whatever else is changed is changed in a copy.
    """
    top = base / "reports"
    top.mkdir()
    models = {
        "tags": write_tiny_checkpoint(top / "<tags>", heads=("classifier",), config=TAGS),
        "topics": write_tiny_checkpoint(top / "topics", heads=("classifier",), config=TOPICS, seed=3),
        "many": write_tiny_checkpoint(top / "many", heads=("classifier",), config=MANY),
        "number": write_tiny_checkpoint(top / "number", heads=("classifier",), config={"num_labels": 1}),
        "words": write_tiny_checkpoint(top / "words", heads=("masked-lm", "next-sentence", "qa")),
    }
    folders = {name: str(path) for name, path in models.items()}
    texts = [*[HOSTILE] * 40, "the [MASK] is [MASK]", "a [MASK]", *some_texts(180)]
    rows: list[Any] = [
        {"text": text, "id": at, HOSTILE_COLUMN: f"<k{at}>", "lang": "en" if at % 7 else "de"}
        for at, text in enumerate(texts)
    ]
    bad: list[Any] = [b"{not json <script>alert(2)</script>", *({"text": None, "lang": "en"} for _ in range(5))]
    write_lines(top / "in" / FILES[0], [*rows[:90], *bad, {"text": 7, "lang": "en"}])
    write_lines(top / "in" / FILES[1], rows[90:])
    heads = {
        "v": (folders["words"], "embed", {"normalize": False}),
        "topic": (folders["topics"], "classify"),
        "many": (folders["many"], "classify"),
        "grade": (folders["number"], "classify", {"activation": "none"}),
        "people": (folders["tags"], "ner", {"max_length": 40, "stride": 10}),
        "fill": (folders["words"], "fill-mask", {"top_k": 2}),
        "sparse": (folders["words"], "embed", {"output": "sparse"}),
        "states": (folders["words"], "embed", {"output": "tokens", "max_length": 16}),
    }
    texts = stdlib_docstrings(100)
    pairs = {"q": [text[:60] for text in texts[:40]], "c": texts[40:80]}
    pq.write_table(pa.table(pairs), top / "pairs.parquet")
    of_pairs = {
        "score": (folders["number"], "rerank"),
        "next": (folders["words"], "next-sentence"),
        "answers": (folders["words"], "qa"),
    }
    hostile = {"keep": ("text", "id", HOSTILE_COLUMN), "where": "lang == 'en'"}
    run(heads, top / "in", top / "texts", **hostile)
    run(of_pairs, top / "pairs.parquet", top / "pairs", text_column="q", pair_column="c", keep=("c",))
    return top


def run(heads: Mapping[str, Any], source: Path, output: Path, **options: Any) -> None:
    """A whole run, without Ray."""
    specs = heads_from(heads)
    plan = make_plan(specs, Options(input=(str(source),), output=str(output), split_rows=25, **options))
    shares = Shares(least=1, most=1, cpus=1, gpus=0, streams=1, readers=1, encoders=1, writers=1)
    before = dict(os.environ)
    try:
        with DriverLock(plan.store) as lock:
            manifest = plan.new_manifest(load_check(specs, "cpu", "float32", None))
            manifests.save(plan.store, manifest)
            job = make_job(plan, manifest, shares, lock.token)
            history = History(plan.store, Session(resources=asdict(shares)))
            model = ModelStage(job.heads, job.fingerprints, job.engine, job.streams, job.pairs)
            for task in (task for tasks in plan.tasks.values() for task in tasks):
                for row in read_stage(task, job):
                    history.add(from_row(write_stage(model(encode_stage(row, job)), job))[0])
            history.end("complete")
    finally:
        os.environ.clear()
        os.environ.update(before)
