"""`offramp certify`: the cheapest policy of a finished run that keeps a promise."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.choices import Backend, Loss, MeasureName, Precision
from offramp.commands.options import File, Flag, RecordsLogits, in_threads
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.terminal import say

if TYPE_CHECKING:
    from offramp.data import PartsGiven
    from offramp.network import EarlyExitNet
    from offramp.policy import Measure
    from offramp.results.policy_use import PolicyUse


@dataclass(frozen=True, kw_only=True)
class CertifyOptions(RecordsLogits):
    """Find the cheapest thresholds that provably keep a promise.

    The proof is from images that nothing else has touched. With probability CONFIDENCE over the draw of the certify
    images, the risk is at most RISK. Writes RUN/policy.json.
    """

    risk: float = 0.01
    """What the risk is to be at most, between 0 and 1."""
    confidence: float = 0.95
    """How sure the promise is to be, between 0 and 1."""
    loss: Loss = "regret"
    """regret: share of images that leave early with a wrong answer though the full network is right; early-error: share
    of wrong answers among images that leave early; drop: accuracy lost."""
    per_class: Flag = False
    """Promise it for the images of each class."""
    measure: MeasureName = "softmax"
    """How an exit's confidence is read off its logits."""
    backend: Backend = "torch"
    """What runs the network on the images."""
    precision: Precision = "float32"
    """In which precision. A promise in float32 is of every backend's answers in float32; one in bf16 or int8 is of what
    this backend answers in it, and it is run so. Scales of int8 are found on the search images."""
    out: File = None
    """Write the policy to FILE."""

    def main(self) -> None:
        """See `Options.main`."""
        certified = certify(self, watch=IN_TERMINAL)
        from offramp.show.tables import exit_table

        certificate = certified.certificate
        if certificate is not None and certificate.earlier:
            number = certificate.earlier + 1
            say(
                f"These images have certified before (this is certificate {number} at least). If you keep one of "
                f"several, divide 1 - confidence among them, here by {number}."
            )
        remark = str(certificate)
        print_result(certified.to_json, lambda: exit_table(certified, remark), [certified.written], as_json=self.json)


@in_threads
def certify(
    options: CertifyOptions,
    *,
    measure: "Measure | None" = None,
    parts: "PartsGiven | None" = None,
    into: "EarlyExitNet | None" = None,
    watch: Watch = QUIET,
) -> "PolicyUse":
    """Certify a finished run: thresholds from `search`, tests on `certify`; see `offramp.evaluation.certify`.

    Logits are kept in `records/` and used again as long as weights and images are the same. The policy is written to
    `policy.json` in the run's folder, or to `out`. What it does on the certify images comes back with it.

    `parts` are the data, and `into` is a network of the same make, of a run that was fit from Python with those made by
    hand. `measure` is how confidence is read off logits, where a name does not say it all.

    Raises:
        UsageError: No run, an unfinished one, one without held-out images or with too few; other data; a run that began
            with weights, or listened to a teacher, that were trained on the certify images.
        OfframpError: Nothing that lets an image leave early can be certified.
    """
    from offramp import evaluation
    from offramp.commands.open_run import OpenRun
    from offramp.commands.policy_files import certified_before, write_policy
    from offramp.policy import Measure
    from offramp.runtime import Form
    from offramp.training.provenance import check_ancestors

    run = OpenRun(options, "certify", "logits and the policy are written there", parts, into)
    unknown = check_ancestors(run.folder, run.config, run.parts)
    program = run.program(Form(options.backend, options.precision))
    with watch.bars() as progress:
        search, on_certify = run.held_out("search", "certify", progress=progress, program=program)
    policy = evaluation.certify(
        search,
        on_certify,
        run.cost,
        risk=options.risk,
        confidence=options.confidence,
        loss=options.loss,
        per_class=options.per_class,
        measure=measure or Measure(options.measure),
    )
    certificate = evaluation.Certificate.of(policy)
    assert certificate is not None
    own = run.folder.policy
    written = own if options.out is None else Path(options.out).expanduser()
    before = [policy for path in {own, written} for policy in certified_before(path)]
    answers = "float32" if program is None else program.answers
    policy = dataclasses.replace(certificate, unknown=unknown, form=answers).after(policy, before).on(policy)
    return write_policy(policy, on_certify, run.cost, written)
