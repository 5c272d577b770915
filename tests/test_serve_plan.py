"""What `raybert serve --check` refuses: all that Ray Serve would pass over, or tell only when it is too late."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybert.cli import main
from raybert.errors import CheckpointError, SettingsError
from raybert.serve import launch, plan

ROOT = Path(__file__).resolve().parent.parent
KEY = "0123456789abcdef"


@pytest.fixture(name="config")
def config_fixture(tiny: Path) -> dict[str, Any]:
    found = plan.of_heads(
        [{"task": "embed", "model": str(tiny), "name": "vec"}],
        dtype="float32",
        device="cpu",
        replicas=(1, 3),
        threads=None,
    )
    return found | {"http_options": {"host": "127.0.0.1", "port": 8000}}


def test_a_good_one(config: dict[str, Any]) -> None:
    schema = plan.checked(config, "here")
    (args,) = plan.arguments(schema)
    assert [head.served_name for head in args.heads] == ["vec"]
    assert schema.applications[0].deployments[0].autoscaling_config["max_replicas"] == 3  # type: ignore[index]


def application(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["applications"][0]
    return found


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "top": (
        lambda c: c.update(aplications=[]),
        "here: aplications: unknown; did you mean 'applications'",
    ),
    "http": (
        lambda c: c["http_options"].update(prot=1),
        "here: http_options.prot: unknown; did you mean 'port'",
    ),
    "deployment": (
        lambda c: application(c)["deployments"][0].update(max_queue_requests=3),
        "deployments.0.max_queue_requests: unknown; did you mean 'max_queued_requests'",
    ),
    "value": (lambda c: c["http_options"].update(port="x"), "here: http_options.port: "),
    "name": (
        lambda c: application(c)["deployments"][0].update(name="ingres"),
        "'ingres': this graph has ingress, metrics; did you mean 'ingress'",
    ),
    "argument": (
        lambda c: application(c)["args"].update(dtyp="float32"),
        "here: applications.0.args.dtyp: unknown; did you mean 'dtype'",
    ),
    "limit": (
        lambda c: application(c)["args"].update(limits={"deadline": 3}),
        "args.limits.deadline: unknown; did you mean 'deadline_s'",
    ),
    "head": (
        lambda c: application(c)["args"]["heads"][0].update(optoins={}),
        "args.heads.0.optoins: unknown; did you mean 'options'",
    ),
    "dtype": (lambda c: application(c)["args"].update(dtype="float23"), "args: dtype"),
    "task": (lambda c: application(c)["args"]["heads"][0].update(task="embedd"), "embedd"),
    "served name": (
        lambda c: application(c)["args"]["heads"][0].update(name="a/b"),
        "head 'a/b': clients can't ask for it; name it with letters",
    ),
    "none": (lambda c: c.update(applications=[]), "here: applications: there is none"),
    "option": (
        lambda c: application(c)["args"]["heads"][0].update(options={"poling": "cls"}),
        "embed: unknown option 'poling'",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_means_nothing(config: dict[str, Any], name: str) -> None:
    change, said = CHANGES[name]
    changed = copy.deepcopy(config)
    change(changed)
    with pytest.raises(SettingsError) as caught:
        plan.checked(changed, "here")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_none(config: dict[str, Any], tmp_path: Path) -> None:
    application(config)["args"]["heads"][0]["model"] = str(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="nothing"):
        plan.checked(config, "here")


@pytest.mark.parametrize(
    ("host", "env", "open_to_all", "fine"),
    [
        ("127.0.0.1", {}, False, True),
        ("localhost", {}, False, True),
        ("0.0.0.0", {}, False, False),
        ("0.0.0.0", {}, True, True),
        ("0.0.0.0", {"RAYBERT_API_KEYS": KEY}, False, True),
    ],
)
def test_nobody_is_open_to_others_by_accident(
    config: dict[str, Any], host: str, env: dict[str, str], open_to_all: bool, fine: bool
) -> None:
    config["http_options"]["host"] = host
    schema = plan.checked(config, "here")
    if fine:
        launch.check_keys(schema, env, open_to_all=open_to_all)
        return
    with pytest.raises(SettingsError, match="without an API key; set RAYBERT_API_KEYS, or api_key_file"):
        launch.check_keys(schema, env, open_to_all=open_to_all)


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_command_checks_and_starts_nothing(
    config: dict[str, Any], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(config))
    assert said(capsys, "serve", file, "--check") == (0, f"ok: {file}: vec\n", "")
    assert said(capsys, "serve", "--model", tiny, "--task", "embed", "--name", "x", "--check")[:2] == (
        0,
        "ok: options: x\n",
    )
    code, out, err = said(capsys, "serve", file, "--check", "--dtype", "float32")
    assert (code, out, err) == (2, "", f"error: --dtype: {file} says that itself; change it there\n")
    code, out, err = said(capsys, "serve", file, "--check", "--model", tiny)
    assert (code, out, err) == (2, "", f"error: --model: {file} says that itself; change it there\n")
    file.write_text("[1, 2]")
    assert said(capsys, "serve", file)[0] == 2
    code, out, err = said(capsys, "serve", tmp_path / "none.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said(capsys, "serve", "--model", tiny, "--replicas", "0")[0] == 2
    code, out, err = said(capsys, "serve", "--model", tiny, "--no-haproxy", "--address", "a:1")
    assert (code, out) == (2, "")
    assert err == "error: --haproxy: Ray at 'a:1' runs; start its nodes with RAY_SERVE_ENABLE_HA_PROXY=0\n"
    code, _, err = said(capsys, "serve", "--model", tiny, "--host", "0.0.0.0", "--check")
    assert (code, "without an API key" in err) == (2, True)


@pytest.mark.parametrize("path", sorted((ROOT / "serve_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_mean_something(path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the last key and deployment; their models are elsewhere, so that a tiny one stands in for each."""
    config = plan.read(path)
    kept = plan.open_tasks
    monkeypatch.setattr(
        plan,
        "open_tasks",
        lambda args: kept(
            args.model_copy(
                update={
                    "heads": tuple(
                        head.model_copy(
                            update={"model": str(tiny), "task": "embed", "options": {"max_length": 20 + at}}
                        )
                        for at, head in enumerate(args.heads)
                    )
                }
            )
        ),
    )
    if path.name == "several_models.yaml":  # there each head is a BERT of its own
        monkeypatch.setattr(plan, "group_heads", lambda tasks: type("", (), {"trunks": [(name,) for name in tasks]}))
    plan.checked(config, str(path))
