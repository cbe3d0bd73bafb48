"""A network's training form: the same stages and exits, each run as one plan where that is possible.

K exits, B images, C outputs of an exit.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Size, Tensor, nn

from offramp.errors import UsageError
from offramp.fast.kernels import Compiled, Kernels, Library
from offramp.fast.plan import Plan
from offramp.fast.tracing import UntraceableError
from offramp.network import EarlyExitNet

FormName = Literal["auto", "plain", "merged", "kernels", "compiled"]


def training_form(network: EarlyExitNet, name: FormName, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What to call in the network's place while training it: images to logits `[K, B, C]`.

    Args:
        network: Its weights get the gradients.
        name: `plain`: the network, module by module. `merged`: see `Merged`. `kernels`: the same with kernels compiled
            by a C++ compiler. `compiled`: by `torch.compile`. `auto`: merged on a CPU where each module is torch's or
            offramp's own, else plain: what others decide in Python, call by call, a traced module no longer decides.
        device: Where it is trained.

    Raises:
        UsageError: A form that is not for this network, device or machine.
    """
    if name == "auto":
        name = "merged" if device.type == "cpu" and _can_merge(network) and _is_of_known_modules(network) else "plain"
    if name in ("merged", "kernels") and not _can_merge(network):
        raise UsageError(
            f"A {type(network).__name__} is not run stage by stage and exit by exit in the usual way, so form {name} "
            "is not for it; use plain."
        )
    if name == "kernels":
        if device.type != "cpu":
            raise UsageError(f"The kernels are for a CPU, not for {device.type}; use form merged, compiled or plain.")
        return Merged(network, Compiled())
    if name == "merged":
        return Merged(network)
    if name == "compiled":
        return torch.compile(network, dynamic=False)
    return network


def _can_merge(network: EarlyExitNet) -> bool:
    kind = type(network)
    return kind.forward is EarlyExitNet.forward and kind.exit_logits is EarlyExitNet.exit_logits


def _is_of_known_modules(network: EarlyExitNet) -> bool:
    homes = (type(module).__module__.split(".") for module in network.modules() if module is not network)
    return all(home[:2] in (["torch", "nn"], ["offramp", "backbones"]) for home in homes)


class Merged:
    """Images to logits `[K, B, C]`, as the network gives them in training, with gradients for its own parameters.

    Called in evaluation mode, or where a part cannot be run in this form, the network's own modules are run. Weights
    stay where they are and as they are; parameters and modules must not be replaced afterwards.

    Args:
        network: Any network made of stages and exits.
        kernels: For batch norm and ReLU; torch's own by default.
    """

    def __init__(self, network: EarlyExitNet, kernels: Kernels | None = None) -> None:
        self.network = network
        self.kernels = kernels or Library()
        self.stages = [_Part(stage, self.kernels) for stage in network.stages]
        self.exits = [_Part(head, self.kernels) for head in network.exits]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[K, B, C]` for images `[B, channels, height, width]`."""
        if not self.network.training:
            logits_KBC: Tensor = self.network(images)
            return logits_KBC
        return torch.stack(self.network.exit_logits(images, self.stages, self.exits))

    @property
    def why_not(self) -> dict[str, str]:
        """Parts that have been run as they are, and why."""
        named = {f"{kind}.{i}": part for kind in ("stages", "exits") for i, part in enumerate(getattr(self, kind))}
        return {name: part.why_not for name, part in named.items() if part.why_not}


class _Part:
    """A stage or an exit: a plan for each shape of its maps."""

    def __init__(self, module: nn.Module, kernels: Kernels) -> None:
        self.module, self.kernels = module, kernels
        self.modules = list(module.modules())
        self.why_not: str | None = None
        self._plans: dict[tuple[Size, ...], Plan | None] = {}

    def __call__(self, *maps: Tensor) -> Any:
        plan = self._plan(maps) if self._is_usual() else None
        if plan is None:
            return self.module(*maps)
        results = plan(maps, self.kernels)
        return results if len(results) > 1 or plan.gives_tuple else results[0]

    def _is_usual(self) -> bool:
        """Whether it is in training as a whole, and nobody listens to its modules."""
        return all(m.training and not _has_hooks(m) for m in self.modules)

    def _plan(self, maps: Sequence[Tensor]) -> Plan | None:
        shapes = tuple(x.shape[1:] for x in maps)
        if shapes not in self._plans:
            try:
                self._plans[shapes] = Plan(self.module, maps)
            except UntraceableError as error:
                self.why_not, self._plans[shapes] = str(error), None
        return self._plans[shapes]


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
