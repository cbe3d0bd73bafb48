"""Policies of rising certified risk, whose promises hold all at once: a server under load moves along them.

With probability `confidence` over the draw of the certify images, the risk of *every* rung is at most its own. So that
of any mixture of rungs is at most the highest used rung's, where images are given a rung without looking at them. How
it is proved: docs/method.md, "Promises"; `offramp.evaluation.ladder` finds them.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offramp.certificate import Certificate
from offramp.errors import UsageError
from offramp.json_files import convert, read, write
from offramp.policy import Policy
from offramp.storage import DamagedFileError

FORMAT = 1  # of the file
MOST_RUNGS = 100
_HINT = "`offramp certify --ladder` writes ladders."


@dataclass(frozen=True)
class LeftOut:
    """A rung that was asked for and is not there, and why, as a sentence."""

    risk: float
    why: str


@dataclass(frozen=True)
class Ladder:
    """Certified policies of one network, measure, form and loss; no threshold rises from a rung to the next.

    So an image leaves at no later exit on a higher rung.

    Attributes:
        rungs: By rising risk. Each can stand alone as a policy; the confidence in its own certificate is its own.
        confidence: With which the promises of all rungs hold at once.
        left_out: Rungs asked for that could not be certified, or only with the policy of the rung before.

    Raises:
        UsageError: Rungs that are not certified together, or not in this order.
    """

    rungs: tuple[Policy, ...]
    confidence: float
    left_out: tuple[LeftOut, ...] = ()

    def __post_init__(self) -> None:
        if not self.rungs:
            raise UsageError("A ladder has at least one rung.")
        doubt = (len(self.rungs) + len(self.left_out)) * max(1 - c.promise.confidence for c in self.certificates)
        if any(c.together != self.confidence for c in self.certificates) or doubt > 1 - self.confidence + 1e-9:
            raise UsageError("The rungs of a ladder are certified together, at the confidence it has.")
        shared = {
            (p.measure, p.network, p.certified_form, p.num_exits, c.promise.loss, c.per_class, c.fingerprint)
            for p, c in zip(self.rungs, self.certificates, strict=True)
        }
        if len(shared) > 1:
            raise UsageError("The rungs of a ladder have one network, measure, form, loss, and certify images.")
        for before, after in itertools.pairwise(self.rungs):
            if any(low > high for low, high in zip(after.thresholds, before.thresholds, strict=True)):
                raise UsageError("No threshold rises from a rung of a ladder to the next.")
        if any(later <= earlier for earlier, later in itertools.pairwise(self.risks)):
            raise UsageError("The risks of a ladder's rungs rise.")

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """Of each rung; `str` of it is what may be said of an answer."""
        certificates = [Certificate.of(policy) for policy in self.rungs]
        if any(certificate is None for certificate in certificates):
            raise UsageError("Every rung of a ladder has a certificate.")
        return tuple(certificate for certificate in certificates if certificate is not None)

    @property
    def risks(self) -> tuple[float, ...]:
        """What the risk of each rung is at most."""
        return tuple(certificate.promise.risk for certificate in self.certificates)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all."""
        content = {
            "format": FORMAT,
            "confidence": self.confidence,
            "rungs": [policy.to_json() for policy in self.rungs],
            "left_out": [asdict(rung) for rung in self.left_out],
        }
        write(Path(path).expanduser(), {**content, "sha256": _content_hash(content)})

    @classmethod
    def load(cls, path: str | Path) -> "Ladder":
        """Read what `save` wrote.

        Raises:
            UsageError: No such file, or none of this make.
            OfframpError: A damaged one.
        """
        source = Path(path).expanduser()
        content = read(source, dict[str, Any], hint=_HINT)
        if "rungs" not in content and "thresholds" in content:
            raise UsageError(f"{source} is one policy, no ladder. {_HINT}")
        digest = content.pop("sha256", None)
        written = convert(content, _Written, source, newest=FORMAT, exact=True, hint=_HINT)
        if digest not in (None, _content_hash(content)):
            raise DamagedFileError(f"{source} is damaged: its content does not have the hash it was written with.")
        rungs = [Policy.from_json(rung, f"{source}, rung {n}") for n, rung in enumerate(written.rungs, 1)]
        try:
            return cls(tuple(rungs), written.confidence, written.left_out)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error


def rungs_of(path: str | Path) -> tuple[Policy, ...]:
    """The rungs of a file with a ladder, or the one policy of a file with a policy; errors as of `Ladder.load`."""
    if "rungs" in read(Path(path).expanduser(), dict[str, Any], hint=_HINT):
        return Ladder.load(path).rungs
    return (Policy.load(path),)


@dataclass(frozen=True)
class _Written:
    """What stands in the file."""

    confidence: float
    rungs: tuple[dict[str, Any], ...]
    left_out: tuple[LeftOut, ...]
    format: int = FORMAT


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_risks(risks: Sequence[float]) -> None:
    """Refuse what are no rising risks, each between 0 and 1."""
    if not 0 < len(risks) <= MOST_RUNGS:
        raise UsageError(f"A ladder has from 1 to {MOST_RUNGS} rungs, not {len(risks)}.")
    for risk in risks:
        if not 0 < risk < 1:
            raise UsageError(f"The risk of a rung lies between 0 and 1 (0 and 100 %), both excluded, not {risk:g}.")
    if any(later <= earlier for earlier, later in itertools.pairwise(risks)):
        raise UsageError(f"The risks of a ladder rise from rung to rung, not {', '.join(f'{r:g}' for r in risks)}.")
