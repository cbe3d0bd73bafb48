"""What code says around its operations and a graph of them does not keep: for those who trace somebody's code."""

from typing import Any

import torch
from torch import fx


class ContextTracer(fx.Tracer):
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
