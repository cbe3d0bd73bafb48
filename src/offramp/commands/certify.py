"""`offramp certify`: the cheapest policy of a finished run that keeps a promise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Unpack

from offramp.choices import Backend, Loss, MeasureName, Precision
from offramp.commands.options import ByHand, File, Flag, RecordsLogits, in_threads, target
from offramp.config import unset
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.terminal import say

if TYPE_CHECKING:
    from offramp.costs import Cost
    from offramp.evaluation import Certificate, Record
    from offramp.policy import Measure, Policy
    from offramp.results.policy_use import LadderUse, PolicyUse


@dataclass(frozen=True, kw_only=True)
class CertifyOptions(RecordsLogits):
    """Find the cheapest thresholds that provably keep a promise.

    The proof is from images that nothing else has touched. With probability CONFIDENCE over the draw of the certify
    images, the risk is at most RISK. Writes RUN/policy.json; with --ladder RUN/ladder.json.
    """

    risk: float = 0.01
    """What the risk is to be at most, between 0 and 1."""
    ladder: Annotated[str | None, unset("PERCENT,...")] = None
    """In place of --risk: rising risks in percent, such as 0.5,1,2,5.
    Finds a policy for each, whose promises hold all at once: what a server may slide along under load."""
    confidence: float = 0.95
    """How sure the promise is to be, between 0 and 1."""
    loss: Loss = "regret"
    """regret: share of images that leave early with a wrong answer though the full network is right;
    early-error: share of wrong answers among images that leave early; drop: accuracy lost."""
    per_class: Flag = False
    """Promise it for the images of each class."""
    measure: MeasureName = "softmax"
    """How an exit's confidence is read off its logits."""
    backend: Backend = "torch"
    """What runs the network on the images."""
    precision: Precision = "float32"
    """In which precision. A promise in float32 is of every backend's answers in float32;
    one in bf16 or int8 is of what this backend answers in it, and it is run so.
    Scales of int8 are found on the search images."""
    out: File = None
    """Write the policy, or the ladder, to FILE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ladder is not None and self.risk != CertifyOptions.risk:
            raise UsageError("Give one risk or a ladder of risks, not both.")

    def main(self) -> None:
        if self.ladder is not None:
            self._certify_ladder()
            return
        certified = certify(self, watch=IN_TERMINAL)
        from offramp.show.tables import exit_table

        certificate = certified.certificate
        _say_earlier(certificate)
        remark = str(certificate)
        print_result(certified.to_json, lambda: exit_table(certified, remark), [certified.written], as_json=self.json)

    def _certify_ladder(self) -> None:
        use = certify_ladder(self, watch=IN_TERMINAL)
        from offramp.show.tables import ladder_table

        _say_earlier(use.ladder.certificates[0])
        print_result(use.to_json, lambda: ladder_table(use), [use.written], as_json=self.json)


def _say_earlier(certificate: "Certificate | None") -> None:
    if certificate is not None and certificate.earlier:
        number = certificate.earlier + 1
        say(
            f"These images have certified before (this is certificate {number} at least). If you keep one of "
            f"several, divide 1 - confidence among them, here by {number}."
        )


@in_threads
def certify(
    options: CertifyOptions, *, measure: "Measure | None" = None, watch: Watch = QUIET, **by_hand: Unpack[ByHand]
) -> "PolicyUse":
    """Certify a finished run: thresholds from `search`, tests on `certify`; see `offramp.evaluation.certify`.

    The policy is written to `policy.json` in the run's folder, or to `out`. What it does on the certify images comes
    back with it.

    Raises:
        UsageError: Too few held-out images; a run that began with weights, or listened to a teacher, that were trained
            on the certify images.
        OfframpError: Nothing that lets an image leave early can be certified.
    """
    if options.ladder is not None:
        raise UsageError("These options ask for a ladder: call certify_ladder.")
    from offramp import evaluation
    from offramp.commands.policy_files import write_policy

    tried = _Tried.of(options, measure, watch, by_hand)
    policy = evaluation.certify(*tried.records, risk=options.risk, **tried.asked)
    (policy,) = tried.finished([policy])
    return write_policy(policy, tried.records[1], tried.records[2], tried.written)


@in_threads
def certify_ladder(
    options: CertifyOptions, *, measure: "Measure | None" = None, watch: Watch = QUIET, **by_hand: Unpack[ByHand]
) -> "LadderUse":
    """Certify policies of rising risk together, for the risks of `options.ladder`: see `evaluation.certify_ladder`.

    Written to `ladder.json` in the run's folder, or to `out`. Errors as of `certify`.
    """
    from offramp import evaluation
    from offramp.commands.policy_files import policy_use
    from offramp.ladder import check_risks
    from offramp.results.policy_use import LadderUse

    risks = _risks(options.ladder)
    check_risks(risks)
    tried = _Tried.of(options, measure, watch, by_hand)
    ladder = evaluation.certify_ladder(*tried.records, risks=risks, **tried.asked)
    ladder = replace(ladder, rungs=tuple(tried.finished(ladder.rungs)))
    ladder.save(tried.written)
    uses = (policy_use(policy, tried.records[1], tried.records[2], tried.written) for policy in ladder.rungs)
    return LadderUse(ladder, tried.written, tuple(uses))


def _risks(percent: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(Decimal(risk.strip()) / 100) for risk in (percent or "").split(","))
    except ArithmeticError as error:
        raise UsageError(
            f"A ladder is risks in percent with commas between, such as 0.5,1,2,5, not {percent!r}."
        ) from error


class _Tried(NamedTuple):
    """A run opened to be certified: what both kinds of certificates need."""

    folder: RunFolder
    written: Path  # the file of the policy or ladder
    records: "tuple[Record, Record, Cost]"  # of the search and the certify half, and what the network costs
    asked: dict[str, Any]  # arguments of both
    unknown: tuple[str, ...]
    form: str

    @classmethod
    def of(cls, options: CertifyOptions, measure: "Measure | None", watch: Watch, by_hand: ByHand) -> "_Tried":
        from offramp.commands.open_run import OpenRun
        from offramp.policy import Measure
        from offramp.runtime import Form
        from offramp.training.provenance import check_ancestors

        run = OpenRun(options, **by_hand)
        written = target(options.out, run.folder.policy if options.ladder is None else run.folder.ladder)
        unknown = check_ancestors(run.folder, run.config, run.parts)
        program = run.program(Form(options.backend, options.precision))
        with watch.bars() as progress:
            search, on_certify = run.held_out("search", "certify", progress=progress, program=program)
        asked = {
            "confidence": options.confidence,
            "loss": options.loss,
            "per_class": options.per_class,
            "measure": measure or Measure(options.measure),
        }
        answers = "float32" if program is None else program.answers
        return cls(run.folder, written, (search, on_certify, run.cost), asked, unknown, answers)

    def finished(self, policies: "Sequence[Policy]") -> "list[Policy]":
        """Policies certified together, whose certificates say also what is known of the run and of files before."""
        from offramp.commands.policy_files import certified_before
        from offramp.evaluation import Certificate

        files = {(self.folder.policy, self.folder.ladder), (self.written, self.written)}
        certificates = []
        for policy in policies:
            certificate = Certificate.of(policy)
            assert certificate is not None
            before = [one for paths in files for one in certified_before(*paths, certificate.promise)]
            certificates.append(replace(certificate, unknown=self.unknown, form=self.form).after(policy, before))
        earlier = max(certificate.earlier for certificate in certificates)
        return [
            replace(certificate, earlier=earlier).on(policy)
            for policy, certificate in zip(policies, certificates, strict=True)
        ]
