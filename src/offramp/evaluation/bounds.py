"""How strongly counts speak against "the risk is above `risk`": p-values, exact or by betting; exact limits.

Beside them the error of a paired difference, which promises nothing but is honest about small counts.

All functions work elementwise on arrays of counts that broadcast against each other. A p-value is valid when, whatever
the true distribution with a risk above `risk`, it is at most u with probability at most u, for every u.
"""

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LARGEST_BET = 0.9  # of what is possible: one loss costs at most nine tenths of the wealth
Z95 = 1.96  # two-sided 95 % of a normal distribution


def binomial_p_value(lost: npt.ArrayLike, images: npt.ArrayLike, risk: float) -> FloatArray:
    """Exact p-value that the probability of a loss is above `risk`, after `lost` losses among `images` images.

    P(Binomial(images, risk) <= lost). No images: 1.
    """
    lost, images = np.asarray(lost, dtype=np.int64), np.asarray(images, dtype=np.int64)
    if images.size and (images == images.flat[0]).all():  # one number of images: a table is faster
        table = special.bdtr(np.arange(lost.max(initial=0) + 1), images.flat[0], risk)
        return np.asarray(table[np.broadcast_to(lost, np.broadcast(lost, images).shape)])
    return np.asarray(special.bdtr(lost, images, risk))


def betting_p_value(
    lost: npt.ArrayLike, gained: npt.ArrayLike, images: npt.ArrayLike, risk: float, bet: npt.ArrayLike
) -> FloatArray:
    """p-value that the mean of X is above `risk`, X being 1 (`lost` times), -1 (`gained` times) or else 0.

    One gambler bets the same share of the wealth on every image: the wealth is the product of 1 + bet (risk - X), which
    under the null hypothesis grows by at most 1 in expectation with each image, so that 1 / wealth is a p-value by
    Markov's inequality (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024,
    section 4). The product needs no order of the images, only counts.

    Args:
        lost: Images with X = 1.
        gained: Images with X = -1.
        risk: In (0, 1).
        bet: In [0, 1 / (1 - risk)), so that the wealth stays positive; fixed before the images are seen. See
            `best_bet`.
    """
    lost, gained, images, bet = (np.asarray(a, dtype=np.float64) for a in (lost, gained, images, bet))
    log_wealth = (
        lost * np.log1p(bet * (risk - 1))
        + gained * np.log1p(bet * (risk + 1))
        + (images - lost - gained) * np.log1p(bet * risk)
    )
    return np.asarray(np.exp(-np.maximum(log_wealth, 0.0)))


def best_bet(differing: npt.ArrayLike, images: npt.ArrayLike, risk: float, confidence: float) -> FloatArray:
    """The bet that needs the least evidence, where a share `differing` of all images has X other than 0.

    It is sqrt(2 log(1/delta) / (images variance)) with the second moment for the variance (Waudby-Smith and Ramdas,
    section 3.3), but never so large that one loss would cost nearly all the wealth. A poor guess of `differing` costs
    power, never validity, as long as it comes from other images.
    """
    variance = np.maximum(np.asarray(differing, dtype=np.float64), np.finfo(np.float64).tiny)
    per_image = 2 * -np.log1p(-confidence) / np.maximum(np.asarray(images, dtype=np.float64), 1.0)
    return np.asarray(np.minimum(np.sqrt(per_image / variance), LARGEST_BET / (1 - risk)))


def lower_limit(hits: npt.ArrayLike, trials: npt.ArrayLike, confidence: float) -> FloatArray:
    """Exact (Clopper-Pearson) lower limit of a probability after `hits` among `trials`."""
    hits, trials = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    return np.asarray(np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), trials - hits + 1, 1 - confidence), 0))


def upper_limit(hits: npt.ArrayLike, trials: npt.ArrayLike, confidence: npt.ArrayLike) -> FloatArray:
    """Exact (Clopper-Pearson) upper limit of a probability after `hits` among `trials`; 1 where there were none."""
    hits, trials = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    return np.asarray(
        np.where(hits < trials, special.betaincinv(hits + 1, np.maximum(trials - hits, 1), confidence), 1)
    )


def paired_difference(
    lost: npt.ArrayLike, gained: npt.ArrayLike, images: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """The share lost less the share gained on the same images, centred as its interval is, and its standard error.

    Agresti and Min (2005): half an image is added to each cell of the two by two table, so that where nothing differs
    the error is not 0: that nothing was lost on 50 images does not say that nothing can be.
    """
    lost, gained, images = (np.asarray(count, dtype=np.float64) for count in (lost, gained, images))
    spread = lost + gained + 1 - (lost - gained) ** 2 / (images + 2)
    return np.asarray((lost - gained) / (images + 2)), np.asarray(np.sqrt(spread) / (images + 2))
