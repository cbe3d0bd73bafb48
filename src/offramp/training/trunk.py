"""A network's trunk, its stages, trained at a rate of its own or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from offramp.config import TrainConfig
from offramp.errors import UsageError
from offramp.network import EarlyExitNet

FACTOR = "factor"  # of a group of parameters: what the learning rate is multiplied by


class Frozen(nn.ModuleList):
    """Stages that stay in evaluation mode even where a rule calls `train` within a step."""

    def train(self, mode: bool = True) -> "Frozen":
        """Evaluation mode, whatever `mode` says."""
        super().train(False)
        return self


@contextmanager
def frozen(network: EarlyExitNet) -> Iterator[None]:
    """While entered, the stages get no gradient and stay in evaluation mode; names and modules are the same.

    No parameter of theirs asks for a gradient, so a forward pass keeps nothing of them for the backward pass.
    Afterwards each parameter asks for gradients as it did before.
    """
    stages = network.stages
    learning = {name for name, parameter in stages.named_parameters() if parameter.requires_grad}
    network.stages = Frozen(stages).train()
    stages.requires_grad_(False)
    try:
        yield
    finally:
        network.stages = stages
        for name, parameter in stages.named_parameters():
            parameter.requires_grad_(name in learning)


def check_trunk(network: EarlyExitNet, config: TrainConfig) -> None:
    """Refuse to treat trunk and exits differently where one of them has nothing to train."""
    trunk, rest = parted(network)
    if config.freeze_trunk and not rest:
        raise UsageError(
            "freeze-trunk trains the exits alone, and the exits of this network have no weights of their own; leave it "
            "out."
        )
    if config.trunk_lr != 1 and not (trunk and rest):
        what = "exits of this network have" if trunk else "trunk of this network has"
        raise UsageError(f"trunk-lr sets trunk and exits apart, and the {what} no weights to train; use lr alone.")


def parted(network: EarlyExitNet) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that train: those of the stages, and the others."""
    trunk = [p for p in network.stages.parameters() if p.requires_grad]
    known = {id(p) for p in network.stages.parameters()}
    return trunk, [p for p in network.parameters() if p.requires_grad and id(p) not in known]


def parameter_groups(network: EarlyExitNet, config: TrainConfig) -> list[dict[str, Any]]:
    """What an optimiser is given. The first group has the rate of the schedule itself."""
    if config.trunk_lr == 1:
        return [{"params": [p for p in network.parameters() if p.requires_grad], FACTOR: 1.0}]
    trunk, rest = parted(network)
    return [{"params": rest, FACTOR: 1.0}, {"params": trunk, FACTOR: config.trunk_lr}]
