"""A network's training form: the same stages and exits, each run as one plan where that is possible.

K exits, B images, C outputs of an exit.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.fast.graphs import Graphs
from offramp.fast.kernels import Compiled, Kernels, Library
from offramp.fast.noticing import is_same, made_of
from offramp.fast.plan import Plan
from offramp.fast.tracing import UntraceableError, anybody_hears, is_heard
from offramp.fast.writes import why_as_it_is
from offramp.network import EarlyExitNet

FormName = Literal["auto", "plain", "merged", "kernels", "compiled", "graphs"]


def training_form(network: EarlyExitNet, name: FormName, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What to call in the network's place while training it: images to logits `[K, B, C]`.

    Args:
        network: Its weights get the gradients.
        name: `plain`: the network, module by module. `merged`: see `Merged`. `kernels`: the same with kernels compiled
            by a C++ compiler. `compiled`: by `torch.compile`. `graphs`: see `Graphs`; on a CUDA GPU only. `auto`:
            merged on a CPU where each module is torch's or offramp's own, else plain: what others decide in Python,
            call by call, a traced module no longer decides.
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
    if name == "graphs":
        if device.type != "cuda":
            raise UsageError(f"Form graphs is for a CUDA GPU, not for {device.type}; use merged, compiled or plain.")
        return Graphs(network)
    if name == "compiled":
        # Not mode reduce-overhead on a GPU: what its graphs give is overwritten by their next run, gradients included.
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

    Called in evaluation mode or without gradients, or where a part cannot be run in this form, the network's own
    modules are run. Weights stay where they are and as they are.

    Args:
        network: Any network made of stages and exits.
        kernels: For batch norm and ReLU; torch's own by default.
    """

    def __init__(self, network: EarlyExitNet, kernels: Kernels | None = None) -> None:
        self.network = network
        self.kernels = kernels or Library()
        self._take_parts()
        self._why_plain: dict[Any, str | None] = {}  # by kind of images

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[K, B, C]` for images `[B, channels, height, width]`."""
        network = self.network
        if network.training and torch.is_grad_enabled() and not anybody_hears([network]):
            self._notice_changes()
            kind = images.shape[1:], images.dtype
            if kind not in self._why_plain:
                self._why_plain[kind] = why_as_it_is(network, images)
            if self._why_plain[kind] is None:
                stages, exits = ([part.run for part in parts] for parts in (self.stages, self.exits))
                return torch.stack(network.exit_logits(images, stages, exits))
            whole: Tensor = network(images)
            for part in (*self.stages, *self.exits):
                part.remember()
            return whole
        logits_KBC: Tensor = network(images)
        return logits_KBC

    @property
    def why_not(self) -> dict[str, str]:
        """Parts that have been run as they are, and why; `network` where it is the whole network."""
        for why in filter(None, self._why_plain.values()):
            return {"network": why}
        named = {f"{kind}.{i}": part for kind in ("stages", "exits") for i, part in enumerate(getattr(self, kind))}
        return {name: part.why_not for name, part in named.items() if part.why_not}

    def _take_parts(self) -> None:
        self.stages = [_Part(stage, self.kernels) for stage in self.network.stages]
        self.exits = [_Part(head, self.kernels) for head in self.network.exits]

    def _notice_changes(self) -> None:
        """Ask anew whether to run the network as it is, where any of its parts is another than before."""
        if [part.module for part in (*self.stages, *self.exits)] != [*self.network.stages, *self.network.exits]:
            self._take_parts()
        if any([part.notice_changes() for part in (*self.stages, *self.exits)]):  # of all, not up to the first
            self._why_plain.clear()


class _Part:
    """A stage or an exit: a plan for each shape and type of its maps."""

    def __init__(self, module: nn.Module, kernels: Kernels) -> None:
        self.module, self.kernels = module, kernels
        self.modules: list[nn.Module] = []
        self.made_of: list[Any] = []
        self.why_not: str | None = None
        self._plans: dict[Any, Plan | None] = {}

    def __call__(self, *maps: Any) -> Any:
        """What the part gives."""
        self.notice_changes()
        return self.run(*maps)

    def run(self, *maps: Any) -> Any:
        """The same, of a part that is as it was when changes were last looked for."""
        is_usual = all(m.training and not is_heard(m) for m in self.modules)
        plan = self._plan(maps) if is_usual and all(isinstance(x, Tensor) and x.dim() for x in maps) else None
        if plan is None:
            given = self.module(*(self._as_usual(x) for x in maps))
            self.remember()
            return given
        results = plan(maps, self.kernels)
        return results if plan.gives_tuple else results[0]

    def notice_changes(self) -> bool:
        """Whether a module, a parameter or what is set on a module is another than before: it is planned again then."""
        if self.made_of and is_same(self.made_of, made_of(self.modules)):
            return False
        self.modules = list(self.module.modules())
        self.remember()
        self.why_not = None
        self._plans.clear()
        return True

    def remember(self) -> None:
        """Take what it is made of for what it was: what a module changes when it is called is nothing new."""
        self.made_of = made_of(self.modules)

    def _as_usual(self, x: Any) -> Any:
        """A map that lies as the module would find it: `view` asks for that, and random numbers follow it."""
        if not isinstance(x, Tensor) or x.dim() != 4:
            return x
        is_channels_last = any(p.dim() == 4 and not p.is_contiguous() for p in self.module.parameters())
        return x if is_channels_last else x.contiguous()

    def _plan(self, maps: Sequence[Tensor]) -> Plan | None:
        kind = maps[0].device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (autocast, *((x.shape[1:], x.dtype) for x in maps))
        if key not in self._plans:
            try:
                self._plans[key] = Plan(self.module, maps)
            except UntraceableError as error:
                self.why_not, self._plans[key] = str(error), None
        return self._plans[key]
