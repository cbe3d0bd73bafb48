"""What every registered objective promises, whatever it computes. K exits, B images, C = N + 1 outputs."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor

from offramp.config import Spec
from offramp.objectives import OBJECTIVES, Objective, build
from offramp.objectives.weighting import Normalisation

VARIANTS = [
    *(Spec(name) for name in OBJECTIVES),
    Spec("discard-threshold", {"mean": "kept"}),
    Spec("damping", {"per_sqrt_exits": True}),
    Spec("damping", {"strength": 0}),
    Spec("dynamic", {"form": "damping"}),
    Spec("power-sqrt", {"root": "batch"}),
    Spec("dynamic", {"reverse": True}),
    Spec("dynamic", {"with_gradient": True}),
    Spec("dynamic", {"over": "batch", "with_gradient": True}),
    *(Spec("dynamic", {"normalisation": n, "over": o}) for n in get_args(Normalisation) for o in ("exits", "batch")),
    *(Spec("dynamic", {"applied_to": way, "alpha": 1.0}) for way in ("gradient", "cross-entropy", "root")),
]

every_objective = pytest.mark.parametrize("objective", [build(spec) for spec in VARIANTS], ids=map(str, VARIANTS))
any_number_of_exits = pytest.mark.parametrize("K", [1, 4])


def _batch(K: int, B: int = 6, C: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(K, B, C, dtype=dtype) * 2, torch.randint(C - 1, (B,))


@every_objective
def test_a_list_of_logits_is_as_good_as_a_tensor(objective: Objective):
    logits_KBC, targets_B = _batch(3)
    assert torch.equal(objective(list(logits_KBC), targets_B), objective(logits_KBC, targets_B))


def _gradient(objective: Objective, logits_KBC: Tensor, targets_B: Tensor) -> Tensor:
    leaf = logits_KBC.detach().requires_grad_()
    objective(leaf, targets_B).backward()
    assert leaf.grad is not None
    return leaf.grad


@any_number_of_exits
@every_objective
def test_the_loss_is_the_terms_summed_over_exits_and_averaged_over_samples(objective: Objective, K: int):
    logits_KBC, targets_B = _batch(K)
    terms = objective.terms(logits_KBC, targets_B)
    assert terms.loss_KB.shape == (K, 6)
    assert {stat.shape for stat in terms.stats_KB.values()} == {(K, 6)}
    slow = sum(sum(terms.loss_KB[k, b].item() for b in range(6)) / 6 for k in range(K))
    assert objective(logits_KBC, targets_B).item() == pytest.approx(slow, rel=1e-12)


@any_number_of_exits
@every_objective
def test_the_order_of_the_samples_does_not_matter(objective: Objective, K: int):
    logits_KBC, targets_B = _batch(K)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        objective(logits_KBC[:, order], targets_B[order]), objective(logits_KBC, targets_B), rtol=1e-12, atol=0
    )
    permuted = _gradient(objective, logits_KBC[:, order], targets_B[order])
    torch.testing.assert_close(permuted, _gradient(objective, logits_KBC, targets_B)[:, order], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@any_number_of_exits
@every_objective
def test_loss_gradient_and_statistics_are_finite_for_huge_logits(objective: Objective, K: int, dtype: torch.dtype):
    signs = torch.tensor([-1.0, 1.0]).repeat(K * 8 * 5)[torch.randperm(K * 8 * 5)].view(K, 8, 5)
    logits_KBC = (1e4 * signs).to(dtype)
    logits_KBC[:, 0] = torch.tensor([-1e4, -1e4, -1e4, -1e4, 1e4])  # the last output dominates at every exit
    logits_KBC[:, 1] = torch.tensor([1e4, -1e4, -1e4, -1e4, -1e4])  # the true class dominates at every exit
    targets_B = torch.zeros(8, dtype=torch.int64)
    terms = objective.terms(logits_KBC, targets_B)
    assert terms.loss_KB.isfinite().all()
    assert all(stat.isfinite().all() for stat in terms.stats_KB.values())
    assert _gradient(objective, logits_KBC, targets_B).isfinite().all()


@every_objective
def test_statistics_carry_no_gradient(objective: Objective):
    logits_KBC, targets_B = _batch(3)
    terms = objective.terms(logits_KBC.requires_grad_(), targets_B)
    assert terms.loss_KB.requires_grad
    assert terms.stats_KB
    assert not any(stat.requires_grad for stat in terms.stats_KB.values())


@every_objective
def test_arithmetic_inside_bf16_autocast_is_float32(objective: Objective):
    logits_KBC, targets_B = _batch(3, dtype=torch.float32)
    rounded = logits_KBC.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective.terms(rounded, targets_B)
    outside = objective.terms(rounded.float(), targets_B)
    assert inside.loss_KB.dtype == torch.float32
    torch.testing.assert_close(inside.loss_KB, outside.loss_KB, rtol=0, atol=0)
    torch.testing.assert_close(inside.stats_KB, outside.stats_KB, rtol=0, atol=0)


@every_objective
def test_float64_stays_float64_also_inside_autocast(objective: Objective):
    logits_KBC, targets_B = _batch(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = objective.terms(logits_KBC, targets_B)
    assert terms.loss_KB.dtype == torch.float64
    assert {stat.dtype for stat in terms.stats_KB.values()} == {torch.float64}


@any_number_of_exits
@every_objective
def test_nothing_waits_for_the_device(objective: Objective, K: int):
    """Tensors without values raise wherever a value would be asked for on the way."""
    logits_KBC = torch.empty(K, 6, 5, device="meta", requires_grad=True)
    loss = objective(logits_KBC, torch.empty(6, dtype=torch.int64, device="meta"))
    loss.backward()
    assert loss.is_meta
    assert logits_KBC.grad is not None


@any_number_of_exits
@every_objective
def test_an_empty_share_of_a_batch_has_empty_terms(objective: Objective, K: int):
    terms = objective.terms(torch.empty(K, 0, 5, requires_grad=True), torch.empty(0, dtype=torch.int64))
    assert terms.loss_KB.shape == (K, 0)
    assert {stat.shape for stat in terms.stats_KB.values()} == {(K, 0)}
    terms.loss_KB.sum().backward()


@every_objective
def test_settings_are_frozen_and_hashable(objective: Objective):
    name = dataclasses.fields(objective)[0].name if dataclasses.fields(objective) else "strength"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(objective, name, 1)
    assert hash(objective) == hash(dataclasses.replace(objective))
