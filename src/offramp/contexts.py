"""torch.fx's tracer as offramp uses it: beside other threads, and without dropping what a graph does not keep."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from offramp.drawing import ONE_AT_A_TIME


class ThreadTracer(fx.Tracer):
    """Traces as torch.fx does, one trace at a time in the process, and what its own thread calls alone.

    While it traces, torch.fx stands in the place of two methods of every module, for all threads; those of others are
    handed on as if it were not there. What torch.compile has made refuses to run meanwhile, in any thread: torch asks
    one flag of the process.
    """

    _thread: int | None = None

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """As in fx."""
        with ONE_AT_A_TIME, self._tracing(threading.get_ident()):
            return super().trace(*args, **kwargs)

    @contextlib.contextmanager
    def _tracing(self, thread: int | None) -> Iterator[None]:
        before, self._thread = self._thread, thread
        try:
            yield
        finally:
            self._thread = before

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A context in which modules are called as usual."""
        return self._tracing(None)

    @property
    def is_tracing(self) -> bool:
        """Whether what is called now, in this thread, is being traced."""
        return threading.get_ident() == self._thread

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As in fx, in the thread that traces."""
        return super().call_module(m, forward, args, kwargs) if self.is_tracing else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As in fx, in the thread that traces."""
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self.is_tracing else attr_val


class ContextTracer(ThreadTracer):
    """Traces as torch.fx does, but nothing within a context that a graph does not keep.

    Outside is what is on when it is made: `torch.no_grad` in the code shows where gradients are on then.

    Raises:
        torch.fx.proxy.TraceError: While tracing: an operation within such a context, and which.
    """

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self._gradients, self._autocasts = torch.is_grad_enabled(), _autocasts()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """As in fx."""
        if torch.is_grad_enabled() != self._gradients:
            raise fx.proxy.TraceError("it switches gradients off or on")
        if _autocasts() != self._autocasts:
            raise fx.proxy.TraceError("it switches autocast on or off")
        return super().create_node(*args, **kwargs)


def _autocasts() -> int:
    """How many contexts of autocast are open, also such as switch it off."""
    found: int = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return found
