"""`offramp cost`: operations and parameters of a network."""

import dataclasses
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offramp.commands.options import Computes, Flag, NamedModel, OpensRuns, in_threads
from offramp.config import unset
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.terminal import Screen

if TYPE_CHECKING:
    from offramp.costs import Cost
    from offramp.network import EarlyExitNet


@dataclass(frozen=True, kw_only=True)
class CostOptions(OpensRuns, Computes):
    """Count a network's operations and parameters, exit by exit.

    Multiply-adds too, and by stage; for one image.
    """

    preset: NamedModel = field(kw_only=False)
    """A preset such as msdnet7-cifar100, msdnet, ranet, auto, package.module:Name, or a run's folder."""
    damping: bool = False
    """With the damping neuron."""
    num_classes: Annotated[int | None, unset("INT")] = None
    """Classes of the data."""
    image_shape: Annotated[tuple[int, int, int] | None, unset("C H W")] = None
    """Channels, height and width of the images."""
    json: Flag = False
    """Print JSON: exits (cumulative, with all heads on the way), path (with the last head alone), stages, heads."""

    def main(self) -> None:
        counted = cost(self)
        from offramp.show.tables import cost_tables

        if self.json:
            print(dumps({"network": str(self.preset), **dataclasses.asdict(counted)}, indent=1))
        else:
            Screen().print(*cost_tables(str(self.preset), counted))


@in_threads
def cost(options: CostOptions) -> "Cost":
    """What a network costs that is named, or the network of a run: see `offramp.cost`."""
    from offramp.costs import cost

    network = _network(options)
    try:
        return cost(network, options.image_shape)
    except RuntimeError as error:
        if options.image_shape is None:
            raise
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{options.preset} cannot run on images of shape {options.image_shape}: {reason}") from error


def _network(options: CostOptions) -> "EarlyExitNet":
    from offramp import backbones
    from offramp.network import rebuild

    spec, num_classes, image_shape = options.preset, options.num_classes, options.image_shape
    if spec.name in backbones.NETWORKS or not Path(spec.name).expanduser().is_dir():
        damping = options.damping or None
        return backbones.build(spec, num_classes=num_classes, image_shape=image_shape, damping=damping)
    if options.damping or num_classes or spec.args:
        raise UsageError(f"{spec.name} is a run: its network is what it is; only image-shape can be set.")
    folder = RunFolder(spec.name)
    config = folder.read_config()
    if config.network is None:
        raise UsageError(f"The network of {spec.name} was built by hand; call offramp.cost on it in Python.")
    with folder.naming(config):
        return rebuild(config.network)
