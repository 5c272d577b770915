"""``raybert demo``: the main job end to end, on real text that lies on every machine with Python."""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.cli.batch import run_and_show
from raybert.config import HeadSpec

_QUESTIONS = (
    "how do I parse command line arguments?",
    "run a coroutine until it is done",
    "compress a file",
)
_NOT_OURS = {"site-packages", "__pycache__", "test", "tests", "idle_test"}
_BEST = 3
_SPLIT_ROWS = 1024  # some parts a minute, so that the progress moves


def docstrings() -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of every module, class and function of Python's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_OURS)
        for file in sorted(files):
            if file.endswith(".py"):
                path = Path(folder, file)
                module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
                yield from _docstrings_of(path, module)


def _docstrings_of(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates and samples that are no Python
        return

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield name, text
        for child in ast.iter_child_nodes(node):
            inner = getattr(child, "name", None)
            yield from visit(child, f"{name}.{inner}" if isinstance(inner, str) else name)

    yield from visit(tree, module)


def run_demo(folder: str, model: str) -> None:
    """Embed the corpus by the batch job, then answer questions by exact search.

    Args:
        folder: gets ``docstrings.parquet`` and ``vectors/``.
        model: any model that embeds.
    """
    begin = time.perf_counter()
    here = Path(folder)
    corpus, vectors = here / "docstrings.parquet", here / "vectors"
    spec = HeadSpec(name="vector", task="embed", model=model)
    if not corpus.exists():
        here.mkdir(parents=True, exist_ok=True)
        names, texts = zip(*docstrings(), strict=True)
        pq.write_table(pa.table({"name": names, "text": texts}), corpus)
    rows = pq.read_metadata(corpus).num_rows
    sys.stderr.write(f"{rows:,} docstrings of Python's standard library in {corpus}\n")
    options = {"keep": ("name", "text"), "split_rows": _SPLIT_ROWS}
    run_and_show([spec], options, input_uri=str(corpus), output=str(vectors))
    _answer(vectors, model)
    sys.stdout.write(
        f"\n{time.perf_counter() - begin:.0f} s in all\n"
        f"corpus: {corpus}; vectors, names and texts: {vectors}/part-*.parquet\n"
        f"On your own texts: raybert run embed --model MODEL --input FILES --output FOLDER\n"
        f"MODEL is {model!r} as here, a folder in Hugging Face layout, or a hub id such as BAAI/bge-base-en-v1.5\n"
    )


def _answer(vectors: Path, model: str) -> None:
    """Print a table of the nearest docstrings for each question."""
    from rich.console import Console
    from rich.table import Table

    from raybert.predict import load

    found = pq.read_table(vectors, columns=["vector", "name", "text"]).combine_chunks()
    corpus_ND = found["vector"].chunk(0).flatten().to_numpy().reshape(len(found), -1)
    questions_QD = load(model, "embed")(_QUESTIONS)
    scores_QN = questions_QD @ corpus_ND.T
    table = Table("question", "score", "name", "docstring", title="Exact search by cosine")
    for question, scores_N in zip(_QUESTIONS, scores_QN, strict=True):
        best = np.argsort(-scores_N)[:_BEST]
        for place, row in enumerate(best.tolist()):
            text = " ".join(found["text"][row].as_py().split())
            table.add_row(
                question if place == 0 else "",
                f"{scores_N[row]:.3f}",
                found["name"][row].as_py(),
                text if len(text) <= 60 else text[:59] + "…",
                end_section=place == _BEST - 1,
            )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
