"""An epoch of Meta-GF, float64, batch norm in eval mode: `python meta_gf_steps.py OUT`, plainly or under torchrun.

The processes share each batch, unequally, and some have no image of it. What came of it goes to OUT.
"""

import sys
from pathlib import Path

import torch
from some_steps import Detached

from offramp import processes
from offramp.backbones import msdnet
from offramp.data import Batch
from offramp.objectives import dynamic
from offramp.rules import MetaGF, Workbench
from offramp.storage import save_tensors


def main(out: Path) -> None:
    torch.manual_seed(0)
    network = msdnet(
        exits=3, num_classes=5, damping=True, channels=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2),
        head_channels=8, image_size=16, in_channels=1,
    )  # fmt: skip
    network.double().eval()
    network.exits[1] = Detached(network.exits[1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = MetaGF(kept=0.5)
    rule.prepare(Workbench(network=network, forward=network, objective=dynamic(over="batch"), optimizer=optimizer))
    sizes = (1, 7, 8)
    for number in range(8 * len(sizes)):
        torch.manual_seed(number)
        size = sizes[number % len(sizes)]
        images, targets = torch.randn(size, 1, 16, 16, dtype=torch.float64), torch.randint(5, (size,))
        share = processes.share_of(size)
        rule.step(Batch(images[share], targets[share], torch.arange(size)[share], size), progress=number / 24)
        if number % len(sizes) == len(sizes) - 1:
            rule.end_epoch()
    if processes.rank() == 0:
        weights = {f"network.{name}": weight for name, weight in network.named_parameters()}
        save_tensors(out, weights | {f"rule.{name}": tensor for name, tensor in rule.state().items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.together("gloo"):
        main(Path(sys.argv[1]))
        processes.wait_for_all()
