"""A finished run's policy, found for a target, and what any policy does on held-out images, exit by exit."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.costs import Cost, cost
from offramp.data import Parts
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate, Record, fit_temperatures, policy_for
from offramp.evaluation.targets import check_one, check_target
from offramp.evaluation.thresholds import check_times
from offramp.network import EarlyExitNet
from offramp.policy import CERTIFICATE, SOFTMAX, Measure, Policy
from offramp.reports.dynamic import ExitUse, exit_uses
from offramp.reports.loading import Progress, held_out, network_of, parts_of
from offramp.runs import RunFolder, read_json
from offramp.storage import weights_hash

BATCH = "1"  # whose times are taken where none is named


@dataclass(frozen=True)
class PolicyUse:
    """A policy, where it was written, and what it does on images of a held-out half: descriptions, no promises.

    Attributes:
        policy: The policy.
        written: Its file.
        replaced: Whether that file held a certificate before, which is gone.
        split: Name of the half.
        images: How many images it holds.
        exits: What happens at each exit.
        top1: Accuracy, in percent.
        full_top1: Accuracy of the last exit on all images.
        operations: Mean operations per image, with the heads of all exits up to the one taken.
        full_operations: Those of the whole network.
        better_exit: The exit (from 0) that alone is right most often, where that is more often than the last one beyond
            doubt (two standard errors): a policy that keeps near the last exit then keeps near the wrong one.
        better_top1: Its accuracy on all images.
    """

    policy: Policy
    written: Path
    replaced: bool
    split: str
    images: int
    exits: tuple[ExitUse, ...]
    top1: float
    full_top1: float
    operations: float
    full_operations: int
    better_exit: int | None = None
    better_top1: float | None = None

    @property
    def certificate(self) -> Certificate | None:
        """What is promised of the policy; None where nothing is."""
        return Certificate.of(self.policy)

    def to_json(self) -> dict[str, Any]:
        """JSON values; accuracies in percent, shares in [0, 1]."""
        certificate = None if self.certificate is None else self.certificate.to_json()
        return {**dataclasses.asdict(self), "written": str(self.written), "certificate": certificate}


def write_policy(policy: Policy, record: Record, cost: Cost, written: Path) -> PolicyUse:
    """Save `policy`, and say what it does on `record`."""
    choice = policy.choose(record.logits_KSC, record.num_classes)
    right_S = choice.labels_S == record.targets_S
    right_KS = torch.stack(
        [
            policy.log_probs(k, logits_SC, record.num_classes).argmax(-1) == record.targets_S
            for k, logits_SC in enumerate(record.logits_KSC)
        ]
    )
    full_S, better = right_KS[-1], _better_than_last(right_KS.double())
    operations_K = torch.tensor([count.operations for count in cost.exits], dtype=torch.float64)
    replaced = _holds_certificate(written)
    policy.save(written)
    return PolicyUse(
        policy=policy,
        written=written,
        replaced=replaced,
        split=record.split,
        images=record.num_images,
        exits=exit_uses(policy.thresholds, choice.exits_S, right_S, full_S),
        top1=100 * right_S.double().mean().item(),
        full_top1=100 * full_S.double().mean().item(),
        operations=operations_K[choice.exits_S].mean().item(),
        full_operations=cost.exits[-1].operations,
        better_exit=better,
        better_top1=None if better is None else 100 * right_KS[better].double().mean().item(),
    )


def _better_than_last(right_KS: Tensor) -> int | None:
    best = int(right_KS.mean(1).argmax())
    gain_S = right_KS[best] - right_KS[-1]
    is_beyond_doubt = gain_S.mean() > 2 * gain_S.std(correction=0) / len(gain_S) ** 0.5
    return best if is_beyond_doubt else None


def _holds_certificate(path: Path) -> bool:
    try:
        return path.is_file() and CERTIFICATE in Policy.load(path).found
    except (UsageError, OfframpError, OSError):
        return False  # whatever it is, it promises nothing that could be read


def find_policy(
    run: str | Path,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    latency: float | None = None,
    batch: str | None = None,
    measure: Measure = SOFTMAX,
    temperature: bool = False,
    out: str | Path | None = None,
    parts: Parts | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> PolicyUse:
    """Find thresholds for a target on the `search` half of a finished run: see `offramp.evaluation.policy_for`.

    Logits are kept in `records/` and used again as long as weights and images are the same. The policy is written to
    `policy.json` in the run's folder, or to `out`. Give one of `budget`, `max_drop` and `latency`.

    Args:
        run: The run's folder.
        budget: Expected operations per image; a share of the whole network's where 1 or less.
        max_drop: Percentage points of accuracy that may be lost against the last exit.
        latency: Expected milliseconds per image, by the times in the run's `bench.json`.
        batch: Which of those times: `1` (the default), another size of batch, or `stream`. With `max_drop`, the policy
            is then the cheapest in milliseconds, not in operations.
        measure: How confidence is read off logits.
        temperature: Fit the measure's temperatures on `search`.
        out: Another file for the policy.
        parts: The data, for a run that was fit from Python with data made by hand.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Largest number of images in one forward pass, below the run's own batch size.
        progress: Called after each forward pass.

    Raises:
        UsageError: Not exactly one target or one that cannot be met; no run, an unfinished one, one without held-out
            images; other data; a latency without times measured for these weights and this batch.
    """
    check_one(budget, max_drop, latency)
    if budget is not None and batch is not None:
        raise UsageError("A budget counts operations, whatever the batch; for milliseconds give a latency.")
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    network = network_of(folder, into, device, "logits and the policy are written there")
    parts = parts or parts_of(folder, config, root, "offramp.reports.find_policy")
    costs = cost(network, parts.test.image_shape)
    times: tuple[float, ...] | None = None
    where: dict[str, str] = {}
    if latency is not None or batch is not None:
        times, where = exit_times(folder, weights_hash(network.state_dict()), batch or BATCH, network.num_exits)
    check_target(costs, budget=budget, max_drop=max_drop, latency=latency, times=times)
    (search,) = held_out(folder, network, parts, ("search",), batch_size=batch_size, progress=progress)
    if temperature:
        temperatures = fit_temperatures(search, renormalise=measure.renormalise)
        measure = dataclasses.replace(measure, temperatures=temperatures)
    policy = policy_for(search, costs, budget=budget, max_drop=max_drop, latency=latency, times=times, measure=measure)
    policy = dataclasses.replace(policy, found={**policy.found, **where})
    return write_policy(policy, search, costs, folder.policy if out is None else Path(out).expanduser())


def exit_times(folder: RunFolder, weights: str, batch: str, num_exits: int) -> tuple[tuple[float, ...], dict[str, str]]:
    """Milliseconds of an image that leaves at each exit, from the run's `bench.json`, and where they were measured.

    Args:
        folder: The run's folder.
        weights: Hash of the weights that the times are to be of.
        batch: A size of batch, as a word, or `stream`.
        num_exits: K.

    Raises:
        UsageError: Nothing measured, or not for these weights or this batch; times that cannot be.
        OfframpError: A damaged file.
    """
    way_out = f"`{folder.command('bench')}` measures it"
    if not folder.bench.is_file():
        raise UsageError(f"How long an image takes to each exit is not known: there is no {folder.bench}. {way_out}.")
    content = read_json(folder.bench)
    if not _is_bench(content):
        raise OfframpError(f"{folder.bench} is damaged: it is not what was measured. {way_out} anew.")
    if content["weights"] != weights:
        raise UsageError(
            f"{folder.bench} was measured for the network with weights {content['weights'][:12]}, not {weights[:12]}. "
            f"{way_out} anew."
        )
    known = content["exit_ms"]
    if batch not in known:
        raise UsageError(f"{folder.bench} has no times for batch {batch}, but for {', '.join(known)}. {way_out} anew.")
    try:
        check_times(known[batch], num_exits)
    except UsageError as error:
        raise UsageError(f"{folder.bench}, batch {batch}: {error} {way_out} anew.") from error
    return tuple(map(float, known[batch])), {"device": content["device"], "batch": batch}


def _is_bench(content: Any) -> bool:
    """Whether a JSON value has what is read of `bench.json`; numbers are looked at when they are used."""
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(key), str) for key in ("weights", "device"))
        and isinstance(content.get("exit_ms"), dict)
        and all(
            isinstance(times, list)
            and all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in times)
            for times in content["exit_ms"].values()
        )
    )
