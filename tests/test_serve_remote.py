"""An encoder in another process, as the ingress sees it: asked once more where a replica died, and never twice more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from raybert.serve.deployments import RemoteEncoder
from raybert.serve.faults import Fault, ServiceError
from raybert.serve.health import Unhealthy
from raybert.text.encoding import Sequences

WINDOWS = Sequences(ids=np.array([1, 2, 3], np.int32), lengths=np.array([3], np.int32))


class Handle:
    """A deployment's handle whose calls end as told, one after the other."""

    def __init__(self, *ends: object) -> None:
        self.ends, self.calls = list(ends), 0
        self.compute = self.check = self

    def remote(self, *_: Any) -> Awaitable[object]:
        async def answer() -> object:
            self.calls += 1
            end = self.ends.pop(0)
            if isinstance(end, Exception):
                raise end
            return end

        return answer()


def asked(handle: Handle, call: Callable[[RemoteEncoder], Awaitable[Any]]) -> Any:
    async def ask() -> Any:
        return await call(RemoteEncoder(handle))  # type: ignore[arg-type]

    return asyncio.run(ask())


def compute(encoder: RemoteEncoder) -> Awaitable[Any]:
    return encoder.compute(WINDOWS, {"vec": None})


def test_a_replica_that_died_is_not_the_end() -> None:
    handle = Handle(RayActorError(), "answer")
    assert asked(handle, compute) == "answer"
    assert handle.calls == 2


def test_none_that_lives_is() -> None:
    handle = Handle(RayActorError(), RayActorError(), "never asked for")
    with pytest.raises(ServiceError, match="no replica of the model is ready") as caught:
        asked(handle, compute)
    assert (caught.value.fault, caught.value.retry_after_s, handle.calls) == (Fault.NOT_READY, 5, 2)


def test_a_model_that_fails_is_not_asked_again() -> None:
    handle = Handle(RuntimeError("no device"), "never asked for")
    with pytest.raises(RuntimeError, match="no device"):
        asked(handle, compute)
    assert handle.calls == 1


def test_health() -> None:
    assert asked(Handle(None), RemoteEncoder.check) is None
    with pytest.raises(Unhealthy, match="a forward hangs"):
        asked(Handle(Unhealthy("a forward hangs since 30 s")), RemoteEncoder.check)
