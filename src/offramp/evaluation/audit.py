"""Does a procedure keep its promise? It is tried on many calibration sets of populations whose risks are known.

A procedure is a callable `(trials, promise) -> chosen_T`: for T calibration sets at once, the candidate it chooses for
each, from 0, or -1 for none (all images go to the last exit, which breaks no promise). A procedure that chooses none is
never wrong: look at `leaving` too.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from offramp.certificate import Promise
from offramp.errors import UsageError
from offramp.evaluation.bounds import FloatArray, IntArray, lower_limit
from offramp.evaluation.populations import POPULATIONS, Make, Population, grid, tally
from offramp.evaluation.promises import LossCounts, learn_then_test

SURE = 0.999  # confidence of the limit that decides
CHUNK = 1000  # trials drawn at a time


@dataclass(frozen=True, eq=False)
class Trials:
    """T independent pairs of a search and a certify set of `images` images each.

    Attributes:
        population: What it reveals of kinds (confidences, answers) a procedure may use; their probabilities it may not.
    """

    population: Population
    search_TM: IntArray
    certify_TM: IntArray

    def tallies(self, promise: Promise) -> tuple[LossCounts, LossCounts]:
        """Counts `[T, J]` on the search and on the certify sets."""
        happens = self.population.events(promise.loss)
        return tally(happens, self.search_TM), tally(happens, self.certify_TM)


Procedure = Callable[[Trials, Promise], IntArray]


def certified(trials: Trials, promise: Promise) -> IntArray:
    """What `certify` does."""
    return learn_then_test(promise, *trials.tallies(promise))


def first_uncertified(trials: Trials, promise: Promise) -> IntArray:
    """Wrong by one: the first candidate that failed its test instead of the last that passed (found in the wild)."""
    return np.minimum(certified(trials, promise) + 1, len(trials.population.thresholds_J) - 1)


def quantile(trials: Trials, promise: Promise) -> IntArray:
    """Wrong in kind: a conformal quantile of 1 - p(true class) at the first exit, used as if it bounded the error.

    It bounds how often the true class is less likely than 1 - quantile, which says nothing of the images whose
    likeliest class is another.
    """
    order_M = np.argsort(1 - trials.population.true_KM[0], kind="stable")
    images = trials.certify_TM[0].sum()
    rank = min(np.ceil((images + 1) * (1 - promise.risk)), images)
    up_to_TM = trials.certify_TM[:, order_M].cumsum(1)
    true_T = trials.population.true_KM[0][order_M[(up_to_TM >= rank).argmax(1)]]
    return np.asarray((trials.population.thresholds_J >= true_T[:, None]).sum(1) - 1)


PROCEDURES: dict[str, Procedure] = {
    "certify": certified,
    "first-uncertified": first_uncertified,
    "quantile": quantile,
}


@dataclass(frozen=True)
class Finding:
    """How often a procedure broke its promise in one setting.

    Attributes:
        broken: Sets for which the true risk of what was chosen is above the promised one.
        promised: The rate at which that may happen; `limit`: exact lower 99.9 % limit (Clopper-Pearson) of that rate.
        none: Sets for which nothing was chosen.
        leaving: Mean share of images that leave early.
    """

    population: str
    images: int
    candidates: int
    trials: int
    broken: int
    promised: float
    limit: float
    none: int
    leaving: float

    @property
    def rate(self) -> float:
        """Share of trials that broke the promise."""
        return self.broken / self.trials

    @property
    def passes(self) -> bool:
        """Whether the limit is not above what is promised."""
        return self.limit <= self.promised


@dataclass(frozen=True)
class Audit:
    """All findings about one procedure."""

    promise: Promise
    findings: tuple[Finding, ...]

    @property
    def passes(self) -> bool:
        """Whether no setting proves the promise broken."""
        return all(finding.passes for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        findings = [{**asdict(f), "rate": f.rate, "passes": f.passes} for f in self.findings]
        return {**asdict(self.promise), "passes": self.passes, "findings": findings}


def audit(
    procedure: Procedure,
    promise: Promise,
    *,
    trials: int = 1000,
    images: Sequence[int] = (100, 2500),
    candidates: Sequence[int] = (21, 201),
    populations: Sequence[Make] = POPULATIONS,
    seed: int = 0,
) -> Audit:
    """Try `procedure` on every population, with every number of `images` and of `candidates`.

    Args:
        populations: Functions of thresholds and the promised risk.
        seed: Of the draws; each setting has its own, so that leaving one out changes no other.
    """
    for name, values in (("trials", [trials]), ("images", images), ("candidates", candidates)):
        if not values or min(values) < 1:
            raise UsageError(f"{name} must be at least 1, not {values}.")
    findings = []
    for i, make in enumerate(populations):
        for n in images:
            for J in candidates:
                population = make(grid(J), promise.risk)
                rng = np.random.default_rng([seed, i, n, J])
                findings.append(_try(procedure, promise, population, n, trials, rng))
    return Audit(promise, tuple(findings))


def _try(
    procedure: Procedure,
    promise: Promise,
    population: Population,
    images: int,
    trials: int,
    rng: np.random.Generator,
) -> Finding:
    J = len(population.thresholds_J)
    chosen = []
    for first in range(0, trials, CHUNK):
        T = min(CHUNK, trials - first)
        sets = Trials(population, population.draw(images, T, rng), population.draw(images, T, rng))
        chosen.append(_checked(procedure(sets, promise), T, J))
    chosen_T = np.concatenate(chosen)
    # Index -1, nothing chosen, is the last entry: no risk, and no image leaves.
    breaks_J = np.append(_above(population.risks(promise.loss), promise.risk), False)
    leaving_J = np.append(population.leaving(), 0.0)
    broken = int(breaks_J[chosen_T].sum())
    return Finding(
        population=population.name,
        images=images,
        candidates=J,
        trials=trials,
        broken=broken,
        promised=promise.level,
        limit=float(lower_limit(broken, trials, SURE)),
        none=int((chosen_T == -1).sum()),
        leaving=float(leaving_J[chosen_T].mean()),
    )


def _above(risk_J: FloatArray, promised: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return risk_J > promised * (1 + 1e-9)  # a sum of shares that should equal the promise may miss it by rounding


def _checked(chosen_T: IntArray, T: int, J: int) -> IntArray:
    chosen_T = np.asarray(chosen_T)
    if chosen_T.shape != (T,) or chosen_T.dtype.kind not in "iu" or not ((chosen_T >= -1) & (chosen_T < J)).all():
        raise UsageError(
            f"A procedure returns one candidate for each of the {T} trials, a whole number from -1 (none) to {J - 1}; "
            f"found shape {list(chosen_T.shape)} of {chosen_T.dtype}."
        )
    return chosen_T
