"""A guard that sees no labels: do early answers differ from the last exit's more often than when they were certified?

What is tested. A certificate bounds harm, such as early answers that are wrong where the last exit is right. Without
labels that cannot be seen; whether the two answers *differ* can, by letting a random share of the images that left
early run on to the end. That is the larger quantity: two exits also differ where both are wrong or only the early one
is right. So the null hypothesis is about disagreement itself: of the images that leave early on a rung, the share that
differs is at most `Certificate.disagreement.limit`, an upper limit from the certify images, with its own confidence.

What an alarm says. The images are no longer like those of the certificate, which therefore says nothing of them. While
there is none, that is no proof: images can change in ways that no two exits disagree about (other classes more often,
or such that all exits are wrong alike). But what is lost to `regret` differs, so regret is never above disagreement.

What may be observed. Images drawn at random, without looking at them, from those that left early under this rung's
thresholds; none that a deadline cut short. Each image has to differ with a probability of at most the limit *whatever
came before*: frames of one video repeat each other and are one image, not many.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from offramp.certificate import Certificate
from offramp.checks import check_number
from offramp.errors import UsageError
from offramp.policy import Policy

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.01
ODDS = (1.5, 2.0, 4.0, 8.0)  # times the allowed odds: what is bet on
_MOST = 1e300  # of wealth: it stays a number


class Guard:
    """Bets against "the share that differs is at most `allowed`"; rich gamblers are evidence, at any time.

    Wealth begins at 1 and under the null hypothesis grows by at most 1 in expectation with each image, whatever came
    before, so that it *ever* reaches 1 / `level` with probability at most `level` (Ville's inequality): the stream may
    be looked at after each image, for as long as one likes. Half of the wealth bets from the first image on, the rest
    begins later and later, because a drift may: a bet that runs through a long quiet time loses all. A bet is that the
    odds are some times the allowed ones (`ODDS`), in equal parts.

    Args:
        allowed: In (0, 1].
        level: The probability of ever raising a false alarm, if the share is at most `allowed`.
        name: What is watched, for the alarm: "rung 2".

    Raises:
        UsageError: Numbers out of their ranges.
    """

    def __init__(self, allowed: float, level: float = LEVEL, name: str = "the policy") -> None:
        check_number("allowed", allowed, "above 0 and at most 1", lambda value: 0 < value <= 1)
        check_number("level", level, "between 0 and 1", lambda value: 0 < value < 1)
        self.allowed, self.level, self.name = float(allowed), float(level), name
        self.observed = self.differing = 0
        self.alarm: str | None = None
        """What was found, in words; it stays."""
        self._bets_B = np.zeros(len(ODDS))

    @property
    def e_value(self) -> float:
        """The evidence against the null hypothesis: 1 is none."""
        return float(wealth(self._bets_B, self.observed))

    def observe(self, disagreed: bool) -> None:
        """Take in one more image that left early: whether the last exit gave it another class."""
        self._bets_B = bet(self._bets_B, disagreed, self.observed, self.allowed)
        self.observed += 1
        self.differing += disagreed
        if self.alarm is None and self.e_value >= 1 / self.level:
            self.alarm = (
                f"Early answers of {self.name} differ from the last exit's more often than when it was certified: "
                f"{self.differing} of {self.observed} that were looked at, where at most {self.allowed:.2%} may "
                f"(evidence {self.e_value:.3g} to 1). Nothing is promised of such images."
            )


def bet(bets_B: FloatArray, disagreed: npt.ArrayLike, before: int, allowed: npt.ArrayLike) -> FloatArray:
    """What B bets are worth after an image: `[..., B]`, of one stream or of many at once.

    A bet on `c` times the odds is multiplied by the likelihood ratio: with d = 1 + (c - 1) allowed by c / d if the
    answers differ, else by 1 / d. Where the share that differs is at most `allowed` its expectation is at most 1.

    Args:
        bets_B: What they were worth before.
        disagreed: Of each stream, `[...]`.
        before: Images observed before.
        allowed: Of all streams, or of each.
    """
    odds_B = np.array(ODDS)
    placed = _kept_back(before) - _kept_back(before + 1)
    even_B = 1 + (odds_B - 1) * np.asarray(allowed)[..., None]
    won_B = np.where(np.asarray(disagreed)[..., None], odds_B, 1.0) / even_B
    return np.asarray(np.minimum((bets_B + placed / len(ODDS)) * won_B, _MOST))


def wealth(bets_B: FloatArray, observed: int) -> FloatArray:
    """What the bets are worth `[...]`, and what was kept back after so many images."""
    return np.asarray(bets_B.sum(-1) + _kept_back(observed))


def _kept_back(images: int) -> float:
    """Of a wealth of 1, what has not been placed: all, half, and then ever more slowly less."""
    return 1.0 if images == 0 else 0.5 / (1 + math.log(images))


def guards(ladder: Sequence[Policy], level: float = LEVEL) -> tuple[Guard | None, ...]:
    """A guard for each rung; None for a policy whose certificate knows no disagreement, or that has none.

    Without drift *any* of them ever raises an alarm with probability at most `level`, over the certify images and the
    stream together: the limits may be wrong with probability 1 - their confidence (0.5 %), all at once, and what
    remains of `level` is divided among the rungs.

    Raises:
        UsageError: A level that the limits alone use up.
    """
    known = [None if (found := Certificate.of(policy)) is None else found.disagreement for policy in ladder]
    doubt = max((1 - one.confidence for one in known if one is not None), default=0.0)
    if not doubt < level < 1:
        raise UsageError(f"A guard's level lies between {doubt:.3g}, the doubt in the limits, and 1, not {level:g}.")
    each = (level - doubt) / max(sum(one is not None for one in known), 1)
    return tuple(None if one is None else Guard(one.limit, each, f"rung {n}") for n, one in enumerate(known, 1))
