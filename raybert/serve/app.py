"""The Ray Serve application: `build` is what a configuration's ``import_path: raybert.serve.app:build`` means."""

# No `from __future__ import annotations`: Ray Serve checks a configuration's `args` by the class in the signature.
from typing import Any

from ray import serve

from raybert.serve.deployments import Encoder, Ingress, open_tasks
from raybert.serve.settings import ServiceArgs
from raybert.tasks.program import group_heads

# A replica's own queue is the batcher's: Ray must not hold back what it could fill a batch with.
_ONGOING = 10_000


def build(args: ServiceArgs) -> serve.Application:
    """The graph that these arguments mean.

    Raises:
        CheckpointError: a model can't be found or honoured.
        SettingsError: an option is unknown or out of range.
    """
    ingress = _deployment(serve.ingress()(Ingress), "ingress")
    if args.form == "collocated":
        return ingress.bind(args, {})
    encoders = {
        names[0]: _deployment(Encoder, f"encoder-{names[0]}").bind(args, names)
        for names in group_heads(open_tasks(args)).trunks
    }
    return ingress.bind(args, encoders)


def _deployment(kind: Any, name: str) -> serve.Deployment:
    made: serve.Deployment = serve.deployment(name=name, max_ongoing_requests=_ONGOING)(kind)
    return made
