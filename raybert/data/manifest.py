"""What a run's folder was made with: ``_raybert/manifest.json``, written before the first part.

The manifest fixes what every later run into the same folder must repeat: the settings and heads that shape
rows, the numbers of the input files, the output schema, and what decides bits. It holds no time, host or
process, and not where OUTPUT lies, so that a run repeated elsewhere writes the same file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from raybert.data.splits import MAX_FILES, InputFile
from raybert.data.store import Store
from raybert.errors import InputError, OutputError, SettingsError

NAME = "_raybert/manifest.json"
FORMAT = 2

Head = Mapping[str, Any]
"""A head as the manifest has it: ``name``, ``task``, ``model``, ``options``, ``fingerprint``."""

_ELSEWHERE = ("input",)  # settings that say where the input lies; file paths below it enter the hash instead


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One run's fixed facts. The values of the plain dicts are JSON values.

    Attributes:
        settings: what shapes rows, by option name with underscores: ``input`` (the root), ``input_format``,
            ``text_column``, ``text``, ``where``, ``pair_column``, ``keep``, ``limit``, ``split_rows``,
            ``split_bytes``, ``max_row_bytes``, ``vector_type``, ``columns`` (names and types); None for an option that
            is not in use.
        heads: the heads in column order.
        files: the input files by number.
        schema: the output schema; its fields' metadata count, its own do not.
        engine: what decides bits, the same on every actor: ``device``, ``dtype``, ``kernels``, ``budget``,
            ``threads``, ``versions`` (dict of libraries, raybert among them).
    """

    settings: Mapping[str, Any]
    heads: tuple[Head, ...]
    files: tuple[InputFile, ...]
    schema: pa.Schema
    engine: Mapping[str, Any]

    def __reduce__(self) -> tuple[object, ...]:
        """Travel as JSON: a pickled pa.Schema forgets that a vector's elements are not null (pyarrow 26)."""
        return (from_json, (to_json(self),))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint by head name."""
        return {head["name"]: head["fingerprint"] for head in self.heads}

    @property
    def shaping(self) -> str:
        """Hex digest of all that shapes rows; it enters the hash in every part's name.

        A head counts by name, task and fingerprint: not by where its checkpoint lay.
        """
        return shaping_digest(self.settings, self.heads, self.schema)


def shaping_digest(settings: Mapping[str, Any], heads: Sequence[Head], schema: pa.Schema) -> str:
    """The digest behind ``Manifest.shaping``."""
    facts = {
        "settings": {key: value for key, value in settings.items() if key not in _ELSEWHERE},
        "heads": [[head["name"], head["task"], head["fingerprint"]] for head in heads],
        "schema": schema_lines(schema),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def to_json(manifest: Manifest) -> str:
    """The manifest's text: indented, keys sorted, the same for equal manifests."""
    schema = manifest.schema.remove_metadata()
    facts = {
        "format": FORMAT,
        "settings": dict(manifest.settings),
        "heads": [dict(head) for head in manifest.heads],
        "files": [asdict(file) for file in manifest.files],
        "schema": {
            "fields": schema_lines(schema),
            "arrow": base64.b64encode(schema.serialize()).decode("ascii"),
        },
        "engine": dict(manifest.engine),
    }
    return json.dumps(facts, sort_keys=True, indent=1) + "\n"


