"""Run files: each option is a key, the command line wins, what is printed is the same run, errors name the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

import raybert.cli.batch
from raybert.cli.app import app
from raybert.cli.runfile import HEADS, NOT_IN_A_FILE, keys_of, parse
from raybert.config import HeadSpec
from raybert.errors import SettingsError
from tests.commands import Cli, assert_one_line, cli_fixture, python  # noqa: F401

RUN: Any = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
KEYS = keys_of(RUN)
PANELS = ("Input", "Output", "Heads", "Resources", "Reliability", "Run file and logs")

FILE = """
# A comment.
heads:
  - embed=demo
  - name: topic
    task: text-classification
    model: models/topic
    revision: 1e10
    options: {top-k: 3, windows: truncate}
input: in/
output: out
keep: [id, lang]
actors: 1:8
split_rows: 100
cpus-per-actor: 1.5
dtype: float32
"""


@pytest.fixture(name="asked")
def asked_fixture(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the job was asked for, instead of being run."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(
        raybert.cli.batch,
        "run_and_show",
        lambda specs, options, **more: calls.append((specs, {**options, **more})),
    )
    return calls


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "run.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_every_option_is_a_key_or_asks_for_something_at_one_start() -> None:
    flags = {word for each in RUN.params for word in each.opts if word.startswith("--")}
    of_keys = {f"--{key.name}" for key in KEYS.values() if key.name != HEADS}
    of_starts = {f"--{name.replace('_', '-')}" for name in NOT_IN_A_FILE}
    assert flags == of_keys | (of_starts & flags)
    assert not of_keys & of_starts
    assert of_starts - flags <= {"--help"}, "a reason for an option that is no more"


def test_every_option_has_a_panel_and_a_sentence() -> None:
    for each in RUN.params:
        if each.param_type_name == "option" and each.name != "help":
            assert each.rich_help_panel in PANELS, each.name
            assert each.help, each.name


def test_what_a_file_switches_on_the_command_line_switches_off() -> None:
    for each in RUN.params:
        if each.name in KEYS and KEYS[each.name].kind is bool:
            assert each.secondary_opts == [f"--no-{KEYS[each.name].name}"], each.name


def test_help_shows_defaults(cli: Cli) -> None:
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", cli("run", "--help").out).split())
    for default in ("text", "16384", "32MiB"):
        assert f"(default: {default})" in said


def test_a_file_is_a_command_line(cli: Cli, asked: list[Any]) -> None:
    words = ["embed=demo", "topic:text-classification=models/topic", "--input", "in/", "--output", "out"]
    words += ["--option", "topic.top_k=3", "--option", "topic.windows=truncate", "--option", "topic.revision=1e10"]
    words += ["--keep", "id,lang", "--actors", "1:8", "--split-rows", "100", "--cpus-per-actor", "1.5"]
    assert cli("run", *words, "--dtype", "float32").code == 0
    assert cli("run", "--config", write(FILE)).code == 0
    assert asked[0] == asked[1]
    specs, options = asked[1]
    assert specs[1] == HeadSpec(
        name="topic",
        task="classify",
        model="models/topic",
        revision="1e10",
        options={"top_k": 3, "windows": "truncate"},
    )
    assert (options["input_uri"], options["keep"], options["actors"]) == (["in/"], ("id", "lang"), (1, 8))


def test_the_command_line_wins(cli: Cli, asked: list[Any]) -> None:
    name = write(FILE + "sync: true\nmetrics: true\noption: [topic.top_k=4]\n")
    given = ["--split-rows", "7", "--keep", "all", "--no-sync", "--option", "topic.windows=slide", "--output", "other"]
    assert cli("run", "--config", name, *given).code == 0
    specs, options = asked[0]
    assert specs[1].options == {"top_k": 4, "windows": "slide"}
    assert (options["split_rows"], options["keep"], options["output"]) == (7, "all", "other")
    assert (options["sync"], options["metrics"], options["actors"]) == (False, True, (1, 8))


def test_heads_of_the_command_line_replace_those_of_the_file(cli: Cli, asked: list[Any]) -> None:
    assert cli("run", "v:embed=other", "--config", write(FILE), "--option", "v.dimensions=8").code == 0
    assert asked[0][0] == (HeadSpec(name="v", task="embed", model="other", options={"dimensions": 8}),)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--max-length", "64", "--prompt", 'query: "ä"\n\ttab \U0001f600', "--revision", "2024-01-01"],
        ["ner=m", "--model", "x", "--option", "ignore_labels=O,MISC", "--threshold", "1e-05", "--max-quarantine", "1%"],
        [
            "a:embed",
            "--model",
            "1:8",
            "--option",
            "a.normalize=false",
            "--option",
            "a.pooling=cls+mean",
            "--limit",
            "9",
        ],
    ],
    ids=str,
)
def test_what_is_printed_is_the_same_run(cli: Cli, asked: list[Any], more: list[str]) -> None:
    name = write(FILE)
    printed = cli("run", "--config", name, *more, "--print-config")
    assert (printed.code, printed.err, asked) == (0, "", [])
    again = cli("run", "--config", write(printed.out, "again.yaml"), "--print-config")
    assert again.out == printed.out
    assert cli("run", "--config", name, *more).code == 0
    assert cli("run", "--config", "again.yaml").code == 0
    assert asked[0] == asked[1]
    assert sorted(path.name for path in Path().iterdir()) == ["again.yaml", "run.yaml"], "nothing was touched"


def test_all_keys_are_printed_with_their_help(cli: Cli) -> None:
    printed = cli("run", "embed=demo", "--input", "in", "--output", "out", "--print-config").out
    values = yaml.safe_load(printed)
    assert set(values) == {key.name for key in KEYS.values()}
    assert values["heads"] == [{"name": "embed", "task": "embed", "model": "demo", "revision": None, "options": {}}]
    assert (values["input"], values["log-format"], values["limit"]) == (["in"], "text", None)
    for key in KEYS.values():
        if key.name != HEADS:
            assert re.search(rf"(?m)^{key.name}: .*# {re.escape(key.help)}$", printed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: a\nsplit-row: 1", "line 2: unknown key 'split-row'; did you mean 'split-rows'?"),
        ("head: embed", "line 1: unknown key 'head'; did you mean 'heads'?"),
        ("limit: few", "line 1: limit 'few': takes a whole number"),
        ("limit: '5'", "line 1: limit '5': takes a whole number"),
        ("limit: 1.5", "line 1: limit '1.5': takes a whole number"),
        ("limit: [1]", "line 1: limit [...]: takes a whole number"),
        ("cpus-per-actor: many", "line 1: cpus-per-actor 'many': takes a number"),
        ("\nsync: yes", "line 2: sync 'yes': takes true or false"),
        ("keep: {a: b}", "line 1: keep {...}: takes a text, or a list of them"),
        ("output: [a]", "line 1: output [...]: takes a text"),
        ("option: [[a]]", "line 1: option [...]: takes a text, or a list of them"),
        ("split_rows: 1\nsplit-rows: 2", "line 2: split-rows stands here again, after line 1"),
        (
            "overwrite: true",
            "line 1: overwrite stands in no file, each start would delete what the one before computed",
        ),
        ("retry_quarantine: true", "line 1: retry-quarantine stands in no file, "),
        ("config: a.yaml", "line 1: config stands in no file, it names this file; pass --config"),
        ("- input", "line 1: takes KEY: VALUE, one a line"),
        ("just words", "line 1: takes KEY: VALUE, one a line"),
        ("input: [", "line 1: "),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("? [a]\n: b", "line 1: a key is one word"),
        ("heads: {name: v}", "line 1: head: task is missing"),
        ("heads:\n- task: embed\n  modle: x", "line 3: head: unknown key 'modle'; did you mean 'model'?"),
        ("heads:\n- task: embed\n  model: [x]", "line 2: head: model [...]: takes a text"),
        ("heads:\n- task: embed\n  options: 3", "line 3: takes KEY: VALUE"),
        ("heads:\n- task: embed\n  options:\n    top_k: {a: 1}", "line 4: top-k {...}: takes a number, true, false or"),
        ("heads: [[embed]]", "line 1: head [...]: takes a HEAD word, or name, task, model"),
        ("heads:\n- task: embde", "task 'embde': unknown"),
    ],
    ids=repr,
)
def test_what_is_wrong_in_a_file(cli: Cli, asked: list[Any], text: str, message: str) -> None:
    outcome = cli("run", "embed=demo", "--input", "in", "--output", "out", "--config", write(text))
    assert_one_line(outcome, 2)
    assert message in outcome.err
    if message.startswith("line"):
        assert outcome.err.startswith(f"error: run.yaml, {message}")
    assert asked == []


def test_every_key_refuses_what_it_does_not_take() -> None:
    for key in KEYS.values():
        with pytest.raises(SettingsError, match=r"^f, line 2: "):
            parse(f"\n{key.name}: {{a: b}}", "f", KEYS)


def test_words_are_those_of_the_command_line_not_of_yaml() -> None:
    text = "actors: 1:30\ntext-column: on\nrevision: 2024-01-01\nmax-quarantine: 1%\nprompt: '~'\npair-column: 007"
    found = parse(text, "f", KEYS).values
    assert found == {
        "actors": "1:30",
        "text_column": "on",
        "revision": "2024-01-01",
        "max_quarantine": "1%",
        "prompt": "~",
        "pair_column": "007",
    }
    nothing = parse("limit: null\nactors: ~\nkeep:\nheads:", "f", KEYS)
    assert (nothing.values, nothing.options, nothing.head_options) == ({}, (), ())
    assert parse("", "f", KEYS).values == {}
    assert parse("limit: &n 5\nsplit-rows: *n", "f", KEYS).values == {"limit": 5, "split_rows": 5}


@pytest.mark.parametrize(("missing", "what"), [("heads", "argument 'HEAD'"), ("input", "option '--input'")])
def test_what_neither_has_is_missing(cli: Cli, missing: str, what: str) -> None:
    lines = {"heads": "heads: embed=demo", "input": "input: in", "output": "output: out"}
    del lines[missing]
    outcome = cli("run", "--config", write("\n".join(lines.values())))
    assert_one_line(outcome, 2)
    assert f"Missing {what}: pass it, or write `{missing}:` into the file of --config" in outcome.err


def test_files_that_can_not_be_read(cli: Cli, tmp_path: Path) -> None:
    Path("latin.yaml").write_bytes(b"input: \xe4")
    Path("long.yaml").write_bytes(b"#" * (2 << 20))
    for name, message in {
        "none.yaml": "none.yaml: no such file or folder",
        "latin.yaml": "latin.yaml: byte 7 is not UTF-8",
        "long.yaml": "long.yaml: more than 1048576 bytes",
        str(tmp_path): str(tmp_path),
        "nothing://u:secret@host/a.yaml": "nothing://host/a.yaml: ",
    }.items():
        outcome = cli("run", "--config", name)
        assert_one_line(outcome, 2)
        assert message in outcome.err
        assert "secret" not in outcome.err


def test_a_uri_and_a_byte_order_mark(cli: Cli, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfheads: embed=demo\ninput: in\noutput: out\n")
    assert cli("run", "--config", f"file://{tmp_path}/r.yaml").code == 0
    assert asked[0][1]["input_uri"] == ["in"], "relative to the working directory"


def test_the_script_for_ray_jobs_takes_the_same(tmp_path: Path) -> None:
    write(FILE)
    code = "import runpy, sys; sys.argv[0] = 'jobs/run.py'; runpy.run_path('jobs/run.py', run_name='__main__')"
    done = python(code, "--config", str(tmp_path / "run.yaml"), "--print-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["split-rows"] == 100


def test_printing_loads_neither_ray_nor_torch() -> None:
    words = ["run", "embed=demo", "--input", "in", "--output", "out", "--print-config"]
    code = (
        f"import sys\nfrom raybert.cli import main\ntry:\n    main({words})\nexcept SystemExit as ended:\n"
        "    sys.exit(ended.code or [name for name in ('ray', 'torch') if name in sys.modules] or 0)"
    )
    done = python(code)
    assert (done.returncode, done.stderr) == (0, "")
