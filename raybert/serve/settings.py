"""What a service is made of: the arguments of the Ray Serve application, checked to the last key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raybert.config import DEVICES, DTYPES, HeadSpec, one_of, task_name
from raybert.errors import SettingsError
from raybert.serve.limits import Limits

_NAME = re.compile(r"[\w.:@-]{1,128}")  # it stands in paths, and in keys of readings


class HeadArgs(BaseModel):
    """One served head.

    Attributes:
        task: its task, or the Hugging Face pipeline's name of it.
        model: a folder, a hub id, or ``demo``.
        name: under which clients ask for it; the last part of the model's path or id where none is given.
        revision: branch, tag or commit of a hub id.
        options: the task's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    model: str
    name: str = ""
    revision: str | None = None
    options: Mapping[str, Any] = {}

    @property
    def served_name(self) -> str:
        """What clients call it."""
        return self.name or PurePosixPath(self.model.rstrip("/")).name

    def spec(self) -> HeadSpec:
        """The head as raybert's other parts take it.

        Raises:
            SettingsError: there is no such task.
        """
        task = task_name(self.task)
        name = task.replace("-", "_")
        return HeadSpec(name=name, task=task, model=self.model, revision=self.revision, options=self.options)


class ServiceArgs(BaseModel):
    """All heads of one application, and how they run.

    Attributes:
        heads: one or more.
        form: collocated: each replica of the ingress computes beside itself, the fastest on one machine. graph: the
            ingress tokenizes and asks a deployment for each encoder, which scales by itself.
        device: auto, cpu or cuda.
        dtype: auto, float32, bfloat16 or float16.
        budget: tokens of one forward; None takes 512 on a CPU (320 in float32), and 65536 on a GPU.
        threads: batches computed at once on a CPU; None takes a batch a processor, and one on a GPU.
        limits: of a request and of all of them.
        access_log: whether each request is logged, as a line of JSON in a file of the replica's; never a body.
        api_key_file: a key a line; `RAYBERT_API_KEYS` in the environment does the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: tuple[HeadArgs, ...] = Field(min_length=1)
    form: Literal["collocated", "graph"] = "collocated"
    device: str = "auto"
    dtype: str = "auto"
    budget: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    limits: Limits = Limits()
    access_log: bool = True
    api_key_file: str | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> ServiceArgs:
        try:
            one_of("device", self.device, DEVICES)
            one_of("dtype", self.dtype, DTYPES)
            names = [head.served_name for head in self.heads]
            for head in self.heads:
                head.spec()
        except SettingsError as error:
            raise ValueError(str(error)) from None
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"head {name!r}: clients can't ask for it; name it with letters, digits, . _ : @ -")
            if names.count(name) > 1:
                raise ValueError(f"head {name!r}: named twice; give one of them another name")
        return self
