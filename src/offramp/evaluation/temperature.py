"""Temperature scaling: one number per exit that makes its probabilities likeliest (Guo et al., ICML 2017).

K exits, S images, C outputs of an exit (the damping neuron's included, as in training).
"""

from torch import Tensor

from offramp.evaluation.record import Record
from offramp.evaluation.thresholds import check_search

LOWEST, HIGHEST = 0.05, 20.0
STEPS, CLOSE = 60, 1e-9  # of the search for the best 1/T


def fit_temperatures(search: Record, *, renormalise: bool = False) -> tuple[float, ...]:
    """The temperature of each exit at which the true classes of `search` are likeliest.

    Within [0.05, 20]: an exit that is right on every image has no best temperature and gets the lowest. With
    `renormalise` the damping neuron takes no part (reading A9(a)).

    Raises:
        UsageError: A record of another part than `search`.
    """
    check_search(search)
    num_outputs = search.num_classes if renormalise else search.logits_KSC.shape[2]
    return tuple(_best(logits_SC[:, :num_outputs].double(), search.targets_S) for logits_SC in search.logits_KSC)


def _best(logits_SC: Tensor, targets_S: Tensor) -> float:
    """Newton's method on 1/T, in which the negative log-likelihood is convex; halves a bracket that it would leave."""
    centred_SC = logits_SC - logits_SC.gather(1, targets_S[:, None])
    low, high = 1 / HIGHEST, 1 / LOWEST
    inverse = 1.0
    for _ in range(STEPS):
        probs_SC = (inverse * centred_SC).softmax(1)
        mean_S = (probs_SC * centred_SC).sum(1)
        slope = mean_S.mean().item()
        curvature = ((probs_SC * centred_SC.square()).sum(1) - mean_S.square()).mean().item()
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        new = step if low < step < high else (low + high) / 2
        if abs(new - inverse) <= CLOSE * inverse:
            break
        inverse = new
    return 1 / inverse
