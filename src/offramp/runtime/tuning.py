"""What `tune` found, as a value that can be kept and applied again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from offramp.choices import Backend
from offramp.errors import OfframpError, UsageError
from offramp.json_files import convert, read
from offramp.policy import CERTIFICATE, Policy
from offramp.runtime.choice import TimeTable
from offramp.runtime.plan import Plan
from offramp.runtime.program import Form, Program, check_form
from offramp.runtime.runner import Runner
from offramp.runtime.timing import conditions
from offramp.storage import weights_hash

FORMAT = 2  # 1: forms of torch by layout, folding and packing
_MATTERS = ("device", "threads", "torch", "kernels_kept")  # of the conditions: what times depend on most


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as straight on the best plan with exits is.

    Attributes:
        expected: By the time table; 1 where no exit may be asked.
        measured: In turns with straight on; None: nothing to expect, so it was not tried.
    """

    expected: float
    measured: float | None


@dataclass(frozen=True)
class Trial:
    """A form that was tried.

    Attributes:
        admitted: Whether its answers are those of the plain network but for rounding (`Agreement.is_rounding`).
        flips: Images on which rounding decided (`Agreement`).
        wrong: Images that differ for another reason.
        straight_ms: Straight on in one piece, by number of images; empty where nothing was to be compared.
        setting_up_s: Seconds until it had run for the first time, which are beside the time for tuning.
        reason: Why it could not be run at all; None: it could.
    """

    form: Form
    admitted: bool
    flips: int
    wrong: int
    straight_ms: Mapping[str, float]
    setting_up_s: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Tuning:
    """How an engine is set up for one machine, network and policy.

    Attributes:
        form: For all.
        plans: By size of batch.
        stream: The plan for streams.
        gains: By size of batch, as a word, and for `stream`, where it was tuned too.
        chunks: How straight on is fastest, likewise.
        exit_ms: Milliseconds per image that leaves at each exit, were all exits asked, likewise.
        table: The milliseconds that plans were chosen by.
        forms: All forms tried; those that are not admitted cannot be used.
        policy: What of the policy matters here: measure, thresholds, whether it has a certificate.
    """

    form: Form
    plans: Mapping[int, Plan]
    stream: Plan
    gains: Mapping[str, Speedup]
    chunks: Mapping[str, int | None]
    exit_ms: Mapping[str, tuple[float, ...]]
    table: TimeTable
    forms: tuple[Trial, ...]
    conditions: Mapping[str, Any]
    weights: str
    policy: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.plans or min(self.plans) < 1 or not {str(size) for size in self.plans} <= self.chunks.keys():
            raise ValueError("plans and chunks are not for the same sizes of batches")

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))
        return plain

    @classmethod
    def from_json(cls, content: Any) -> "Tuning":
        """From what `to_json` gave; anything else, or of another version, is refused."""
        hint = "Tune the engine anew."
        number = content.get("format", FORMAT) if isinstance(content, dict) else None
        if isinstance(number, int) and number > FORMAT:
            raise UsageError(f"This tuning is of a newer offramp (format {number}). Update it, or tune anew.")
        if number != FORMAT:
            raise UsageError(f"This is not a tuning, or it is of another version of offramp. {hint}")
        try:
            values = {key: value for key, value in content.items() if key != "format"}
            return convert(values, cls, "it", exact=True, hint=hint)
        except OfframpError as error:
            raise UsageError(f"This is not a tuning: {error}") from error


def described(policy: Policy) -> dict[str, Any]:
    """What of a policy a tuning depends on."""
    of_policy = {"measure": asdict(policy.measure), "thresholds": policy.thresholds}
    plain: dict[str, Any] = json.loads(json.dumps({**of_policy, "certified": CERTIFICATE in policy.found}))
    return plain


def adopt(
    runner: Runner, tuning: Tuning, *, only_here: bool = False, program: "Program | None" = None
) -> tuple[str, ...]:
    """See `Engine.adopt`.

    `only_here`: leave the runner as it is where something differs. `program`: one in the tuning's form, if there.
    """
    weights = weights_hash(runner.network.state_dict())
    if tuning.weights != weights:
        raise UsageError(
            f"This tuning is for the network with weights {tuning.weights[:12]}, not {weights[:12]}. Tune anew."
        )
    here = described(runner.policy)
    other = [name for name, value in here.items() if tuning.policy.get(name) != value]
    if other:
        raise UsageError(f"This tuning is for another policy: {' and '.join(other)} differ. Tune the engine anew.")
    now = conditions(runner.program.device)
    matters = dict.fromkeys((*_MATTERS, tuning.form.backend))
    differs = tuple(
        f"{name}: tuned for {tuning.conditions.get(name)}, here {now[name]}"
        for name in matters
        if tuning.conditions.get(name) != now[name]
    )
    if not (only_here and differs):
        chunks = {size: tuning.chunks[str(size)] for size in tuning.plans}
        runner.use(tuning.form, tuning.plans, tuning.stream, chunks=chunks, program=program)
    return differs


def adopt_file(
    runner: Runner, file: Path, *, backend: Literal["auto", Backend] = "auto"
) -> tuple[bool, tuple[str, ...]]:
    """Whether the runner now runs as a run's `bench.json` says, and what differs where that was for another machine.

    What was measured for other weights, another policy or another backend than wanted, or is damaged, is as good as
    nothing. What was tuned in one form before the policy was certified in another is named.
    """
    try:
        tuning = Tuning.from_json(read(file, dict[str, Any])["tuning"])
        if backend not in ("auto", tuning.form.backend):
            return False, ()
        try:
            check_form(tuning.form, runner.policy)
        except UsageError:
            return False, (f"{tuning.form}: the certificate is of answers in {runner.policy.certified_form}",)
        differs = adopt(runner, tuning, only_here=True)
    except (UsageError, OfframpError, OSError, KeyError):
        return False, ()
    return not differs, differs
