"""What importing costs and does: little, and nothing. Each check in an interpreter of its own."""

from __future__ import annotations

import json
import pkgutil
import time
from pathlib import Path

import pytest

import raybert
from tests.commands import python
from tests.tiny import write_tiny_checkpoint

HEAVY = ("torch", "ray", "pyarrow", "transformers", "sentence_transformers", "numpy", "pandas")
MODULES = sorted(module.name for module in pkgutil.walk_packages(raybert.__path__, "raybert."))
BELOW_RAY = ("engine", "tasks", "model", "text", "checkpoint", "config", "errors", "predict", "version")


def loaded(code: str, *arguments: str, watched: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of these packages are imported after the code ran."""
    ending = f"\nimport sys\nprint([name for name in {watched!r} if name in sys.modules])"
    result = python(code + ending, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return set(json.loads(result.stdout.splitlines()[-1].replace("'", '"')))


def test_import_raybert_imports_nothing_heavy() -> None:
    assert loaded("import raybert; raybert.__version__; dir(raybert)") == set()


def test_names_are_loaded_when_they_are_used() -> None:
    assert loaded("from raybert import BertConfig, RaybertError; BertConfig()") <= {"numpy"}
    assert loaded("import raybert; raybert.data") == set()
    assert "torch" in loaded("from raybert import load")


def test_every_public_name_is_there() -> None:
    assert sorted(raybert.__all__) == dir(raybert)
    for name in raybert.__all__:
        assert getattr(raybert, name) is not None
    with pytest.raises(AttributeError, match="module 'raybert' has no attribute 'nonsense'"):
        raybert.nonsense  # noqa: B018


HELP = """
import sys
from raybert.cli import main
try:
    main([*sys.argv[1:], "--help"])
except SystemExit as stop:
    assert stop.code == 0
"""


def test_help_is_quick_and_light() -> None:
    assert loaded(HELP) == set()
    best = float("inf")
    for _ in range(3):  # other work on the machine may slow one of them
        begin = time.perf_counter()
        assert python("from raybert.cli import main; main()", "--help").returncode == 0
        best = min(best, time.perf_counter() - begin)
    assert best < 1.5, f"raybert --help took {best:.2f} s; the design's bar is 0.5 s on an idle machine"


@pytest.mark.parametrize("command", ["info", "run", "verify", "report", "parity", "predict", "demo"])
def test_help_of_commands_is_light(command: str) -> None:
    assert loaded(HELP, command) == set()


def test_info_needs_no_torch(tiny: Path) -> None:
    code = (
        "import sys\nfrom raybert.cli import main\ntry:\n    main(['info', sys.argv[1]])\nexcept SystemExit:\n    pass"
    )
    assert loaded(code, str(tiny), watched=("torch", "ray", "pyarrow", "transformers")) == set()


PLAN = """
import sys
import raybert.data.job, raybert.data.plan, raybert.data.verify, raybert.data.driver, raybert.cluster
from raybert.config import HeadSpec
from raybert.data.plan import Options, make_plan
model, corpus, output = sys.argv[1:]
plan = make_plan([HeadSpec(name="v", task="embed", model=model)], Options(input=corpus, output=output))
assert plan.tasks
plan.heads("float32")
"""


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_planning_needs_neither_torch_nor_ray(tmp_path: Path, suffix: str) -> None:
    model = write_tiny_checkpoint(
        tmp_path / "model", sentence={"normalize": True, "dense": [{"out_features": 4}], "max_seq_length": 64}
    )
    corpus = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": ["one", "two"]}), corpus)
    else:
        corpus.write_text('{"text": "one"}\n{"text": "two"}\n')
    watched = ("torch", "ray", "transformers", "sentence_transformers")
    assert loaded(PLAN, str(model), str(corpus), str(tmp_path / "out"), watched=watched) == set()


WITHOUT = """
import sys

class Absent:
    names = {"ray", "transformers", "sentence_transformers", "typer", "rich", "huggingface_hub", "pandas", "fastapi"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_the_engine_runs_without_ray(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path, sentence={"normalize": True, "dense": [{"out_features": 4}]})
    code = """
import raybert
with raybert.load(sys.argv[1], "embed", threads=2) as embed:
    assert embed(["a text", "another"]).shape == (2, 4)
    assert embed.info()["engine"]
"""
    assert (
        loaded(WITHOUT + code, str(model), watched=tuple(sorted(["ray", "typer", "pandas", "transformers"]))) == set()
    )


def test_everything_below_ray_imports_without_it() -> None:
    modules = [name for name in MODULES if name.split(".")[1] in BELOW_RAY]
    assert len(modules) > 30
    assert loaded(WITHOUT + "".join(f"import {name}\n" for name in modules), watched=("ray",)) == set()


WATCH = """
import importlib, json, logging, os, signal, sys, threading, warnings

def state():
    found = {
        "environment": dict(os.environ),
        "root logger": [logging.root.level, [str(handler) for handler in logging.root.handlers], logging.root.disabled],
        "loggers": {name: [logger.level, len(logger.handlers), logger.propagate]
                    for name, logger in logging.root.manager.loggerDict.items()
                    if isinstance(logger, logging.Logger) and name.startswith("raybert")},
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "threads": [thread.name for thread in threading.enumerate()],
        "streams": [id(sys.stdout), id(sys.stderr), id(sys.excepthook)],
        "filters": [str(line) for line in warnings.filters if "raybert" in str(line)],
        "folder": os.getcwd(),
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        found["torch"] = [torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
                          torch.is_grad_enabled(), torch.initial_seed(), torch.backends.mkldnn.enabled]
    return json.dumps(found, sort_keys=True)

# Other libraries do what they like when they are imported: they come first.
import numpy, pyarrow, pyarrow.parquet, pyarrow.dataset, safetensors, tokenizers, torch, typer, rich, yaml
import pyarrow.fs, pyarrow.json, pyarrow.csv
import ray, ray.data
torch.set_num_threads(3)
torch.manual_seed(7)
logging.root.handlers.clear()  # with one there, logging.basicConfig would do nothing
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = state()
    assert after == before, (name, before, after)
"""


def test_importing_does_nothing() -> None:
    result = python(WATCH, "raybert", *MODULES, SOME_VARIABLE="kept")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_importing_says_nothing() -> None:
    result = python("import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)", *MODULES)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
