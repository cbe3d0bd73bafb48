"""Who leaves at which exit: a confidence measure and one threshold per exit, in a small frozen value.

K exits, B rows (images) still there, S images of a data set, N classes, C outputs of an exit (N, or N + 1 with the
damping neuron). Exits are numbered from 0.

A policy knows logits and nothing else: recorded logits (`choose`) or one exit's at a time, as stages are run
(`log_probs`, then `leave`). Both ways give the same answers, because both do the same arithmetic on each row.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor

from offramp.checks import check_name
from offramp.choices import MeasureName
from offramp.errors import UsageError
from offramp.json_files import convert, read, write
from offramp.network import class_log_probs
from offramp.storage import DamagedFileError

FORMAT = 2  # of the file; 1 has no hash
NOBODY, EVERYBODY = 1e8, -1e8  # thresholds of an exit that takes no image and of one that takes all
_HINT = "`offramp policy` and `offramp certify` write policies."
CERTIFICATE = "certificate"  # in `Policy.found`: what is promised of it, see certificate.py

# What is remembered of each row from exit to exit: tensors, batch first; code that drops rows drops them here too.
State = tuple[Tensor, ...]


def _softmax(log_probs_BN: Tensor) -> Tensor:
    largest_B: Tensor = log_probs_BN.amax(-1)
    return largest_B.exp()


def _margin(log_probs_BN: Tensor) -> Tensor:
    first_second_B2 = log_probs_BN.topk(2, -1).values.exp()
    return first_second_B2[..., 0] - first_second_B2[..., 1]


def _negative_entropy(log_probs_BN: Tensor) -> Tensor:
    probs_BN = log_probs_BN.exp()
    classes_B = probs_BN.sum(-1)
    of_classes_B: Tensor = torch.special.entr(probs_BN).sum(-1) - torch.special.entr(classes_B)
    # The damping neuron's share may be any class. Left out, an image given wholly to the neuron would have entropy 0.
    return -(of_classes_B + (1 - classes_B) * math.log(probs_BN.shape[-1]))


_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": _softmax,
    "margin": _margin,
    "entropy": _negative_entropy,
}
PATIENCE = "patience"
_MEANINGS = {
    "softmax": "the largest class probability",
    "margin": "the largest class probability less the second",
    "entropy": "minus the entropy of the classes, in nats",
    PATIENCE: "how many times in a row exits have agreed",
}


@dataclass(frozen=True)
class Measure:
    """How sure an exit is of an image: the larger, the surer, whatever the name.

    Attributes:
        name: `softmax`: the largest class probability, in [0, 1] (the published protocol). `margin`: the largest less
            the second, in [0, 1]. `entropy`: minus the entropy of the classes, in [-ln N, 0] nats: that of the classes
            renormalised, times their share, and ln N times the damping neuron's share. `patience`: how many times in a
            row an exit has agreed with the one before it (0 at the first), up to this one (Zhou et al., NeurIPS 2020).
        renormalise: Whether the classes' probabilities sum to 1 (reading A9(a)) or to what the damping neuron leaves
            (A9(b)); the same without the neuron.
        temperatures: One per exit, dividing its logits; None for none.

    Raises:
        UsageError: An unknown name, temperatures that are not above 0, `patience` with a setting that cannot change it.
    """

    name: str = "softmax"
    renormalise: bool = False
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_name("measure", self.name, get_args(MeasureName))
        if self.name == PATIENCE and (self.renormalise or self.temperatures is not None):
            raise UsageError("patience looks only at answers: neither renormalise nor temperatures can change it.")
        if self.temperatures is not None:
            object.__setattr__(self, "temperatures", tuple(float(value) for value in self.temperatures))
            if not all(0 < value < math.inf for value in self.temperatures):
                raise UsageError(f"Temperatures must be finite and above 0, not {self.temperatures}.")

    @property
    def meaning(self) -> str:
        """What the confidence is, in words."""
        return _MEANINGS[self.name]

    def log_probs(self, k: int, logits_BC: Tensor, num_classes: int) -> Tensor:
        """Log-probabilities `[B, N]` of the classes as this measure reads exit k's logits `[B, C]`."""
        if self.temperatures is not None:
            dtype = torch.promote_types(logits_BC.dtype, torch.float32)
            logits_BC = logits_BC.to(dtype) / self.temperatures[k]
        return class_log_probs(logits_BC, num_classes, renormalise=self.renormalise)

    def confidence(self, log_probs_BN: Tensor, state: State = ()) -> tuple[Tensor, State]:
        """Confidence `[B]` for one exit's `log_probs`, and what the next exit needs to be given as `state`.

        The first exit is given none. A row with a probability that is not a number has confidence NaN.
        """
        if self.name == PATIENCE:
            return _agreements(log_probs_BN, state)
        return _MEASURES[self.name](log_probs_BN), ()

    def over(self, logits_KSC: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Confidences `[K, S]` and answers `[K, S]` (classes, int64) of every exit, on recorded logits."""
        self.check_exits(len(logits_KSC))
        state: State = ()
        confidences, labels = [], []
        for k, logits_SC in enumerate(logits_KSC):  # one exit at a time: all at once would copy a large record
            log_probs_SN = self.log_probs(k, logits_SC, num_classes)
            confidence_S, state = self.confidence(log_probs_SN, state)
            confidences.append(confidence_S)
            labels.append(log_probs_SN.argmax(-1))
        return torch.stack(confidences), torch.stack(labels)

    def check_exits(self, num_exits: int) -> None:
        """Refuse another number of temperatures than exits."""
        if self.temperatures is not None and len(self.temperatures) != num_exits:
            raise UsageError(f"There are {len(self.temperatures)} temperatures for {num_exits} exits.")


SOFTMAX = Measure()  # the published one


def _agreements(log_probs_BN: Tensor, state: State) -> tuple[Tensor, State]:
    labels_B, broken_B = log_probs_BN.argmax(-1), log_probs_BN.isnan().any(-1)
    run_B = torch.zeros_like(log_probs_BN[..., 0])
    if state:
        labels_before_B, run_before_B = state
        run_B = torch.where(labels_B == labels_before_B, run_before_B + 1, run_B)
    run_B = run_B.masked_fill(broken_B, math.nan)
    # A broken row agrees with nothing, before or after: -1 is no class, and the run starts again at 0.
    return run_B, (labels_B.masked_fill(broken_B, -1), run_B.nan_to_num(0.0))


class Choice(NamedTuple):
    """What a policy answers for each image."""

    exits_S: Tensor
    """The exit taken, from 0, int64."""
    labels_S: Tensor
    """The class answered, int64."""
    confidence_S: Tensor
    """The confidence of that exit, in the measure's units."""


@dataclass(frozen=True)
class Policy:
    """An image leaves at the first exit whose confidence is at least (`>=`) that exit's threshold.

    Attributes:
        thresholds: One per exit. The last is `EVERYBODY` (-1e8): the last exit takes every image. `NOBODY` (1e8) keeps
            an exit from taking any. A confidence that is NaN reaches no threshold.
        measure: How confidence is read off logits.
        found: How and on which data the thresholds were found, as JSON values: `procedure`, `split`, `fingerprint`,
            and what the procedure adds. Empty for thresholds set by hand.
        network: Hash of the weights they were found for (`storage.weights_hash`); None if they are for any.

    Raises:
        UsageError: Thresholds that are not finite, a last one that would hold images back, as many temperatures as
            there are not exits, `found` that JSON cannot hold.
    """

    thresholds: tuple[float, ...]
    measure: Measure = SOFTMAX
    found: Mapping[str, Any] = field(default_factory=dict)
    network: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(float(threshold) for threshold in self.thresholds))
        if not all(map(math.isfinite, self.thresholds)):
            raise UsageError(f"Thresholds must be finite ({NOBODY:g} takes no image), not {self.thresholds}.")
        if self.thresholds[-1:] != (EVERYBODY,):
            raise UsageError(
                f"The last of the thresholds must be {EVERYBODY:g}: the last exit takes every image that is left. "
                f"Found {self.thresholds}."
            )
        self.measure.check_exits(self.num_exits)
        try:
            plain = json.loads(json.dumps(dict(self.found), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"`found` must hold JSON values: {error}.") from error
        object.__setattr__(self, "found", plain)

    @classmethod
    def to_the_end(cls, num_exits: int) -> Self:
        """No image leaves early: the last exit answers all."""
        return cls((*[NOBODY] * (num_exits - 1), EVERYBODY))

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.thresholds)

    @property
    def certified_form(self) -> str | None:
        """Of which answers its certificate is: `float32`, or a backend and precision; None without a certificate."""
        certificate = self.found.get(CERTIFICATE)
        if certificate is None:
            return None
        return str(certificate.get("form", "float32")) if isinstance(certificate, Mapping) else "float32"

    def log_probs(self, k: int, logits_BC: Tensor, num_classes: int) -> Tensor:
        """Log-probabilities `[B, N]` of exit k's logits `[B, C]`, as the measure reads them."""
        return self.measure.log_probs(k, logits_BC, num_classes)

    def takes(self, k: int, confidence_B: Tensor) -> Tensor:
        """Which rows, of those that reach exit k, leave there, given its confidences: a mask `[B]`."""
        if k == self.num_exits - 1:
            return torch.ones_like(confidence_B, dtype=torch.bool)
        return confidence_B >= self.thresholds[k]

    def leave(self, k: int, log_probs_BN: Tensor, state: State = ()) -> tuple[Tensor, State]:
        """Which rows leave at exit k: a mask `[B]`, and the state to give to exit k + 1 for the rows that go on.

        `log_probs_BN` come from `log_probs`; the first exit is given no state. States hold one entry per row: index
        their tensors as the rows are indexed.
        """
        confidence_B, state = self.measure.confidence(log_probs_BN, state)
        return self.takes(k, confidence_B), state

    def choose(self, logits_KSC: Tensor, num_classes: int) -> Choice:
        """Exits, answers and confidences on recorded logits: what stepping through the exits would give."""
        if len(logits_KSC) != self.num_exits:
            raise UsageError(f"This policy is for {self.num_exits} exits; the logits are of {len(logits_KSC)}.")
        confidence_KS, labels_KS = self.measure.over(logits_KSC, num_classes)
        exits_S = self.exits(confidence_KS)
        rows_S = torch.arange(logits_KSC.shape[1], device=logits_KSC.device)
        return Choice(exits_S, labels_KS[exits_S, rows_S], confidence_KS[exits_S, rows_S])

    def exits(self, confidence_KS: Tensor) -> Tensor:
        """The exit `[S]` (from 0) that each image takes, given every exit's confidence in it."""
        exits_S = torch.full_like(confidence_KS[0], self.num_exits - 1, dtype=torch.int64)
        for k in range(self.num_exits - 2, -1, -1):
            exits_S.masked_fill_(self.takes(k, confidence_KS[k]), k)
        return exits_S

    def fingerprint(self) -> str:
        """SHA-256 of what decides who leaves where: measure and thresholds."""
        decides = {"measure": asdict(self.measure), "thresholds": self.thresholds}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def check_network(self, weights: str) -> None:
        """Refuse a network (by the hash of its weights) that the thresholds were not found for."""
        if self.network not in (None, weights):
            raise UsageError(
                f"This policy was found for the network with weights {self.network[:12]}, not {weights[:12]}: its "
                f"thresholds say nothing here. Find thresholds for this network."
            )

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        content = {
            "format": FORMAT,
            "measure": asdict(self.measure),
            "thresholds": self.thresholds,
            "network": self.network,
            "found": self.found,
        }
        return {**content, "sha256": _content_hash(content)}

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all; equal policies give equal bytes."""
        write(Path(path).expanduser(), self.to_json(), sort_keys=True)

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """Read what `save` wrote."""
        source = Path(path).expanduser()
        return cls.from_json(read(source, dict[str, Any], newest=FORMAT, hint=_HINT), source)

    @classmethod
    def from_json(cls, value: Any, source: object) -> "Policy":
        """The inverse of `to_json`; `source` says in errors where it stands. See `load`."""
        content = convert(value, dict[str, Any], source, newest=FORMAT, hint=_HINT)
        if "rungs" in content:
            raise UsageError(
                f"{source} is a ladder of policies, for `offramp serve`. Here one policy is needed: `offramp certify` "
                "without --ladder writes one, and `offramp.evaluation.Ladder.load(...).rungs` are some."
            )
        content = dict(content)
        number, digest = content.pop("format", FORMAT), content.pop("sha256", None)
        policy = convert(content, cls, source, exact=True, hint=_HINT)
        if digest not in (None, _content_hash({"format": number, **content})):
            raise DamagedFileError(
                f"{source} is damaged: its content does not have the hash it was written with. Find the policy anew; "
                "where you changed it by hand, take its sha256 out."
            )
        return policy


def _content_hash(content: Mapping[str, Any]) -> str:
    """Of the JSON values that are written, which are the same when read."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def geometric_shares(p: Sequence[float], num_exits: int) -> Tensor:
    """The share of images that is to leave at each exit, `[J, K]`: p^k / (p + ... + p^K) for k = 1...K, for each p.

    In single precision and in this order, as the original evaluators compute it, so that floors agree.
    """
    if not all(value > 0 for value in p):
        raise UsageError(f"Each p must be above 0, not {min(p)}.")
    exponents_K = torch.arange(1, num_exits + 1, dtype=torch.float32)
    logs_JK = torch.tensor(p, dtype=torch.float32).log()[:, None] * exponents_K
    powers_JK = logs_JK.exp()
    total_J1 = powers_JK.sum(1, keepdim=True)
    # Large powers of many exits overflow; divided by the largest, which the softmax does, they do not.
    return torch.where(total_J1.isfinite(), powers_JK / total_J1, logs_JK.softmax(1))
