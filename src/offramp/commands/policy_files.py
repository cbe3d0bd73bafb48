"""Policies as files: the one that a command is to follow, and the one that it writes, with what it does."""

from pathlib import Path

import torch
from torch import Tensor

from offramp.costs import Cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate, Record
from offramp.files import RunFolder
from offramp.policy import CERTIFICATE, Policy
from offramp.results.dynamic import exit_uses
from offramp.results.policy_use import PolicyUse


def given_policy(policy: Policy | str | Path | None, folder: RunFolder) -> tuple[Policy | None, Path | None]:
    """The policy asked for, or the run's own, and its file if it was read from one; none where there is none."""
    if isinstance(policy, Policy):
        return policy, None
    if policy is None and not folder.policy.is_file():
        return None, None
    file = folder.policy if policy is None else Path(policy).expanduser()
    loaded = Policy.load(file)
    try:
        Certificate.of(loaded)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    return loaded, file


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
        better_exit=None if better is None else better + 1,
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
        return False  # nothing that could be read promises anything


def certified_before(path: Path) -> list[Policy]:
    """The policy in a file; none where there is none, or one whose certificate is not its own."""
    try:
        policy = Policy.load(path)
        Certificate.of(policy)
    except (UsageError, OfframpError, OSError):
        return []
    return [policy]
