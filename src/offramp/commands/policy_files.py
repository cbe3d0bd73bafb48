"""Policies as files: the one that a command is to follow, and the one that it writes, with what it does."""

import contextlib
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from offramp.costs import Cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate, Ladder, Promise, Record
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
    use = dataclasses.replace(policy_use(policy, record, cost, written), replaced=_holds_certificate(written))
    policy.save(written)
    return use


def policy_use(policy: Policy, record: Record, cost: Cost, written: Path) -> PolicyUse:
    """What `policy`, of the file `written`, does on `record`."""
    choice = policy.choose(record.logits_KSC, record.num_classes)
    right_S = choice.labels_S == record.targets_S
    right_KS = record.read(policy.measure)[1] == record.targets_S
    full_S, better = right_KS[-1], _better_than_last(right_KS.double())
    operations_K = torch.tensor([count.operations for count in cost.exits], dtype=torch.float64)
    return PolicyUse(
        policy=policy,
        written=written,
        replaced=False,
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


def certified_before(policy: Path, ladder: Path, promise: Promise) -> list[Policy]:
    """What the two files hold that has a certificate of its own; what is not there, or cannot be read, holds none.

    A ladder is certified at once, so one of its rungs stands for all: that of the same promise where there is one.
    """
    before: list[Policy] = []
    with contextlib.suppress(UsageError, OfframpError, OSError):
        loaded = Policy.load(policy)
        Certificate.of(loaded)
        before.append(loaded)
    with contextlib.suppress(UsageError, OfframpError, OSError):
        known = Ladder.load(ladder)
        same = [rung for rung, c in zip(known.rungs, known.certificates, strict=True) if c.promise == promise]
        before += same or known.rungs[:1]
    return before
