"""Three steps of the standard rule, batch norm in eval mode, float64: `python three_steps.py OUT OBJECTIVE`.

Started plainly it is one process; under torchrun the processes share each batch. The weights after it go to OUT.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from offramp import objectives, processes
from offramp.backbones import msdnet
from offramp.config import Spec
from offramp.data import Batch
from offramp.objectives import Objective
from offramp.objectives.base import Terms
from offramp.rules import Standard, Workbench
from offramp.storage import save_tensors

BATCHES = (13, 8, 1)  # shares of unequal size, and one that is empty


@dataclass(frozen=True)
class LastExitOnly(Objective):
    """Leaves the other exits without a gradient."""

    def terms(self, logits_KBC: Tensor, targets_B: Tensor, *, progress: float = 0.0) -> Terms:
        loss_B = torch.nn.functional.cross_entropy(logits_KBC[-1], targets_B, reduction="none")
        return Terms(torch.cat([torch.zeros_like(logits_KBC[:-1, :, 0]), loss_B[None]]), {})


def main(out: Path, name: str) -> None:
    torch.manual_seed(0)
    network = msdnet(
        exits=3, num_classes=5, damping=True, channels=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2),
        head_channels=8, image_size=16, in_channels=1,
    )  # fmt: skip
    network.double().eval()
    objective = LastExitOnly() if name == "last" else objectives.build(Spec.parse(name.split()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4, fused=True)
    rule = Standard()
    rule.prepare(Workbench(network=network, forward=network, objective=objective, optimizer=optimizer))
    for size in BATCHES:
        images, targets = torch.randn(size, 1, 16, 16, dtype=torch.float64), torch.randint(5, (size,))
        share = processes.share_of(size)
        rule.step(Batch(images[share], targets[share], torch.arange(size)[share], size), progress=0.0)
    if processes.rank() == 0:
        save_tensors(out, network.state_dict())


if __name__ == "__main__":
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    main(Path(sys.argv[1]), sys.argv[2])
    if dist.is_initialized():
        dist.destroy_process_group()
