"""Made-up records of three exits that get better, and what policies do to them."""

import numpy as np
import torch
from torch.nn.functional import one_hot

from offramp.costs import Cost, Count
from offramp.evaluation import Record
from offramp.policy import EVERYBODY, Policy

OPERATIONS = (30, 60, 100)
COST = Cost(*[tuple(Count(o, o, 1) for o in OPERATIONS)] * 4, (1, 8, 8))
FIRST = {"search": 0, "certify": 10**6, "test": 10**7}


def record(part: str, S: int = 1200, seed: int = 0, *, N: int = 4, flaw: float = 0.0, **changes) -> Record:
    """Three exits that get better; `flaw` of the images fool the first exit alone, which is sure of them."""
    generator = torch.Generator().manual_seed(100 * seed + len(part))
    targets_S = torch.randint(0, N, (S,), generator=generator)
    noise_SN = torch.randn(S, N, generator=generator)
    hard_S = torch.rand(S, generator=generator)
    exits = []
    for k in range(3):
        own_SN = torch.randn(S, N, generator=generator)
        exits.append((3 + 1.5 * k - 2 * hard_S)[:, None] * one_hot(targets_S, N) + 0.7 * (noise_SN + own_SN))
    fooled_S = torch.rand(S, generator=generator) < flaw
    exits[0][fooled_S] = 9.0 * one_hot((targets_S[fooled_S] + 1) % N, N)
    values = {
        "logits_KSC": 2 * torch.stack(exits),
        "targets_S": targets_S,
        "indices_S": torch.arange(S) + FIRST[part],
        "class_names": tuple(f"class {n}" for n in range(N)),
        "split": f"made-up/{part}",
        "fingerprint": f"{part} {seed}",
        "weights": "w" * 64,
        "total": S,
        "made_on": "cpu",
    }
    return Record(**values | changes)


def sure(targets_S: torch.Tensor, part: str, N: int = 4) -> torch.Tensor:
    """Logits `[S, N]` that are equally sure of a class, and of no two images the same."""
    number_S = torch.arange(len(targets_S)) + (0.5 if part == "search" else 0.0)
    return 9.0 * one_hot(targets_S, N) + number_S[:, None] / 2  # a sum that the softmax does not see


def outcomes(policy: Policy, seen: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """left early, right, right at the last exit"""
    choice = policy.choose(seen.logits_KSC, seen.num_classes)
    right = choice.labels_S == seen.targets_S
    full = seen.logits_KSC[-1].argmax(-1) == seen.targets_S
    return tuple(mask.numpy() for mask in (choice.exits_S < 2, right, full))


def true_risk(policy: Policy, loss: str, seen: Record) -> float:
    left, right, full = outcomes(policy, seen)
    if loss == "early-error":
        return (left & ~right).sum() / left.sum()
    return (full & ~right).mean() if loss == "regret" else full.mean() - right.mean()


def grid_policies(search: Record) -> list[Policy]:
    found = {"fingerprint": search.fingerprint}
    return [Policy((t, t, EVERYBODY), found=found) for t in np.linspace(0.25, 1.0, 40).tolist()]
