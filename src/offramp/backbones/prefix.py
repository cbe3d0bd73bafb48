"""A shorter network: the first stages of another one with a single exit, and nothing computed that it does not need.

What a smaller network is to an early exit: the same trunk up to there, without the exits before, without the maps that
only later stages read (MSDNet's finer scales, RANet's waiting sub-networks), and trained for this exit alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.graphs.pruning import pruned
from offramp.network import Carry, EarlyExitNet, as_carry, builder, rebuild

# Modules written here never look at the mode they are in, which a trace would fix.
_KNOWN = (__name__, "offramp.backbones.layers", "offramp.backbones.msdnet", "offramp.backbones.ranet")


def prefix(run: str, exits: int, damping: bool = False) -> EarlyExitNet:
    """The first `exits` stages of a run's network and their last exit, with fresh weights: see `shorter`.

    Only the recipe of the run is read, which need not be finished.

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
    if all(map(_looks_into, network.stages[:exits])):
        trunk = pruned(trunk, _looks_into)
    return EarlyExitNet(
        [trunk],
        [network.exits[exits - 1]],
        num_classes=network.num_classes,
        damping=network.damping,
        image_shape=network.image_shape,
    )


class Trunk(nn.Module):
    """Stages in turn, from the first on, to one tensor of the last carry."""

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


def _looks_into(module: nn.Module) -> bool:
    """Whether results inside a module may not be needed. A Sequential has none; it stays one module, to be folded."""
    known = type(module).__module__ in _KNOWN and not isinstance(module, nn.Sequential)
    return known or isinstance(module, fx.GraphModule)
