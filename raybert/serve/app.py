"""The Ray Serve application: `build` is what a configuration's ``import_path: raybert.serve.app:build`` means."""

# No `from __future__ import annotations`: Ray Serve checks a configuration's `args` by the class in the signature.
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig

from raybert.serve.deployments import Encoder, Ingress, open_tasks
from raybert.serve.metrics import Ledger
from raybert.serve.settings import ServiceArgs
from raybert.tasks.program import group_heads

# A replica's own queue is the batcher's: Ray must not hold back what it could fill a batch with. Beyond what its gate
# could ever let in, Ray's proxy refuses by itself, which costs less than to pass on what is refused then: at three
# times its capacity on two cores a service behind Ray's own proxy did nothing else any more.
_ONGOING = 10_000
_SHORT_REQUEST = 16  # tokens
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 35.0}  # above the time that a probe may take


def build(args: ServiceArgs) -> serve.Application:
    """The graph that these arguments mean.

    Raises:
        CheckpointError: a model can't be found or honoured.
        SettingsError: an option is unknown or out of range.
    """
    drain = {"graceful_shutdown_wait_loop_s": 0.5, "graceful_shutdown_timeout_s": args.limits.deadline_s + 5}
    most = min(_ONGOING, max(64, args.limits.max_waiting_tokens // _SHORT_REQUEST))
    refuses = {
        "max_ongoing_requests": most,
        "max_queued_requests": most,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
    }
    ledger = _deployment(Ledger, "metrics", num_replicas=1, ray_actor_options={"num_cpus": 0}).bind()
    ingress = _deployment(serve.ingress()(Ingress), "ingress", **_HEALTH, **drain, **refuses)
    if args.form == "collocated":
        return ingress.bind(args, {}, ledger)
    encoders = {
        names[0]: _deployment(Encoder, f"encoder-{names[0]}", **_HEALTH, **drain).bind(args, names, ledger)
        for names in group_heads(open_tasks(args)).trunks
    }
    return ingress.bind(args, encoders, ledger)


def _deployment(kind: Any, name: str, **options: Any) -> serve.Deployment:
    # The door writes an access log of its own, which knows tokens and refusals. Ray Serve would make a record of each
    # request all the same, unless only warnings are wanted of it.
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    own = {"max_ongoing_requests": _ONGOING, "logging_config": quiet, **options}
    made: serve.Deployment = serve.deployment(name=name, **own)(kind)
    return made
