"""A run opened to be served: the application, the scheduler beneath it, and how both get the run anew."""

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

from offramp.choices import Backend
from offramp.data import Inputs
from offramp.errors import OfframpError
from offramp.files import RunFolder
from offramp.serve.app import App
from offramp.serve.card import Card
from offramp.serve.gate import Gate
from offramp.serve.guard import guards
from offramp.serve.limits import Limits
from offramp.serve.metrics import Metrics
from offramp.serve.model import Model, open_model
from offramp.serve.scheduler import Scheduler


class Service:
    """See above. `app` is an ASGI application that any server can run; `close` ends its threads.

    Args:
        policy: A file; by default the run's ladder, or its policy.
        backend: None: the best there is.
        max_wait_ms: How long an image waits for others to run with, in all.
        max_waiting: Images that may be under way.
        within_ms: Images are refused where those before them are expected to take longer; None: never.
        audit: The share of the images that left early that run on to the end, for the guard.
        level: Probability of a false alarm of the guard, ever.
        safe_on_alarm: Whether no image leaves early any more after an alarm.
        decoders: Threads that decode.
        allow_code: See `offramp.trust`.

    Raises:
        UsageError: What `open_model` refuses.
        OfframpError: Damaged files.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        policy: str | Path | None = None,
        backend: Backend | None = None,
        device: str = "auto",
        max_wait_ms: float = 2,
        max_waiting: int = 256,
        within_ms: float | None = 30,
        audit: float = 0.01,
        level: float = 0.01,
        safe_on_alarm: bool = False,
        limits: Limits | None = None,
        gate: Gate | None = None,
        decoders: int = 2,
        allow_code: tuple[str, ...] = (),
    ) -> None:
        self._open: Callable[[], Model] = lambda: open_model(
            run,
            policy=policy,
            backend=backend or "auto",
            device=device,
            guards=lambda ladder: guards(ladder, level),
            allow_code=allow_code,
        )
        self._folder, self._lock = RunFolder(run, allow_code), asyncio.Lock()
        model = self._open()
        self.notes = model.notes
        card = self._card(model)
        self.scheduler = Scheduler(
            model,
            max_waiting=max_waiting,
            max_wait_ms=max_wait_ms,
            within_ms=within_ms,
            audit=audit,
            safe_on_alarm=safe_on_alarm,
            on_batch=lambda stage, images, seconds: metrics.batch(stage, images, seconds),
        )
        metrics = Metrics(self.scheduler.snapshot)
        self.app = App(
            self.scheduler,
            card,
            limits=limits,
            gate=gate,
            decoders=decoders,
            reload=self.reload,
            metrics=metrics,
        )
        spare_collector()

    async def reload(self) -> None:
        """Open the run and its policies anew; images that were accepted before are answered by the model before.

        Raises:
            UsageError: It cannot be served as it is now. What was served is served on.
            OfframpError: Damaged files, likewise, or it is being opened already.
        """
        if self._lock.locked():
            raise OfframpError("The run is being opened anew already.")
        async with self._lock:
            model = await asyncio.to_thread(self._open)
            self.app.add(model.served, await asyncio.to_thread(self._card, model))
            await asyncio.to_thread(self.scheduler.replace, model)
            del model
            spare_collector()

    def close(self) -> None:
        """Answer nothing more."""
        self.scheduler.drain(0)
        self.app.close()

    def _card(self, model: Model) -> Card:
        inputs = model.inputs
        assert isinstance(inputs, Inputs)  # `open_model` has found them
        return Card.of(self._folder, self._folder.read_config(), inputs, model.weights)


def spare_collector() -> None:
    """Have Python's garbage collector pass over what is there now, once what nobody holds any more is gone.

    A full collection, which comes once in some thousand requests, took 150 ms of half a million objects that libraries
    had made when they were imported (docs/LOG.md); nothing was answered meanwhile.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
