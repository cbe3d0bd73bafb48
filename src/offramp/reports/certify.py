"""A finished run, certified: the cheapest policy that keeps a promise, written into the run's folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from offramp.costs import cost
from offramp.data import Parts
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate
from offramp.evaluation import certify as certify_records
from offramp.evaluation.promises import Loss
from offramp.network import EarlyExitNet
from offramp.policy import SOFTMAX, Measure, Policy
from offramp.reports.loading import Progress, check_trained_on, held_out, network_of, parts_of
from offramp.reports.policy import PolicyUse, write_policy
from offramp.runs import RunFolder
from offramp.runtime.program import Backend, Form, Precision
from offramp.training.ancestors import check_ancestors


def certify(
    run: str | Path,
    *,
    risk: float = 0.01,
    confidence: float = 0.95,
    loss: Loss = "regret",
    per_class: bool = False,
    measure: Measure = SOFTMAX,
    backend: Backend = "torch",
    precision: Precision = "float32",
    out: str | Path | None = None,
    parts: Parts | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> PolicyUse:
    """Certify a finished run: thresholds from `search`, tests on `certify`; see `offramp.evaluation.certify`.

    Logits are kept in `records/` and used again as long as weights and images are the same. The policy is written to
    `policy.json` in the run's folder, or to `out`. What it does on the certify images comes back with it.

    Args:
        run: The run's folder.
        risk: With probability `confidence` over the draw of the certify images the risk is at most this.
        confidence: See `risk`.
        loss: What the risk is the mean of.
        per_class: Promise it for the images of each class.
        measure: How confidence is read off logits.
        backend: What runs the network on both halves.
        precision: In which precision. A certificate of float32's answers holds for every backend in float32; one of
            bf16's for this backend in bf16 alone, and engines run it so.
        out: Another file for the policy.
        parts: The data, for a run that was fit from Python with data made by hand.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
        progress: Called after each forward pass.

    Raises:
        UsageError: No run, an unfinished one, one without held-out images or with too few; other data; a run that began
            with weights, or listened to a teacher, that were trained on the certify images.
        OfframpError: Nothing that lets an image leave early can be certified.
    """
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    network = network_of(folder, into, device, "logits and the policy are written there")
    parts = parts or parts_of(folder, config, root, "offramp.reports.certify")
    check_trained_on(parts, folder, config)
    unknown = check_ancestors(folder, config, parts)
    form = Form(backend, precision)
    search, on_certify = held_out(
        folder, network, parts, ("search", "certify"), batch_size=batch_size, progress=progress, form=form
    )
    costs = cost(network, parts.test.image_shape)
    policy = certify_records(
        search,
        on_certify,
        costs,
        risk=risk,
        confidence=confidence,
        loss=loss,
        per_class=per_class,
        measure=measure,
    )
    certificate = Certificate.of(policy)
    assert certificate is not None
    written = folder.policy if out is None else Path(out).expanduser()
    before = [one for path in {folder.policy, written} for one in _readable(path)]
    of_answers = "float32" if precision == "float32" else str(form)
    policy = dataclasses.replace(certificate, unknown=unknown, form=of_answers).after(policy, before).on(policy)
    return write_policy(policy, on_certify, costs, written)


def _readable(path: Path) -> list[Policy]:
    """The policy in a file; none where there is none, or one whose certificate is not its own."""
    try:
        policy = Policy.load(path)
        Certificate.of(policy)
    except (UsageError, OfframpError, OSError):
        return []
    return [policy]
