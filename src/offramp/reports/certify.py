"""A finished run, certified: the cheapest policy that keeps a promise, written into the run's folder."""

from dataclasses import dataclass
from pathlib import Path

import torch

from offramp.costs import Cost, cost
from offramp.data import Parts
from offramp.errors import UsageError
from offramp.evaluation import Certificate, Record, recorded
from offramp.evaluation import certify as certify_records
from offramp.evaluation.promises import Loss
from offramp.network import EarlyExitNet
from offramp.policy import SOFTMAX, Measure, Policy
from offramp.reports.evaluate import Progress, check_trained_on, named, network_of, parts_of
from offramp.runs import RunFolder


@dataclass(frozen=True)
class ExitUse:
    """What a policy does at one exit on the certify images.

    Attributes:
        threshold: Confidence from which an image leaves.
        share: Share of all images that leaves here, in [0, 1].
        top1: Accuracy of those images, in percent; None where none leaves.
        full_top1: Accuracy of the last exit on the same images.
    """

    threshold: float
    share: float
    top1: float | None
    full_top1: float | None


@dataclass(frozen=True)
class Certified:
    """A certified policy, where it was written, and what it does on the certify images (descriptions, no promises).

    Attributes:
        policy: The policy.
        certificate: What is promised of it.
        written: The policy's file.
        exits: What happens at each exit.
        operations: Mean operations per image, with the heads of all exits up to the one taken.
        full_operations: Those of the whole network.
    """

    policy: Policy
    certificate: Certificate
    written: Path
    exits: tuple[ExitUse, ...]
    operations: float
    full_operations: int


def certify(
    run: str | Path,
    *,
    risk: float = 0.01,
    confidence: float = 0.95,
    loss: Loss = "regret",
    per_class: bool = False,
    measure: Measure = SOFTMAX,
    out: str | Path | None = None,
    parts: Parts | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Certified:
    """Certify a finished run: thresholds from `search`, tests on `certify`; see `offramp.evaluation.certify`.

    Logits are kept in `records/` and used again as long as weights and images are the same. The policy is written to
    `policy.json` in the run's folder, or to `out`.

    Args:
        run: The run's folder.
        risk: With probability `confidence` over the draw of the certify images the risk is at most this.
        confidence: See `risk`.
        loss: What the risk is the mean of.
        per_class: Promise it for the images of each class.
        measure: How confidence is read off logits.
        out: Another file for the policy.
        parts: The data, for a run that was fit from Python with data made by hand.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
        progress: Called after each forward pass.

    Raises:
        UsageError: No run, an unfinished one, one without held-out images or with too few; other data.
        OfframpError: Nothing that lets an image leave early can be certified.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    network = network_of(folder, into, device, "logits and the policy are written there")
    parts = parts or parts_of(folder, config, root, "offramp.reports.certify")
    check_trained_on(parts, folder, config)
    held_before = (config.get("images") or {}).get("search")
    if held_before not in (None, parts.val.search.fingerprint()):
        raise UsageError(f"The images held out now are not those that were held out when {folder.path} was trained.")
    search, held_out = (
        recorded(
            network,
            part,
            folder.records / f"{name}.safetensors",
            batch_size=batch_size,
            progress=named(progress, name),
        )
        for name, part in (("search", parts.val.search), ("certify", parts.val.certify))
    )
    costs = cost(network, parts.test.image_shape)
    policy = certify_records(
        search,
        held_out,
        costs,
        risk=risk,
        confidence=confidence,
        loss=loss,
        per_class=per_class,
        measure=measure,
    )
    written = folder.policy if out is None else Path(out).expanduser()
    policy.save(written)
    return _described(policy, held_out, costs, written)


def _described(policy: Policy, held_out: Record, costs: Cost, written: Path) -> Certified:
    certificate = Certificate.of(policy)
    assert certificate is not None
    choice = policy.choose(held_out.logits_KSC, held_out.num_classes)
    right_S = choice.labels_S == held_out.targets_S
    full_S = policy.log_probs(-1, held_out.logits_KSC[-1], held_out.num_classes).argmax(-1) == held_out.targets_S
    exits = []
    for k, threshold in enumerate(policy.thresholds):
        here_S = choice.exits_S == k
        top1, full = (
            (100 * mask_S[here_S].double().mean().item() if here_S.any() else None) for mask_S in (right_S, full_S)
        )
        exits.append(ExitUse(threshold, here_S.double().mean().item(), top1, full))
    operations_K = torch.tensor([count.operations for count in costs.exits], dtype=torch.float64)
    return Certified(
        policy,
        certificate,
        written,
        tuple(exits),
        operations_K[choice.exits_S].mean().item(),
        costs.exits[-1].operations,
    )
