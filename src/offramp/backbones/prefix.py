"""A shorter network: the first stages of another one with a single exit, and nothing computed that it does not need.

What a smaller network is to an early exit: the same trunk up to there, without the exits before, without the maps that
only later stages read (MSDNet's finer scales, RANet's waiting sub-networks), and trained for this exit alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet, as_carry, builder, rebuild
from offramp.runs import RunFolder

# Where modules are written that never look at the mode they are in, which a trace would fix.
_KNOWN = (__name__, "offramp.backbones.layers", "offramp.backbones.msdnet", "offramp.backbones.ranet")


def prefix(run: str, exits: int, damping: bool = False) -> EarlyExitNet:
    """The first `exits` stages of a run's network and their last exit, with fresh weights: see `shorter`.

    Args:
        run: Folder of a run, finished or not; only its recipe is read.
        exits: How many stages are kept.
        damping: Whether the exit has the damping neuron.

    Raises:
        UsageError: A run whose network has no recipe, or not so many exits.
    """
    recipe = RunFolder(run).read_config()["network"]
    if recipe is None:
        raise UsageError(f"The network of {run} was built by hand; a shorter one needs one with a recipe.")
    return shorter(recipe, exits, damping)


@builder
def shorter(base: Mapping[str, Any], exits: int, damping: bool = False) -> EarlyExitNet:
    """The same of the network with recipe `base`: its `spec` as JSON.

    It starts from the weights that the whole network starts from, for the same random numbers. The damping neuron is
    as asked for where the builder of `base` takes `damping`, else as the network has it.
    """
    spec = Spec.from_json(base)
    arguments = {**spec.args, "damping": damping} if "damping" in spec.args else spec.args
    return shortened(rebuild(Spec(spec.name, arguments)), exits)


def shortened(network: EarlyExitNet, exits: int) -> EarlyExitNet:
    """One stage made of the first `exits` of `network`, and their last exit: made of its modules, with their weights.

    Its logits are those of that exit. What the exit does not need is left out, as far as it can be seen: inside the
    stages of MSDNet and RANet, and of graphs (`torch.fx.GraphModule`, as attached networks have them). Any other stage
    runs as it is.

    Raises:
        UsageError: Not so many exits.
    """
    if not isinstance(exits, int) or isinstance(exits, bool) or not 1 <= exits <= network.num_exits:
        raise UsageError(f"exits must be a whole number from 1 to {network.num_exits}, not {exits!r}.")
    trunk: nn.Module = Trunk(list(network.stages)[:exits], network.reads[exits - 1])
    if all(_can_look_into(stage) for stage in network.stages[:exits]):
        trunk = _needed(trunk)
    return EarlyExitNet(
        [trunk],
        [network.exits[exits - 1]],
        num_classes=network.num_classes,
        damping=network.damping,
        image_shape=network.image_shape,
    )


class Trunk(nn.Module):
    """Stages in turn.

    Args:
        stages: From the first on.
        reads: Which tensor of the last carry is wanted.
    """

    def __init__(self, stages: Sequence[nn.Module], reads: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.reads = reads

    def forward(self, images: Tensor) -> Tensor:
        """The map that the exit reads, for images `[B, channels, height, width]`."""
        carry: Carry = (images,)
        for stage in self.stages:
            carry = as_carry(stage(*carry))
        return carry[self.reads]


def _can_look_into(module: nn.Module) -> bool:
    known = type(module).__module__ in _KNOWN and not isinstance(module, nn.Sequential)
    return known or isinstance(module, torch.fx.GraphModule)


class _Tracer(torch.fx.Tracer):
    """Looks into what may have results nobody needs. A Sequential has none, and stays one module, to be folded."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _can_look_into(m)


def _needed(trunk: nn.Module) -> nn.Module:
    """The trunk as a graph of what its result depends on, with no other module in it."""
    kept = torch.fx.GraphModule(trunk, _Tracer().trace(trunk), "Trunk")
    kept.graph.eliminate_dead_code(_has_effect)
    kept.delete_all_unused_submodules()
    kept.recompile()
    return kept


def _has_effect(node: torch.fx.Node) -> bool:
    """Whether a step matters though nobody reads what it gives: torch.fx does not count changes in place."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    in_place = node.op == "call_function" and getattr(node.target, "__name__", "").endswith("_")
    return in_place or node.is_impure()
