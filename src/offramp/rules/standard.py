"""The usual training: one forward pass, one backward pass, one optimiser step a batch.

K exits, B images here, C outputs.
"""

from torch import Tensor

from offramp.data import Batch
from offramp.objectives import Terms
from offramp.rules.base import Outcome, TrainingRule


class Standard(TrainingRule):
    """Gradient descent on the objective as it is."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        """Forward, loss, backward, update."""
        bench = self.bench
        bench.optimizer.zero_grad()
        logits_KBC = self._logits(batch.images_BCHW)
        terms = self._terms(logits_KBC, batch.targets_B, progress)
        loss = terms.loss_KB.sum() / batch.size
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        bench.update(loss)
        return Outcome(loss.detach(), logits_KBC.detach(), terms.stats_KB)

    def _terms(self, logits_KBC: Tensor, targets_B: Tensor, progress: float) -> Terms:
        """What is minimised. Methods that weigh exits or samples change the shares."""
        return self.bench.objective.terms(logits_KBC, targets_B, progress=progress)

    def _logits(self, images_BCHW: Tensor) -> Tensor:
        bench = self.bench
        if not len(images_BCHW):
            # Fewer images than processes, and batch norm cannot train on none: take part in the sums of objective and
            # update, which the others wait for, with nothing to add.
            return bench.parameters[0].new_zeros(bench.network.num_exits, 0, bench.network.num_outputs)
        with bench.autocast():
            return bench.forward(images_BCHW)
