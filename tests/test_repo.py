"""What the repository says about itself is true: file tree, commands, options, examples, pins, checks (law 11)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import raybert
from raybert.cli.app import app
from tests.processes import short_folder

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Options of other programs that README.md and CONTRIBUTING.md name.
FOREIGN = {"--working-dir", "--head", "--generate", "--show"}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in shell blocks; what ``&&`` joins are several."""
    for line in "".join(blocks(text, "sh")).splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words:
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def raybert_arguments(words: Sequence[str]) -> list[str] | None:
    """What a command hands to raybert; None where it is another program."""
    if "--" in words and words[0] == "ray":
        words = words[words.index("--") + 1 :]
    if words[0] == "raybert":
        return list(words[1:])
    return ["run", *words[2:]] if words[:2] == ["python", "jobs/run.py"] else None


def tracked(*paths: str) -> set[str]:
    """Files that git has or would take, those that were deleted left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def tree() -> dict[str, str]:
    """Path -> description of every line of README's file tree; folders end in a slash."""
    (drawn,) = [block for block in blocks(README, "text") if "raybert/  " in block]
    found: dict[str, str] = {}
    above: list[str] = []
    for line in drawn.splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+) +(\S.*)", line)
        assert match, f"not '<two spaces a level><name>  <description>': {line!r}"
        level, name = len(match[1]) // 2, match[2]
        assert level <= len(above), line
        above[level:] = [name] if name.endswith("/") else []
        path = "".join([*above[:level], name])
        assert path not in found, f"{path} stands there twice"
        found[path] = match[3]
    return found


def test_tree_is_the_real_one() -> None:
    drawn = tree()
    files = tracked()
    described = {name for name in files if not name.startswith("tests/")}
    assert {path for path in drawn if not path.endswith("/")} == described
    folders = {f"{Path(name).parent.as_posix()}/" for name in described if "/" in name}
    # Below tests/ folders stand for their files; the first two levels are told.
    folders |= {"/".join(name.split("/")[:-1][:2]) + "/" for name in files if name.startswith("tests/")}
    assert {path for path in drawn if path.endswith("/")} == folders


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_raybert_commands_parse(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    checked = 0
    for words in commands(text):
        arguments = raybert_arguments(words)
        if arguments is None:
            continue
        name, *rest = arguments
        group.commands[name].make_context(name, rest)  # parses and checks, runs nothing
        checked += 1
    assert checked >= {"README.md": 7, "CONTRIBUTING.md": 0}[page]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_other_commands_are_there(page: str) -> None:
    for words in commands((ROOT / page).read_text(encoding="utf-8")):
        scripts = [word for word in words if word.startswith(("jobs/", "tests/", ".ci/"))]
        for script in scripts:
            assert (ROOT / script).exists(), words
        if words[0] == "pytest" and "-m" in words:
            assert words[words.index("-m") + 1] in ("slow", "soak")


def test_every_soak_test_has_its_command() -> None:
    soaks = {
        name for name in tracked("tests") if "mark.soak" in (ROOT / name).read_text(encoding="utf-8", errors="ignore")
    }
    named = {word for words in commands(CONTRIBUTING) if "soak" in words for word in words if word.startswith("tests/")}
    assert soaks - {"tests/test_repo.py"} == named


def test_benchmarks_that_are_named_run() -> None:
    named = set(re.findall(r"python jobs/bench\.py (\w+)", README + CONTRIBUTING))
    assert {"engine", "job"} <= named
    shown = subprocess.run(
        [sys.executable, "jobs/bench.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in named:
        assert f" {name} " in shown.stdout


def test_options_that_are_named_exist() -> None:
    group = typer.main.get_command(app)
    parameters = [each for command in group.commands.values() for each in command.params]
    real = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
    real |= {"--help", "--debug", "--version"}
    text = re.sub(
        r"^(?:ray job submit|python3 -m venv|\.venv/bin/pip|pytest|ruff) .*?(?= -- |$)", "", README, flags=re.M
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert named <= real | FOREIGN
    options_of_run = {
        option for each in group.commands["run"].params for option in each.opts if option.startswith("--")
    }
    assert options_of_run - {"--help"} <= named


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in re.findall(r"^#+ (.*)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README + CONTRIBUTING):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("https://"):
            assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_python_examples_run(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text(
        '{"id": 1, "text": "one"}\n{"id": 2, "text": null}\n', encoding="utf-8"
    )
    examples = blocks(README, "python")
    assert len(examples) == 3
    with short_folder() as ray_folder:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(examples)],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            | {"RAY_TMPDIR": str(ray_folder)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 1 1 None\n")
    assert "'vector': " in done.stdout
    assert done.stdout.endswith("torch.Size([2, 4, 5])\n")
    assert raybert.BertForTokenClassification.from_pretrained(tmp_path / "tagger").config.num_labels == 5


def pins() -> dict[str, Requirement]:
    """Name -> pin of each line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(each.name) for each in parsed]
    assert names == sorted(set(names))
    return dict(zip(names, parsed, strict=True))


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = [Requirement(text) for each in lists for text in each]
    pinned = pins()
    names = {canonicalize_name(each.name) for each in asked} - {"raybert"}
    assert set(pinned) == names
    for each in asked:
        if each.name != "raybert":
            (version,) = pinned[canonicalize_name(each.name)].specifier
            assert version.operator == "=="
            assert each.specifier.contains(version.version), f"{each} does not take {version}"
            assert "+" not in version.version, "a local build resolves on one machine only"


def test_ci_runs_the_readme_lines() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    shown = subprocess.run([script, "--show"], capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [
        line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("python3 -m venv")
    ]
    assert sorted(shown) == sorted(lines)
    assert shown[0].endswith(" -e '.[test]' && .venv/bin/pytest")
    assert shown[1].endswith(" -e '.[demo]' && .venv/bin/raybert demo")
    assert all(" -c constraints.txt " in line for line in shown)
