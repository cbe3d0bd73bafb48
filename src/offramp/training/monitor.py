"""What is watched while training: sums over an epoch, and the accuracy on held-out images.

K exits, B images here, C outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp import processes
from offramp.data import Split
from offramp.devices import sent
from offramp.network import EarlyExitNet
from offramp.rules import Outcome, Workbench
from offramp.training.checkpoints import SumsSoFar


class EpochSums:
    """Sums of what each step left, over the images of an epoch so far and all processes; kept in checkpoints."""

    def __init__(self) -> None:
        self.images = 0
        self.names: tuple[str, ...] = ()
        self.rows: Tensor | None = None  # float64: `loss`, correct answers, statistics; one row each, K columns

    def add(self, outcome: Outcome, targets_B: Tensor, size: int, num_classes: int) -> None:
        """Add this process's share of a step; `size` images in the whole batch. No waiting for the device."""
        logits_KBC = outcome.logits_KBC
        K = logits_KBC.shape[0]
        if len(targets_B):
            # The softmax is monotone: the largest class log-probability is the largest of the first N logits.
            correct_KB = logits_KBC[..., :num_classes].argmax(-1) == targets_B
            loss_K = (outcome.loss * size).expand(K)
            self.names = tuple(outcome.stats_KB)
            rows = torch.stack(
                [loss_K.double(), correct_KB.double().sum(1), *(s.double().sum(1) for s in outcome.stats_KB.values())]
            )
        else:
            rows = torch.zeros(2 + len(self.names), K, dtype=torch.float64, device=outcome.loss.device)
        rows = processes.sum_over_all(rows)
        self.rows = rows if self.rows is None else self.rows + rows
        self.images += size

    def means(self) -> dict[str, Any]:
        """Mean loss, accuracy in percent per exit, and the mean of each statistic per exit."""
        assert self.rows is not None
        loss_K, correct_K, *stats = (self.rows / self.images).tolist()
        return {
            "loss": loss_K[0],
            "train_top1": [100 * share for share in correct_K],
            "stats": dict(zip(self.names, stats, strict=True)),
        }

    def state(self) -> tuple[dict[str, Tensor], SumsSoFar]:
        """Tensors and plain values for a checkpoint."""
        return ({} if self.rows is None else {"rows": self.rows}), SumsSoFar(images=self.images, names=list(self.names))

    def load_state(self, tensors: Mapping[str, Tensor], values: SumsSoFar, device: torch.device) -> None:
        """The inverse of `state`."""
        self.rows = tensors["rows"].to(device) if "rows" in tensors else None
        self.images = values["images"]
        self.names = tuple(values["names"])


@torch.inference_mode()
def watch(bench: Workbench, split: Split, to_device: "Placement") -> dict[str, list[float]]:
    """Accuracy (percent) and negative log-likelihood (nats) of every exit on held-out images, network in eval mode."""
    network: EarlyExitNet = bench.network
    network.eval()
    sums = torch.zeros(2, network.num_exits, dtype=torch.float64, device=bench.broken.device)
    for batch in split.batches():
        if len(batch.targets_B):
            images_BCHW, targets_B = to_device(batch.images_BCHW, batch.targets_B)
            with bench.autocast():
                logits_KBC = bench.forward(images_BCHW)
            log_probs_KBN = network.class_log_probs(logits_KBC)
            picked_KB = log_probs_KBN.gather(-1, targets_B.expand(network.num_exits, -1)[..., None])[..., 0]
            sums[0] += (log_probs_KBN.argmax(-1) == targets_B).double().sum(1)
            sums[1] -= picked_KB.double().sum(1)
    network.train()
    correct_K, nll_K = (processes.sum_over_all(sums) / len(split)).tolist()
    return {"search_top1": [100 * share for share in correct_K], "search_nll": nll_K}


class Placement:
    """Moves a batch to where the network is, in its memory layout, without waiting for the device."""

    def __init__(self, device: torch.device, channels_last: bool) -> None:
        self.device = device
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images_BCHW: Tensor, targets_B: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets, there."""
        if images_BCHW.device.type != self.device.type:
            images_BCHW = sent(images_BCHW, self.device)
        return images_BCHW.to(memory_format=self.layout), sent(targets_B, self.device)


def mean(values: Sequence[float]) -> float:
    """The plain mean over exits, as the paper's tables print it."""
    return sum(values) / len(values)
