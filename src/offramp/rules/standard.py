"""The usual training: one forward pass, one backward pass, one optimiser step a batch."""

import torch

from offramp.data import Batch
from offramp.rules.base import Outcome, TrainingRule


class Standard(TrainingRule):
    """Gradient descent on the objective as it is."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        """Forward, loss, backward, update."""
        bench = self.bench
        bench.optimizer.zero_grad()
        if not len(batch.targets_B):  # fewer images than processes: take part in the sums, with nothing to add
            bench.update()
            network = bench.network
            return Outcome(bench.broken.new_zeros(()), torch.empty(network.num_exits, 0, network.num_outputs), {})
        with bench.autocast():
            logits_KBC = bench.forward(batch.images_BCHW)
        terms = bench.objective.terms(logits_KBC, batch.targets_B, progress=progress)
        loss = terms.loss_KB.sum() / batch.size
        loss.backward()  # type: ignore[no-untyped-call]
        bench.update()
        return Outcome(loss.detach(), logits_KBC.detach(), terms.stats_KB)