def from_json(text: str | bytes) -> Manifest:
    """Read what ``to_json`` wrote.

    Raises:
        ValueError: it is not a manifest, or one of another format.
    """
    try:
        facts = json.loads(text)
        if (found := facts["format"]) != FORMAT:
            raise ValueError(f"format {found}, this raybert reads {FORMAT}")
        return Manifest(
            settings=facts["settings"],
            heads=tuple(facts["heads"]),
            files=tuple(InputFile(**file) for file in facts["files"]),
            schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(facts["schema"]["arrow"]))),
            engine=facts["engine"],
        )
    except (KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def load(store: Store) -> Manifest | None:
    """Read the manifest of a folder; None where there is none.

    Raises:
        OutputError: there is one, and it can't be read.
    """
    try:
        return from_json(store.read(NAME))
    except FileNotFoundError:
        return None
    except ValueError as error:
        what = " ".join(str(error).split())
        place = store.place(NAME)
        raise OutputError(
            f"{place}: not a readable manifest ({what}); restore it, or start anew with --overwrite"
        ) from error


def save(store: Store, manifest: Manifest) -> None:
    """Commit the manifest; a reader sees the old one or the new one."""
    store.write(NAME, to_json(manifest).encode())


def compare(manifest: Manifest, asked: Mapping[str, Any], heads: Sequence[Head] | None = None) -> None:
    """Refuse what would not repeat the manifest's run.

    Args:
        manifest: the folder's manifest; its values hold for all that was not asked.
        asked: options that the caller gave, named as in ``settings`` or ``engine``; None is one not given.
        heads: the heads asked for, as in the manifest; None when none were given. Their order is free.

    Raises:
        SettingsError: an option or head differs; the message names it and both values.
    """
    for key, value in asked.items():
        made_with = manifest.settings[key] if key in manifest.settings else manifest.engine.get(key)
        if value is not None and _plain(value) != _plain(made_with):
            raise _differs(key.replace("_", "-"), made_with, value)
    if heads is not None:
        _compare_heads(_by_name(manifest.heads), _by_name(heads))


def _by_name(heads: Iterable[Head]) -> dict[str, Head]:
    return {head["name"]: head for head in heads}


def _compare_heads(made: Mapping[str, Head], asked: Mapping[str, Head]) -> None:
    if set(made) != set(asked):
        raise _differs("heads", sorted(made), sorted(asked))
    for name, head in asked.items():
        if head["fingerprint"] == made[name]["fingerprint"]:
            continue
        if head["task"] != made[name]["task"]:
            raise _differs(f"head {name}: task", made[name]["task"], head["task"])
        before, now = made[name]["options"], head["options"]
        for key in sorted({*before, *now}):
            if _plain(before.get(key)) != _plain(now.get(key)):
                raise _differs(f"head {name}: {key.replace('_', '-')}", before.get(key), now.get(key))
        raise _differs(f"head {name}: fingerprint", _of_model(made[name]), _of_model(head))


def _of_model(head: Mapping[str, Any]) -> str:
    return f"{head['fingerprint'][:12]} (model {head['model']})"


def _differs(what: str, made_with: object, asked: object) -> SettingsError:
    before, now = _spoken(made_with), _spoken(asked)
    return SettingsError(f"{what}: this output was made with {before}, not {now}; use the same value or --overwrite")


def _spoken(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _plain(value: object) -> Any:
    """The value as JSON gives it back: a tuple equals a list."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True, kw_only=True)
class FilesDiff:
    """What became of the input since the manifest was written.

    Attributes:
        files: all files by number: the known (changed ones as they are now, vanished ones as they were), the new.
        appended: files seen for the first time.
        changed: files whose size or version differs, as they are now; their old parts are to be deleted.
        vanished: files that are no longer listed; they keep their numbers and their parts.
        dropped: files that are no longer listed, where they are to be forgotten: they are not among ``files``.
    """

    files: tuple[InputFile, ...]
    appended: tuple[InputFile, ...]
    changed: tuple[InputFile, ...]
    vanished: tuple[InputFile, ...] = ()
    dropped: tuple[InputFile, ...] = ()


def merge_files(known: Iterable[InputFile], listed: Iterable[InputFile], *, sync: bool = False) -> FilesDiff:
    """Join a new listing to the manifest's files; a number, once given, stays with its path.

    Args:
        known: the manifest's files; none at the start of a run.
        listed: the files as they are now; their numbers are not looked at.
        sync: forget files that are no longer listed.

    Raises:
        InputError: more files than a part's name can number.
    """
    before = {file.path: file for file in known}
    now = {file.path: file for file in listed}
    free = max((file.number for file in before.values()), default=-1) + 1
    new_paths = sorted(now.keys() - before.keys())
    if free + len(new_paths) > MAX_FILES:
        count = free + len(new_paths)
        raise InputError(f"input: {count} files exceed {MAX_FILES}; join small files, or use several outputs")
    appended = tuple(replace(now[path], number=number) for number, path in enumerate(new_paths, free))
    kept = {path: replace(now.get(path, file), number=file.number) for path, file in before.items()}
    changed = (kept[path] for path in before if kept[path] != before[path])
    gone = _by_number(file for path, file in before.items() if path not in now)
    stay = [file for path, file in kept.items() if path in now or not sync]
    return FilesDiff(
        files=_by_number([*stay, *appended]),
        appended=appended,
        changed=_by_number(changed),
        vanished=() if sync else gone,
        dropped=gone if sync else (),
    )


def _by_number(files: Iterable[InputFile]) -> tuple[InputFile, ...]:
    return tuple(sorted(files, key=lambda file: file.number))


def schema_lines(schema: pa.Schema) -> list[str]:
    """One line a field: name, type, metadata; for people, and for the digest."""
    lines = []
    for field in schema:
        metadata = sorted((key.decode(), value.decode()) for key, value in (field.metadata or {}).items())
        kind = f"{field.type}" if field.nullable else f"{field.type} not null"
        lines.append(f"{field.name}: {kind}" + "".join(f" {key}={value}" for key, value in metadata))
    return lines
