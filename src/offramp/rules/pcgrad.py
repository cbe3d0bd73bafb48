"""PCGrad (Yu et al., NeurIPS 2020): of two gradients that conflict, each loses what points against the other.

K exits.
"""

from offramp.batch import Batch
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.surgery import weighting


class PCGrad(TrainingRule):
    """The sum of the exits' gradients, each projected off the others that it conflicts with.

    For each exit k, d_k starts as g_k and visits the other exits in random order; where d_k g_j < 0, it is replaced by
    d_k - (d_k g_j / |g_j|²) g_j. The update is the sum of the d_k. The order comes from torch's generator, which the
    training loop seeds anew at every step.
    """

    needs_plain = True

    def __init__(self) -> None:
        self.weights = weighting("PCGradWeighting")  # the sum of the d_k, as weights of the g_k

    def step(self, batch: Batch, progress: float) -> Outcome:
        """A step with a backward pass for each exit."""
        return self.bench.descend(batch, progress, combine=self.weights)
