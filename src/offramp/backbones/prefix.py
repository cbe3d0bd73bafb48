"""A shorter network: the first stages of another one with a single exit, and nothing computed that it does not need.

What a smaller network is to an early exit: the same trunk up to there, without the exits before, without the maps that
only later stages read (MSDNet's finer scales, RANet's waiting sub-networks), and trained for this exit alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from offramp.config import Spec
from offramp.contexts import ThreadTracer
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.inplace import changes_in_place
from offramp.network import Carry, EarlyExitNet, as_carry, builder, rebuild, runs_in_turn

# Where modules are written that never look at the mode they are in, which a trace would fix.
_KNOWN = (__name__, "offramp.backbones.layers", "offramp.backbones.msdnet", "offramp.backbones.ranet")
# What is sure to make a tensor of its own: modules; functions and methods.
_MAKERS = (_ConvNd, nn.Linear, _BatchNorm)
_MAKING = ("clone", torch.clone, torch.cat, nn.functional.conv2d, nn.functional.linear, nn.functional.batch_norm)


def prefix(run: str, exits: int, damping: bool = False) -> EarlyExitNet:
    """The first `exits` stages of a run's network and their last exit, with fresh weights: see `shorter`.

    Args:
        run: Folder of a run, finished or not; only its recipe is read.
        exits: How many stages are kept.
        damping: Whether the exit has the damping neuron.

    Raises:
        UsageError: A run whose network has no recipe, or not so many exits.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if config.network is None:
        raise UsageError(f"The network of {run} was built by hand; a shorter one needs one with a recipe.")
    with folder.naming(config):
        return shorter(config.network.to_json(), exits, damping)


@builder
def shorter(base: Mapping[str, Any], exits: int, damping: bool = False) -> EarlyExitNet:
    """The same of the network with recipe `base`: its `spec` as JSON.

    The damping neuron is as asked for where the builder of `base` takes `damping`, else as the network has it. For the
    same random numbers it starts from the weights that the whole network starts from, if both have the neuron or
    neither has. Else heads draw another number of them, and what is drawn later differs: of MSDNet the head (the whole
    of it from exit 2 on), of RANet stages, too.
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


class _Tracer(ThreadTracer):
    """Looks into what may have results nobody needs. A Sequential has none, and stays one module, to be folded."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _can_look_into(m)


def _needed(trunk: nn.Module) -> nn.Module:
    """The trunk as a graph of what its result depends on, with no other module in it."""
    kept = torch.fx.GraphModule(trunk, _Tracer().trace(trunk), "Trunk")
    kept.graph.eliminate_dead_code(_with_effect(kept).__contains__)
    kept.delete_all_unused_submodules()
    kept.recompile()
    return kept


def _with_effect(graphed: torch.fx.GraphModule) -> set[torch.fx.Node]:
    """Steps that matter though nobody may read what they give: they write into something that is read after them.

    torch.fx counts no change in place. Where nothing says that a step makes a tensor of its own, what it gives is taken
    to share the memory of all that it reads.
    """
    nodes = graphed.graph.nodes
    modules = {n: graphed.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"}
    read: dict[torch.fx.Node, set[torch.fx.Node]] = {}  # the steps whose memory a step reads
    given: dict[torch.fx.Node, set[torch.fx.Node]] = {}  # and those whose memory is what it gives
    for node in nodes:
        read[node] = set().union(*(given[n] for n in node.all_input_nodes))
        makes_own = _makes_own(modules[node]) if node in modules else node.target in _MAKING
        given[node] = {node} if makes_own or not read[node] else read[node]
    found: set[torch.fx.Node] = set()
    needed: set[torch.fx.Node] = set()
    alive = {node for node in nodes if node.op == "get_attr"}  # what the network holds, beyond this call
    for node in reversed(nodes):
        writes = _may_write(modules[node]) if node in modules else changes_in_place(node)
        if node.is_impure() or (writes and read[node] & alive):
            found.add(node)
        if node in found or needed.intersection(node.users):
            needed.add(node)
            alive |= read[node]
    return found


def _makes_own(module: nn.Module) -> bool:
    """Whether what a module gives is sure to be a new tensor."""
    if runs_in_turn(module):
        return any(map(_makes_own, module.children()))
    return _is_of_torch(module) and isinstance(module, _MAKERS)


def _may_write(module: nn.Module) -> bool:
    """Whether a module may write into what it is given; of one that is not torch's, nobody knows."""
    if not runs_in_turn(module):
        return bool(getattr(module, "inplace", False)) or not _is_of_torch(module)
    for layer in module.children():
        if _may_write(layer):
            return True
        if _makes_own(layer):
            return False
    return False


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")
