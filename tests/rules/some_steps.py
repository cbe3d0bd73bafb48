"""Some steps of each rule, batch norm in eval mode, float64: `python some_steps.py OUT OBJECTIVE LAYOUT RULES...`.

Started plainly it is one process; under torchrun the processes share each batch. The weights after it go to the folder
OUT, one file for each rule, by its name.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from offramp import objectives, processes, rules
from offramp.backbones import msdnet
from offramp.config import Spec
from offramp.data import Batch
from offramp.rules import Workbench
from offramp.storage import save_tensors

BATCHES = (1, 13, 8, 1)  # shares of unequal size, and some that are empty


class Detached(nn.Module):
    """An exit that the loss does not reach: its own weights, and what only it uses, get no gradient at all."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.head(x)
        return logits


def main(out: Path, name: str, layout: torch.memory_format, rule_name: str) -> None:
    torch.manual_seed(0)
    network = msdnet(
        exits=3, num_classes=5, damping=True, channels=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2),
        head_channels=8, image_size=16, in_channels=1,
    )  # fmt: skip
    network.double().eval().to(memory_format=layout)
    network.exits[1] = Detached(network.exits[1])
    objective = objectives.build(Spec.parse(name.split()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = rules.build(Spec.parse(rule_name.split()))
    rule.prepare(Workbench(network=network, forward=network, objective=objective, optimizer=optimizer))
    for number, size in enumerate(BATCHES):
        torch.manual_seed(number)  # a rule may draw in the first process alone
        images, targets = torch.randn(size, 1, 16, 16, dtype=torch.float64), torch.randint(5, (size,))
        images, share = images.to(memory_format=layout), processes.share_of(size)
        rule.step(Batch(images[share], targets[share], torch.arange(size)[share], size), progress=0.0)
        assert all(parameter.grad is None for parameter in network.exits[1].parameters())
    if processes.rank() == 0:
        save_tensors(out / rule_name, network.state_dict())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.together("gloo"):
        for rule_name in sys.argv[4:]:
            main(Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), rule_name)
        processes.wait_for_all()
