"""``raybert serve``: a service brought up and kept up, or only checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybert.config import HeadSpec
from raybert.errors import SettingsError
from raybert.serve import launch, plan

_DRAINING = "draining: what is under way is answered, then the service ends\n"


def configuration(
    config: str | None,
    spec: HeadSpec,
    *,
    name: str | None,
    dtype: str | None,
    device: str | None,
    replicas: tuple[int, int] | None,
    host: str | None,
    port: int | None,
) -> tuple[dict[str, Any], str]:
    """What to serve, and where that stands.

    Args:
        config: a file; None serves one head.
        spec: that head.
        name: under which clients ask for it.
        dtype: of it; device, replicas likewise.
        device: auto, cpu or cuda.
        replicas: least and most.
        host: to listen on; None: as the file says, else this machine alone.
        port: likewise; None: as the file says, else 8000.

    Raises:
        SettingsError: a file beside options that it has itself.
    """
    if config is None:
        least, most = replicas or (1, 1)
        threads = None if most == 1 else max(1, (os.cpu_count() or 1) // most)
        head = {"task": spec.task, "model": spec.model, "revision": spec.revision, "options": dict(spec.options)}
        found = plan.of_heads(
            [head | ({} if name is None else {"name": name})],
            dtype=dtype or "auto",
            device=device or "auto",
            replicas=(least, most),
            threads=threads,
        )
        place = "options"
    else:
        for option, value in (("dtype", dtype), ("device", device), ("replicas", replicas), ("name", name)):
            if value is not None:
                raise SettingsError(f"--{option}: {config} says that itself; change it there")
        found, place = plan.read(Path(config)), config
    http = found.setdefault("http_options", {})
    if isinstance(http, dict):
        http["host"] = host or http.get("host") or plan.HOST
        http["port"] = port or http.get("port") or plan.PORT
    return found, place


def serve_or_check(
    config: Mapping[str, Any], place: str, *, check: bool, open_to_all: bool, haproxy: bool | None, address: str | None
) -> None:
    """Check a configuration; and unless that is all, serve until SIGINT or SIGTERM.

    Raises:
        RaybertError: it can't be served; of which kind the error says.
    """
    where = address or os.environ.get("RAY_ADDRESS")
    if where is not None and haproxy is not None:
        value = int(haproxy)
        raise SettingsError(f"--haproxy: Ray at {where!r} runs; start its nodes with RAY_SERVE_ENABLE_HA_PROXY={value}")
    schema = plan.checked(config, place)
    launch.check_keys(schema, dict(os.environ), open_to_all=open_to_all)
    heads = [head.served_name for args in plan.arguments(schema) for head in args.heads]
    if check:
        sys.stdout.write(f"ok: {place}: {', '.join(heads)}\n")
        return
    if where is None:
        launch.choose_proxy(os.environ, haproxy)
    with launch.until_told() as told, launch.running(schema, address=address, told=told, say=_say):
        http = schema.http_options
        sys.stdout.write(f"ready: http://{http.host}:{http.port} serves {', '.join(heads)}\n")
        sys.stdout.flush()
        told.wait()
        sys.stderr.write(_DRAINING)


def _say(line: str) -> None:
    sys.stderr.write(f"raybert: {line}\n")
