"""Inline subnetwork collaboration, the second stage of IMTA (Li et al., ICCV 2019): exits read those before.

B images, C outputs of an exit, D features of an exit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.files import RunFolder, load
from offramp.network import Carry, EarlyExitNet, as_carry, builder, rebuild


def collaborating(run: str) -> EarlyExitNet:
    """The network of a finished run, whose exits are to be trained anew as a chain; all else is frozen.

    Exit k gets a new Linear on its D features (what its old Linear read) and, but for the first, D numbers made of the
    outputs of exit k - 1: a Linear, batch norm and ReLU, new as well. Gradients run back through the chain of outputs.
    The damping neuron's output is among them. What is frozen stays in training mode while training, as in the authors'
    program, so that its batch norms' running statistics move on. In IMTA the run is one of gradient equilibrium, and
    training goes on with the rule one-for-all and the same run as teacher.

    The network holds the run's weights; once it is trained, the run is no longer needed.

    Raises:
        UsageError: A run that is not finished or has no recipe of its network, or an exit without features.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if config.network is None:
        raise UsageError(f"The network of {run} was built by hand; collaboration needs one with a recipe.")
    with folder.naming(config):
        return _network(config.network, None if torch.get_default_device().type == "meta" else run)


@builder
def collaboration(base: Mapping[str, Any]) -> EarlyExitNet:
    """The same with fresh weights everywhere; `base` is the recipe of the network."""
    return chained(rebuild(Spec.from_json(base)))


def _network(recipe: Spec, run: str | None) -> EarlyExitNet:
    base = rebuild(recipe)
    if run is not None:
        base = load(run, into=base).train()
    network = chained(base)
    network.origin = None if run is None else {"run": run}  # for the `origin.json` of what it is trained into
    network.spec = Spec(f"{__name__}:collaboration", {"base": recipe.to_json()})
    return network


def chained(base: EarlyExitNet) -> EarlyExitNet:
    """A chain made of the parts of `base`, with its weights; only what is new is to be trained."""
    stages: list[nn.Module] = []
    for k, (trunk, head, reads) in enumerate(zip(base.stages, base.exits, base.reads, strict=True)):
        if not isinstance(head, nn.Sequential) or not isinstance(head[-1], nn.Linear):
            raise UsageError(
                f"Collaboration needs exits that are a Sequential with a Linear at its end; {k + 1} is not."
            )
        stages.append(Collaborator(trunk, head[:-1], reads, head[-1].in_features, base.num_outputs, is_first=k == 0))
    return EarlyExitNet(
        stages,
        [nn.Identity() for _ in stages],
        num_classes=base.num_classes,
        damping=base.damping,
        image_shape=base.image_shape,
    )


class Collaborator(nn.Module):
    """A stage, the features of its exit, and the exit's outputs, which go on as the last tensor of the carry.

    Args:
        trunk: The stage, frozen.
        features: From the map that the exit reads, `reads` of the stage's, to D features (`width`), frozen.
    """

    def __init__(
        self, trunk: nn.Module, features: nn.Module, reads: int, width: int, num_outputs: int, *, is_first: bool
    ) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False)
        self.features = features.requires_grad_(False)
        self.reads = reads
        self.hear = None if is_first else nn.Sequential(nn.Linear(num_outputs, width), Norm(width), nn.ReLU())
        self.linear = nn.Linear(width if is_first else 2 * width, num_outputs)

    def forward(self, *carry: Tensor) -> Carry:
        """The stage's maps and the outputs `[B, C]` of its exit."""
        before_BC = None
        if self.hear is not None:
            *maps, before_BC = carry
            carry = tuple(maps)
        onward = as_carry(self.trunk(*carry))
        features_BD = self.features(onward[self.reads])
        if self.hear is not None:
            features_BD = torch.cat([features_BD, self.hear(before_BC)], dim=1)
        return (*onward, self.linear(features_BD))


class Norm(nn.BatchNorm1d):
    """Batch norm that takes a batch of one image as it does in evaluation mode: it has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised `[B, D]`."""
        if self.training and len(x) == 1:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
