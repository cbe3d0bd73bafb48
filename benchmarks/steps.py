"""The bare training step, for benchmarks that compare something with it."""

import torch

from offramp import EarlyExitNet
from offramp.objectives import Objective
from offramp.rules import Standard, Workbench


def bare_rule(network: EarlyExitNet, objective: Objective) -> Standard:
    """The standard rule, prepared as `offramp.fit` does; its `step(batch, progress)` is the bare step."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    rule.prepare(Workbench(network, network, objective, optimizer))
    return rule
