"""The same application on Ray Serve: replicas on one machine or many, more of them while images wait. Ray is an extra.

Each replica is a `Service` of its own, with its scheduler, ladder and guard. Ray's proxy takes the place of our server:
the limits that need the connection (slow clients, connections at once) are Ray's, those of the application stay.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from offramp.checks import check_counts
from offramp.errors import OfframpError, UsageError

if TYPE_CHECKING:
    from offramp.serve.service import Service

NAME = "offramp"
GRACE = 30.0  # seconds in which a replica that is to end answers what it has accepted
_HEALTH = 2.0  # seconds between two questions whether a replica is well
_RELOAD = "/v1/reload"  # would open the run anew in one replica of several

_here: "Service | None" = None  # of the replica that this process is


class Replica:
    """One process that serves a run; what Ray makes, asks and ends."""

    def __init__(self, run: str, threads: int, settings: dict[str, Any]) -> None:
        import torch

        from offramp.serve.service import Service

        torch.set_num_threads(threads)
        global _here
        self.service = _here = Service(run, **settings)

    async def check_health(self) -> None:
        """Raises where the scheduler answers nothing any more: Ray then puts another replica in this one's place."""
        if self.service.app.is_draining:
            raise OfframpError("The scheduler has ended.")

    def __del__(self) -> None:
        """Called by Ray once nothing is under way any more, or its time is up."""
        if _here is not None:
            _here.close()


class _Here:
    """ASGI: hands what the proxy asks to this process's replica. Not a function, which Ray would take for a builder."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert _here is not None
        if scope["type"] == "http" and scope["path"] == _RELOAD:
            scope = {**scope, "path": "/none"}
        await _here.app(scope, receive, send)


def application(
    run: str | Path,
    *,
    replicas: int = 1,
    most: int | None = None,
    waiting: int = 32,
    at_once: int = 256,
    threads: int = 1,
    gpus: float = 0,
    **settings: Any,
) -> Any:
    """What `ray.serve.run` runs: `serve.run(application("/runs/photos", replicas=2, most=8))`.

    Every machine of the cluster has to see the run's folder under this path, and the same offramp. A new state of the
    run is taken up by `serve.run` once more, which replaces replicas one after another.

    Args:
        run: Folder of a finished run.
        replicas: The fewest.
        most: So many at most while more than `waiting` requests are under way in each; default: as many as the fewest.
        waiting: Requests under way in a replica, in its queue or computed, that Ray keeps to.
        at_once: The most that a replica is handed; further ones wait in Ray's proxy.
        threads: CPUs of a replica.
        gpus: Of a replica; a share lets several have one.
        settings: Arguments of `Service`, such as `policy`, `audit`, `within_ms`, `gate`.

    Raises:
        UsageError: Ray Serve is not installed; numbers that cannot be.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise UsageError("Serving on Ray needs Ray Serve: pip install 'offramp[serve,ray-serve]'.") from error
    most = replicas if most is None else most
    check_counts(replicas=replicas, most=most, waiting=waiting, at_once=at_once, threads=threads)
    if most < replicas or at_once < waiting:
        raise UsageError(
            f"From {replicas} to {most} replicas, each with {waiting} of at most {at_once} requests: the second number "
            "is not below the first."
        )
    wrap: Callable[..., Any] = serve.deployment(
        name=NAME,
        autoscaling_config={"min_replicas": replicas, "max_replicas": most, "target_ongoing_requests": waiting},
        max_ongoing_requests=at_once,
        graceful_shutdown_timeout_s=GRACE,
        health_check_period_s=_HEALTH,
        ray_actor_options={"num_cpus": threads, "num_gpus": gpus},
    )
    return wrap(serve.ingress(_Here())(Replica)).bind(os.path.abspath(run), threads, settings)
