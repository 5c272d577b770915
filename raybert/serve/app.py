"""The Ray Serve application: `build` is what a configuration's ``import_path: raybert.serve.app:build`` means."""

# No `from __future__ import annotations`: Ray Serve checks a configuration's `args` by the class in the signature.
from typing import Any

from ray import serve

from raybert.serve.deployments import Encoder, Ingress, open_tasks
from raybert.serve.metrics import Ledger
from raybert.serve.settings import ServiceArgs
from raybert.tasks.program import group_heads

# A replica's own queue is the batcher's: Ray must not hold back what it could fill a batch with.
_ONGOING = 10_000
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 35.0}  # above the time that a probe may take


def build(args: ServiceArgs) -> serve.Application:
    """The graph that these arguments mean.

    Raises:
        CheckpointError: a model can't be found or honoured.
        SettingsError: an option is unknown or out of range.
    """
    drain = {"graceful_shutdown_wait_loop_s": 0.5, "graceful_shutdown_timeout_s": args.limits.deadline_s + 5}
    ledger = _deployment(Ledger, "metrics", num_replicas=1, ray_actor_options={"num_cpus": 0}).bind()
    ingress = _deployment(serve.ingress()(Ingress), "ingress", **_HEALTH, **drain)
    if args.form == "collocated":
        return ingress.bind(args, {}, ledger)
    encoders = {
        names[0]: _deployment(Encoder, f"encoder-{names[0]}", **_HEALTH, **drain).bind(args, names, ledger)
        for names in group_heads(open_tasks(args)).trunks
    }
    return ingress.bind(args, encoders, ledger)


def _deployment(kind: Any, name: str, **options: Any) -> serve.Deployment:
    quiet = {"enable_access_log": False}  # the door writes its own, which knows tokens and refusals
    made: serve.Deployment = serve.deployment(
        name=name, max_ongoing_requests=_ONGOING, logging_config=quiet, **options
    )(kind)
    return made
