"""`offramp audit`."""

import json
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from offramp.errors import OfframpError, UsageError

if TYPE_CHECKING:
    from offramp.evaluation import Audit


def audit(
    procedure: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROCEDURE")] = "certify",
    *,
    risk: float = 0.05,
    confidence: float = 0.9,
    loss: Literal["regret", "early-error", "drop"] = "regret",
    trials: int = 1000,
    images: tuple[int, ...] = (100, 2500),
    candidates: tuple[int, ...] = (21, 201),
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Try a procedure that promises a risk on made-up populations whose risks are known: how often does it break it?

    It fails, with status 1, where the exact lower 99.9 % limit of that rate is above 1 - CONFIDENCE.

    Args:
        procedure: certify (ours), first-uncertified and quantile (known to be wrong), or package.module:Name, a
            function (trials, promise) -> chosen candidates; see offramp.evaluation.audit.
        risk: The promised risk; above 1/6 not all of the populations exist.
        confidence: How often the promise is to be kept.
        loss: What the risk is the mean of: see `offramp certify --help`.
        trials: Calibration sets drawn in each setting.
        images: Images of a calibration set, one number for each setting.
        candidates: Thresholds to choose from, one number for each setting.
        seed: Of the draws, at least 0.
        as_json: Print one JSON object, and nothing else, to standard output.
    """
    from offramp.config import resolve
    from offramp.evaluation import Promise
    from offramp.evaluation import audit as run_audit
    from offramp.evaluation.audit import PROCEDURES
    from offramp.evaluation.populations import POPULATIONS, grid

    if seed < 0:
        raise UsageError(f"seed must be at least 0, not {seed}.")
    promise = Promise(risk, confidence, loss)
    for make in POPULATIONS:
        make(grid(1), promise.risk)  # one that cannot be made is said now, not after those before it
    report = run_audit(
        resolve(procedure, PROCEDURES, "procedure"),
        promise,
        trials=trials,
        images=images,
        candidates=candidates,
        seed=seed,
    )
    if as_json:
        print(json.dumps({"procedure": procedure, **report.to_json()}))
    else:
        _print_table(report)
    failed = sum(not finding.passes for finding in report.findings)
    if failed:
        raise OfframpError(f"{procedure} breaks its promise in {failed} of {len(report.findings)} settings.")


def _print_table(report: "Audit") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from offramp.reports.terminal import console

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("population", no_wrap=True)
    for name in ("images", "thresholds", "broken", "at least (99.9 %)", "promised", "", "none chosen", "leave early"):
        table.add_column(name, justify="right", no_wrap=True)
    for finding in report.findings:
        table.add_row(
            finding.population,
            f"{finding.images}",
            f"{finding.candidates}",
            f"{finding.rate:.2%}",
            f"{finding.limit:.2%}",
            f"{finding.promised:.2%}",
            "ok" if finding.passes else "BROKEN",
            f"{finding.none / finding.trials:.1%}",
            f"{finding.leaving:.1%}",
        )
    console().print(table)
