"""Early exits against smaller networks at equal times, with uncertainty.

S images, R rounds, J replicates. Pure functions of what was measured: nothing is read, timed or trained here.

*Which* smaller network stands against early exits is decided on the search images; the test images say how much better
or worse it is. Few search images choose badly, and a bad choice favours early exits: so a yes has to hold against the
networks that are best on the test images as well. Smaller networks come in steps. Between two of them the rival is
their mixture: some images, drawn by chance, are answered by the one and the rest by the other, so that together they
take exactly the engine's time. That can be had, so early exits have to beat it; and it keeps them from winning only
because no network ends in a gap.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import special

from offramp.results.verdict.values import CONFIDENCE, Contender, EqualTimeComparison

REPLICATES = 20_000

Floats = npt.NDArray[np.float64]


def frontier(rivals: Sequence[Contender], images: Literal["search", "test"] = "search") -> tuple[Contender, ...]:
    """The smaller networks that are best at some time, or next to each other mixed are: from the fastest on.

    By their accuracy on these `images`: the corners of the upper hull of accuracy over time.
    """

    def top1(contender: Contender) -> float:
        return contender.search_top1 if images == "search" else contender.top1

    def slope(first: Contender, second: Contender) -> float:
        return (top1(second) - top1(first)) / max(second.ms - first.ms, np.finfo(float).tiny)

    corners: list[Contender] = []
    for rival in sorted(rivals, key=lambda each: (each.ms, -top1(each))):
        if corners and top1(rival) <= top1(corners[-1]):
            continue
        while len(corners) > 1 and slope(corners[-2], rival) >= slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(rival)
    return tuple(corners)


def at_equal_time(
    engines: Sequence[Contender],
    rivals: Sequence[Contender],
    *,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[EqualTimeComparison, ...]:
    """Each engine against the best smaller network of its time; from the fastest on.

    The intervals hold together: each has its share of the error (Bonferroni). They cover which images were tested and
    which rounds were timed, because both decide which mixture takes the engine's time.

    Args:
        engines: Early exits under several policies.
        rivals: Smaller networks on the same images, timed in the same rounds; among them the network cut at each exit.
        confidence: Of all intervals together.
        replicates: Of the rounds, drawn with replacement.
    """
    best, lucky = frontier(rivals), frontier(rivals, "test")
    asking = sum(not engine.straight for engine in engines)
    tail = (1 - confidence) / 2 / max(asking, 1)
    comparisons = []
    for engine in sorted(engines, key=lambda each: each.ms):
        first, second = _neighbours(engine.ms, best)
        share = _share(engine.ms, first.ms, second.ms)
        low, high = _interval(engine, first, second, tail, replicates, seed)
        against_lucky, _ = _interval(engine, *_neighbours(engine.ms, lucky), tail, replicates, seed)
        rival_top1 = (1 - share) * first.top1 + share * second.top1
        names = [rival.name for rival, part in ((first, 1 - share), (second, share)) if part > 0]
        comparisons.append(
            EqualTimeComparison(
                engine=engine.name,
                ms=engine.ms,
                top1=engine.top1,
                rivals=tuple(dict.fromkeys(names)),
                share=share if len(set(names)) > 1 else 0.0,
                rival_top1=rival_top1,
                gain=engine.top1 - rival_top1,
                low=low,
                high=high,
                surest=min(low, against_lucky),
                straight=engine.straight,
                missing=_missing(engine.ms, rivals),
            )
        )
    return tuple(comparisons)


def _neighbours(ms: float, best: Sequence[Contender]) -> tuple[Contender, Contender]:
    """The corners on both sides of a time; twice the same one beyond the ends."""
    for first, second in pairwise(best):
        if first.ms <= ms <= second.ms:
            return first, second
    end = best[0] if ms < best[0].ms else best[-1]
    return end, end


def _share(ms: float, first: float, second: float) -> float:
    return min(1.0, max(0.0, (ms - first) / (second - first))) if second > first else 0.0


def _interval(
    engine: Contender, first: Contender, second: Contender, tail: float, replicates: int, seed: int
) -> tuple[float, float]:
    """Of the gain, in points.

    For one mixture it is the interval of Agresti and Min (2005) for paired shares, as in `bench_figures.accuracy`, but
    of any differences per image: half an image is added that only the engine gets right, half a one that only the rival
    does, and one on which they agree. Over replicates of the rounds the mixture changes, and normal scores give the
    images' part.
    """
    generator = np.random.default_rng(seed)
    rows_J3 = _mixtures(engine, first, second, replicates, generator)
    right_3S = torch.stack([contender.right_S.double() for contender in (engine, first, second)])
    images = right_3S.shape[1] + 2
    sums_3, products_33 = right_3S.sum(1).numpy(), (right_3S @ right_3S.T).numpy()
    mean_J = rows_J3 @ sums_3 / images
    square_J = (np.einsum("ja,ab,jb->j", rows_J3, products_33, rows_J3) + 1) / images
    scores_J = special.ndtri((np.arange(replicates) + 0.5) / replicates)
    generator.shuffle(scores_J)
    gain_J = mean_J + np.sqrt(np.maximum(square_J - mean_J**2, 0) / images) * scores_J
    low, high = np.quantile(gain_J, [tail, 1 - tail])
    return 100 * float(low), 100 * float(high)


def _mixtures(
    engine: Contender, first: Contender, second: Contender, replicates: int, generator: np.random.Generator
) -> Floats:
    """Signs and shares of the three `[J, 3]`. Rounds are drawn for all three alike: they were timed side by side."""
    ms_3R = np.array([contender.ms_R for contender in (engine, first, second)])
    drawn_JR = generator.integers(ms_3R.shape[1], size=(replicates, ms_3R.shape[1]))
    ms_J, first_J, second_J = (np.median(of_one_R[drawn_JR], axis=1) for of_one_R in ms_3R)
    gap_J = second_J - first_J
    with np.errstate(divide="ignore", invalid="ignore"):
        share_J = np.where(gap_J > 0, np.clip((ms_J - first_J) / gap_J, 0, 1), 0.0)
    return np.stack([np.ones(replicates), share_J - 1, -share_J], axis=1)


def _missing(ms: float, rivals: Sequence[Contender]) -> tuple[int, ...]:
    """Exits on both sides of a time, by the network cut there, that no rival was trained for alone."""
    alone = {rival.exit for rival in rivals if rival.kind == "alone"}
    cuts = sorted((rival for rival in rivals if rival.kind == "cut"), key=lambda rival: rival.ms)
    faster, slower = [rival for rival in cuts if rival.ms <= ms], [rival for rival in cuts if rival.ms > ms]
    near = [rival.exit for rival in (*faster[-1:], *slower[:1])]
    return tuple(sorted(exit for exit in near if exit is not None and exit not in alone))


def simplest(rivals: Sequence[Contender]) -> Contender:
    """The fastest smaller network that is as accurate as the most accurate one, within a standard error on `search`."""
    best = frontier(rivals)
    most = best[-1]
    return next(contender for contender in best if _behind(contender, most) <= _error(contender, most))


def _behind(contender: Contender, most: Contender) -> float:
    return (most.search_right_S - contender.search_right_S).double().mean().item()


def _error(contender: Contender, most: Contender) -> float:
    behind_S = (most.search_right_S - contender.search_right_S).double()
    return sqrt(behind_S.var(unbiased=False).item() / len(behind_S))
