"""Some steps of WPN, float64: `python wpn_steps.py OUT`, plainly or under torchrun; what came of it goes to OUT.

Given the same images, several processes must do what one does. The last two batches are shared among them, batch norm
in eval mode, so that a process has no second half, or no image at all.
"""

import sys
from pathlib import Path

import torch

from offramp import processes
from offramp.backbones import msdnet
from offramp.data import Batch
from offramp.objectives import dynamic
from offramp.rules import WPN, Workbench
from offramp.storage import save_tensors


def main(out: Path) -> None:
    torch.manual_seed(0)
    network = msdnet(
        exits=3, num_classes=5, damping=True, channels=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2),
        head_channels=8, image_size=16, in_channels=1,
    )  # fmt: skip
    network.double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = WPN(hidden=20, interval=3, meta_lr=0.01)
    rule.prepare(Workbench(network=network, forward=network, objective=dynamic(), optimizer=optimizer))
    for number, size in enumerate((7, 8, 1, 8, 3, 1)):
        torch.manual_seed(number)
        images, targets = torch.randn(size, 1, 16, 16, dtype=torch.float64), torch.randint(5, (size,))
        if number == 0:  # the loop seeds processes differently; the first one's prediction network is everyone's
            torch.manual_seed(processes.rank())
        share, copies = slice(None), processes.world_size()
        if number >= 4:
            network.eval()
            share, copies = processes.share_of(size), 1
        rule.step(Batch(images[share], targets[share], torch.arange(size)[share], size * copies), progress=0.0)
    if processes.rank() == 0:
        weights = {f"network.{name}": weight for name, weight in network.named_parameters()}
        save_tensors(out, weights | {f"rule.{name}": tensor for name, tensor in rule.state().items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.together("gloo"):
        main(Path(sys.argv[1]))
        processes.wait_for_all()
