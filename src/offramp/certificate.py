"""What is promised of a policy, and what that rests on: a certificate, which travels in the policy.

How promises are tested: `offramp.evaluation.promises`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from offramp.checks import did_you_mean
from offramp.choices import Loss
from offramp.errors import OfframpError, UsageError
from offramp.json_files import convert
from offramp.policy import CERTIFICATE, Policy

LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True)
class Promise:
    """With probability `confidence` over the draw of the certify images, the risk is at most `risk`.

    Attributes:
        risk: In (0, 1).
        confidence: In (0, 1).
        loss: `regret`: an image leaves early with a wrong answer though the last exit is right; the risk is the share
            of such images among all, never less than the accuracy lost. `early-error`: the share of wrong answers among
            the images that leave early. `drop`: the accuracy lost against the last exit, where images that only the
            early answer gets right make up for others.
    """

    risk: float = 0.01
    confidence: float = 0.95
    loss: Loss = "regret"

    def __post_init__(self) -> None:
        for name in ("risk", "confidence"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise UsageError(f"{name} must lie between 0 and 1, both excluded, not {value!r}.")
        if self.loss not in LOSSES:
            raise UsageError(f"Unknown loss {self.loss!r}.{did_you_mean(str(self.loss), LOSSES)}")

    @property
    def level(self) -> float:
        """The probability with which the promise may be broken, 1 - confidence."""
        return 1 - self.confidence


@dataclass(frozen=True)
class Disagreement:
    """How often the early answer is another class than the last exit's would be, among images that leave early.

    It needs no labels, so it can be watched where the policy is used (`offramp.serve.guard`). It is no part of the
    promise: two exits also differ where both are wrong, or where the early one alone is right. But an image lost to
    `regret` is one on which they differ.

    Attributes:
        early: Images of the certify half that leave early.
        differing: Those of them whose two answers differ.
        limit: Of the share, in [0, 1]: with probability `confidence` over the draw of the certify images it is at most
            this for every candidate at once, and so for the one chosen, and for all rungs of a ladder.
    """

    early: int
    differing: int
    limit: float
    confidence: float


@dataclass(frozen=True)
class Certificate:
    """What is promised of a policy, and what it rests on. It travels in the policy: `Certificate.of(policy)`.

    Attributes:
        per_class: Whether it is promised of the images of each class, of all classes at once.
        bound: The p-value.
        images: Images of the certify half.
        counted: Those that the risk is a share of: all, or for `early-error` those that leave early.
        lost: Images with a loss of 1 under the policy.
        gained: Images with a loss of -1.
        candidates: Policies that might have been chosen, all from the search half.
        policy: Hash of the measure and the thresholds it was made for (`Policy.fingerprint`); None in files from before
            this was recorded: whether they are still the same cannot be checked.
        unknown: What the network learnt from of which it cannot be known whether it was trained on these images.
        earlier: Other certificates that were made with these images before, as far as the policies' files told.
        copies: Images of the certify half that repeat others of it or images of the search half. The tests were passed
            with them and without them; `counted`, `lost` and `gained` are without them.
        form: Of which logits it is: `float32`, by any backend, or one backend and precision, such as `openvino, bf16`.
        together: The confidence with which all promises of its ladder hold at once; None where it is of no ladder.
        disagreement: What a guard may watch; None in files from before this was recorded.
    """

    promise: Promise
    per_class: bool
    method: str
    bound: str
    images: int
    counted: int
    lost: int
    gained: int
    candidates: int
    split: str
    fingerprint: str
    weights: str
    policy: str | None = None
    unknown: tuple[str, ...] = ()
    earlier: int = 0
    copies: int = 0
    form: str = "float32"
    together: float | None = None
    disagreement: Disagreement | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Certificate":
        """The inverse of `to_json`.

        Raises:
            UsageError: Something else.
        """
        try:
            read = convert(value, cls, "The policy's certificate", exact=True, hint="A newer offramp may know it.")
        except OfframpError as error:
            raise UsageError(str(error)) from error
        missing = asdict(read.promise).keys() - value["promise"].keys()
        if missing:  # its defaults would promise what was not proved
            raise UsageError(f"The policy's certificate is damaged: its promise has no {min(missing)}.")
        return read

    @classmethod
    def of(cls, policy: Policy) -> "Certificate | None":
        """The certificate that travels in `policy`; None where there is none.

        Raises:
            UsageError: A damaged one, or one that was made for other thresholds, another measure or another network.
        """
        if CERTIFICATE not in policy.found:
            return None
        certificate = cls.from_json(policy.found[CERTIFICATE])
        other = policy.network not in (None, certificate.weights)
        if certificate.policy is not None:
            other |= (certificate.policy, certificate.weights) != (policy.fingerprint(), policy.network)
        if other:
            raise UsageError(
                "The policy holds a certificate of other thresholds, another measure or another network: nothing is "
                "promised of it as it is. Certify anew, or take the certificate out."
            )
        return certificate

    def after(self, policy: Policy, before: Sequence[Policy]) -> "Certificate":
        """This one of `policy`, which counts those of the same images among policies made `before`.

        The same once more, promise, measure and thresholds, is no other.
        """
        earlier = 0
        for other_policy in before:
            certificate = Certificate.of(other_policy)
            if certificate is not None and certificate.fingerprint == self.fingerprint:
                promised = (certificate.promise, certificate.per_class, other_policy.fingerprint(), certificate.weights)
                same = promised == (self.promise, self.per_class, policy.fingerprint(), self.weights)
                earlier = max(earlier, certificate.earlier + (not same))
        return replace(self, earlier=earlier)

    def on(self, policy: Policy) -> Policy:
        """The policy with this certificate in it, made to be of its measure and thresholds."""
        mine = replace(self, policy=policy.fingerprint())
        return replace(policy, found={**policy.found, CERTIFICATE: mine.to_json()}, network=self.weights)

    def __str__(self) -> str:
        of_what = {
            "regret": "the share of images that leave early with a wrong answer though the full network is right",
            "early-error": "the share of wrong answers among the images that leave early",
            "drop": "the accuracy lost against the full network",
        }[self.promise.loss]
        where = ", in every class," if self.per_class else ""
        gains = f", {self.gained} gained" if self.promise.loss == "drop" else ""
        doubts = "" if self.policy is not None else " Unchecked: that it was made for these thresholds."
        if self.unknown:
            doubts += f" Not known: whether these images were among those that trained {', '.join(self.unknown)}."
        if self.copies:
            doubts += (
                f" Of the {self.images} images {self.copies} repeat others, or images of the search half: they are not "
                "counted here, and the promise stands with them as well."
            )
        if self.form != "float32":
            doubts += f" It is of what {self.form} answers, and of nothing else."
        if self.earlier:
            doubts += f" Certificates made before with the same images: at least {self.earlier}."
        at_once = "" if self.together is None else f" ({self.together} for all rungs of its ladder at once)"
        return (
            f"With {self.promise.confidence} confidence{at_once} {of_what}{where} is at most {self.promise.risk} "
            f"({self.lost} of {self.counted} images of {self.split}{gains}; {self.bound}; {self.method}, "
            f"{self.candidates} candidates).{doubts}"
        )
