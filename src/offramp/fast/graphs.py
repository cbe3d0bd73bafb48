"""A network's forward and backward pass, each launched as one CUDA graph instead of kernel by kernel.

K exits, B images, C outputs of an exit. Not measured on a GPU; `make bench-gpu` measures it where there is one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from offramp.errors import UsageError
from offramp.fast.tracing import anybody_hears
from offramp.network import EarlyExitNet

Capture = Callable[..., Any]


class Graphs:
    """Images to logits `[K, B, C]`, as the network gives them in training, with gradients for its own parameters.

    A kind of batch (its size, precision and layout, the network's link, which parts train, where the weights lie) is
    captured when it comes a second time in a row; others, such as the last batch of an epoch, run the network as it is.
    So do evaluation, passes without gradients, and networks with hooks, which a graph would not call. What Python
    decides within a pass is decided once. The network keeps the modules that it has at the first call.

    Every forward pass overwrites what the one before kept for its backward pass: that goes once through the last
    forward pass, all exits together, or is refused. What `torch.autograd.grad` gives lasts until the next call.

    Args:
        network: Any network, on a CUDA device when it is called.
        capture: What makes graphs, called as `torch.cuda.make_graphed_callables` is.
    """

    def __init__(self, network: EarlyExitNet, capture: Capture = torch.cuda.make_graphed_callables) -> None:
        self.network = network
        self._capture = capture
        self._modules: list[nn.Module] = []
        self._places: list[tuple[int, bool]] = []
        self._graphs: dict[Any, Callable[[Tensor], Tensor]] = {}
        self._last: Any = None
        self._now = 0  # which pass the graphs' memory is of

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[K, B, C]` for images `[B, channels, height, width]`."""
        network = self.network
        self._modules = self._modules or list(network.modules())  # finding them takes a millisecond
        if anybody_hears(self._modules) or images.requires_grad or not (network.training and torch.is_grad_enabled()):
            return _logits(network, images)
        kind, before = self._kind(images), self._last
        self._last = kind
        if kind not in self._graphs:
            if kind != before:
                return _logits(network, images)
            self._graphs[kind] = self._captured(images)
        return self._replayed(self._graphs[kind], images)

    def _kind(self, images: Tensor) -> Any:
        places = [(tensor.data_ptr(), tensor.requires_grad) for tensor in self._tensors()]
        if places != self._places:  # graphs read and write memory, whatever has become of the tensors
            self._graphs.clear()
            self._last, self._places = None, places
        training = tuple(module.training for module in self._modules)
        return images.shape, images.dtype, images.stride(), _autocast_dtype(images), self.network.link, training

    def _tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers."""
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                yield from (tensor for tensor in tensors.values() if tensor is not None)

    def _captured(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        # The same memory: the node that collects a leaf's gradient keeps the stream on which it was made, and a graph,
        # made on a stream of its own, keeps the nodes.
        twins = [weight.detach().requires_grad_() for weight in weights.values()]

        def run(images: Tensor, *twins: Tensor) -> Tensor:
            logits_KBC: Tensor = functional_call(self.network, dict(zip(weights, twins, strict=True)), (images,))
            return logits_KBC

        dtype = _autocast_dtype(images)
        # A weight that an outer autocast has cast already would be read by the graph long after it is freed.
        autocast = torch.autocast(images.device.type, dtype, enabled=dtype is not None, cache_enabled=False)
        with self._undisturbed(images.device), autocast:
            try:
                # The graph keeps the images that it is captured with, and writes all later ones into them.
                graph = self._capture(run, (images.clone(), *twins), allow_unused_input=True)
            except RuntimeError as error:
                first = str(error).partition("\n")[0]
                raise UsageError(
                    f"This network cannot be captured as a CUDA graph: {first}. Use form plain or compiled."
                ) from error
        return lambda images: graph(images, *weights.values())

    @contextmanager
    def _undisturbed(self, device: torch.device) -> Iterator[None]:
        """Capturing runs the network a few times: what batch norm counts, and random numbers, stay as they were."""
        buffers = list(self.network.buffers())
        kept = [buffer.clone() for buffer in buffers]
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            with torch.no_grad():
                for buffer, before in zip(buffers, kept, strict=True):
                    buffer.copy_(before)

    def _replayed(self, graph: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        # Autograd takes a graph's gradients as they lie: those still there from the pass before would be overwritten
        # (pytorch/pytorch#181723).
        for module in self._modules:
            for parameter in module._parameters.values():
                if parameter is not None and parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()
        self._now += 1
        this = self._now

        def check(_: Tensor) -> None:
            if this != self._now:
                raise UsageError(
                    "With form graphs a backward pass goes once through the last forward pass; use form plain for a "
                    "rule that needs more."
                )
            self._now += 1

        logits_KBC = graph(images)
        if logits_KBC.requires_grad:
            logits_KBC.register_hook(check)  # type: ignore[no-untyped-call]
        return logits_KBC.clone()  # the next pass overwrites the graph's own


def _logits(network: EarlyExitNet, images: Tensor) -> Tensor:
    logits_KBC: Tensor = network(images)
    return logits_KBC


def _autocast_dtype(images: Tensor) -> torch.dtype | None:
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
