"""`offramp audit`: how often a procedure that promises a risk breaks its promise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.checks import whole
from offramp.choices import Loss
from offramp.commands.options import Computes, in_threads
from offramp.config import resolve
from offramp.errors import OfframpError
from offramp.show.terminal import print_result

if TYPE_CHECKING:
    from offramp.evaluation import Audit


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Computes):
    """Count how often a procedure breaks the risk that it promises.

    On made-up populations whose risks are known.

    It fails, with status 1, where the exact lower 99.9 % limit of that rate is above 1 - CONFIDENCE.
    """

    procedure: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROCEDURE")] = "certify"
    """certify (ours), first-uncertified and quantile (known to be wrong), or package.module:Name;
    that is a function of trials and promise that chooses candidates: see offramp.evaluation.audit."""
    risk: float = 0.05
    """The promised risk; above 1/6 not all of the populations exist."""
    confidence: float = 0.9
    """How often the promise is to be kept."""
    loss: Loss = "regret"
    """What the risk is the mean of: see `offramp certify --help`."""
    trials: int = 1000
    """Calibration sets drawn in each setting."""
    images: tuple[int, ...] = (100, 2500)
    """Images of a calibration set, one number for each setting."""
    candidates: tuple[int, ...] = (21, 201)
    """Thresholds to choose from, one number for each setting."""
    seed: Annotated[int, whole(0)] = 0
    """Of the draws, at least 0."""

    def main(self) -> None:
        result = audit(self)
        from offramp.show.tables import audit_table

        print_result(
            lambda: {"procedure": self.procedure, **result.to_json()},
            lambda: audit_table(result),
            [],
            as_json=self.json,
        )
        failed = sum(not finding.passes for finding in result.findings)
        if failed:
            raise OfframpError(f"{self.procedure} breaks its promise in {failed} of {len(result.findings)} settings.")


@in_threads
def audit(options: AuditOptions) -> "Audit":
    """Try a procedure by its name: see `offramp.evaluation.audit`."""
    from offramp import evaluation
    from offramp.evaluation.audit import PROCEDURES
    from offramp.evaluation.populations import POPULATIONS, grid

    promise = evaluation.Promise(options.risk, options.confidence, options.loss)
    for make in POPULATIONS:
        make(grid(1), promise.risk)  # one that cannot be made is said now, not after those before it
    return evaluation.audit(
        resolve(options.procedure, PROCEDURES, "procedure"),
        promise,
        trials=options.trials,
        images=options.images,
        candidates=options.candidates,
        seed=options.seed,
    )
