"""Temperature scaling: one number per exit that makes its probabilities likeliest (Guo et al., ICML 2017).

K exits, S images, B images of a piece, C outputs of an exit (the damping neuron's included, as in training).
"""

import torch
from torch import Tensor

from offramp.evaluation.record import Record, pieces
from offramp.evaluation.thresholds import check_search

LOWEST, HIGHEST = 0.05, 20.0
STEPS = 60  # of the search for the best 1/T, at most
FEW = 2000  # images, evenly spread, that show where to look for it
CLOSE = 1e-5  # a step of Newton's method so small leaves an error of about its square


def fit_temperatures(search: Record, *, renormalise: bool = False) -> tuple[float, ...]:
    """The temperature of each exit at which the true classes of `search` are likeliest.

    Within [0.05, 20]: an exit that is right on every image has no best temperature and gets the lowest. With
    `renormalise` the damping neuron takes no part (reading A9(a)).

    Raises:
        UsageError: A record of another part than `search`.
    """
    check_search(search)
    num_outputs = search.num_classes if renormalise else search.logits_KSC.shape[2]
    step = max(1, search.num_images // FEW)
    temperatures = []
    for logits_SC in search.logits_KSC[..., :num_outputs]:
        start = 1.0 if step == 1 else _best(logits_SC[::step], search.targets_S[::step], 1.0)
        temperatures.append(1 / _best(logits_SC, search.targets_S, start))
    return tuple(temperatures)


def _best(logits_SC: Tensor, targets_S: Tensor, inverse: float) -> float:
    """1/T by Newton's method, as the negative log-likelihood is convex in it; halves a bracket that it would leave."""
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(STEPS):
        slope, curvature = _slope_and_curvature(logits_SC, targets_S, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        new = inverse - slope / curvature if curvature > 0 else low
        if low < new < high:
            close = abs(new - inverse) <= CLOSE * inverse
        else:
            new = (low + high) / 2
            close = high - low <= CLOSE**2 * high
        inverse = new
        if close:
            break
    return inverse


def _slope_and_curvature(logits_SC: Tensor, targets_S: Tensor, inverse: float) -> tuple[float, float]:
    """Of the mean negative log-likelihood, with respect to 1/T.

    They are the mean of the logits under the softmax less the true class's logit, and their variance there.
    """
    slope = curvature = 0.0
    for here in pieces(*logits_SC.shape):
        centred_BC = logits_SC[here] - logits_SC[here].amax(1, keepdim=True)
        true_B = centred_BC.gather(1, targets_S[here, None]).squeeze(1)
        powers_BC = (inverse * centred_BC).exp_()  # times the centred logits to the power of 0, 1 and 2
        total_B, first_B = powers_BC.sum(1), powers_BC.mul_(centred_BC).sum(1)
        mean_B, second_B = first_B / total_B, powers_BC.mul_(centred_BC).sum(1) / total_B
        slope += (mean_B - true_B).sum(dtype=torch.float64).item()
        curvature += (second_B - mean_B.square()).sum(dtype=torch.float64).item()
    return slope / len(logits_SC), curvature / len(logits_SC)
