"""The usual training: one forward pass, one backward pass, one optimiser step a batch."""

from offramp.batch import Batch
from offramp.rules.base import Outcome, TrainingRule


class Standard(TrainingRule):
    """Gradient descent on the objective as it is."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        """Forward, loss, backward, update."""
        return self.bench.descend(batch, progress)
