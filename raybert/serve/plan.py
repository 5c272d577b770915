"""A service's configuration, read strictly: what Ray Serve would ignore or tell only later is refused before a start.

`serve deploy` answers 0 to arguments that the builder refuses, passes over keys that it does not know, and leaves the
version before running (ray#62016, ray#62538). Here each key is checked against Ray Serve's own schema, the arguments
by the builder's, deployments by the graph that they name, and each head's checkpoint is opened.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from raybert.config import nearest
from raybert.errors import SettingsError
from raybert.serve.deployments import open_tasks
from raybert.serve.settings import ServiceArgs
from raybert.tasks.program import group_heads

BUILDER = "raybert.serve.app:build"
HOST, PORT = "127.0.0.1", 8000


def read(path: Path) -> dict[str, Any]:
    """A configuration file, unchecked.

    Raises:
        SettingsError: it can't be read, or is no YAML mapping.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: can't be read ({error})") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: a mapping is meant, with applications; got {type(found).__name__}")
    return found


def of_heads(
    heads: Sequence[Mapping[str, Any]], *, dtype: str, device: str, replicas: tuple[int, int], threads: int | None
) -> dict[str, Any]:
    """The configuration of one collocated application with these heads."""
    least, most = replicas
    args: dict[str, Any] = {"heads": list(heads), "dtype": dtype, "device": device, "threads": threads}
    scaling: dict[str, Any] = {"num_replicas": least}
    if least != most:
        scaling = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 16}}
    application = {
        "name": "raybert",
        "route_prefix": "/",
        "import_path": BUILDER,
        "args": args,
        "deployments": [{"name": "ingress", **scaling}],
    }
    return {"applications": [application]}


def checked(config: Mapping[str, Any], place: str) -> ServeDeploySchema:
    """The configuration as Ray Serve takes it, if it means something to the last key.

    Args:
        config: as `read` gives it.
        place: where it stands, for errors.

    Raises:
        SettingsError: a key or value has no meaning.
        CheckpointError: a head's model can't be found or honoured.
    """
    _refuse_strays(ServeDeploySchema, config, f"{place}: ")
    try:
        schema = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        raise SettingsError(f"{place}: {first_complaint(error)}") from None
    if not schema.applications:
        raise SettingsError(f"{place}: applications: there is none; give one or more")
    for at, application in enumerate(schema.applications):
        if application.import_path == BUILDER:
            _check_own(application.args, [each.name for each in application.deployments], f"{place}: applications.{at}")
    return schema


def arguments(schema: ServeDeploySchema) -> list[ServiceArgs]:
    """Of each application that is ours."""
    return [
        ServiceArgs.model_validate(application.args)
        for application in schema.applications
        if application.import_path == BUILDER
    ]


def _check_own(args: Mapping[str, Any], deployments: Sequence[str], place: str) -> None:
    _refuse_strays(ServiceArgs, args, f"{place}.args.")
    try:
        parsed = ServiceArgs.model_validate(args)
    except ValidationError as error:
        raise SettingsError(f"{place}.args: {first_complaint(error)}") from None
    tasks = open_tasks(parsed)
    names = ["ingress", "metrics"]
    if parsed.form == "graph":
        names += [f"encoder-{heads[0]}" for heads in group_heads(tasks).trunks]
    for deployment in deployments:
        if deployment not in names:
            hint = nearest(deployment, names) or ""
            raise SettingsError(
                f"{place}.deployments: {deployment!r}: this graph has {', '.join(names)}{hint}; name one of them"
            )


def first_complaint(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one line."""
    first = error.errors()[0]
    where = ".".join(str(word) for word in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said


def _refuse_strays(model: type[BaseModel], value: Any, place: str) -> None:
    for stray, known in _strays(model, value, ""):
        hint = nearest(stray.rpartition(".")[2], known) or f"; there is {', '.join(sorted(known))}"
        raise SettingsError(f"{place}{stray}: unknown{hint}")


def _strays(model: type[BaseModel], value: Any, place: str) -> Iterator[tuple[str, set[str]]]:
    """Keys that a model does not have, at any depth, with those that it has."""
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        if key not in model.model_fields:
            yield f"{place}{key}", set(model.model_fields)
            continue
        for below in _models(model.model_fields[key].annotation):
            items = list(enumerate(inner)) if isinstance(inner, list | tuple) else [(None, inner)]
            for at, item in items:
                yield from _strays(below, item, f"{place}{key}." + ("" if at is None else f"{at}."))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The one model that a field holds, if it holds one and nothing beside it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [model for inner in typing.get_args(annotation) for model in _models(inner)]
    return found if len(found) == 1 else []
