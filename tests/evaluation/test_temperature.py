import dataclasses

import pytest
import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.evaluation.temperature import HIGHEST, LOWEST, fit_temperatures


def drawn(make_record, factors: list[float], damping: bool = False):
    """A record whose exits are right as often as their logits over `factors` say."""
    record = make_record(K=1, S=6000, N=5, damping=damping, scale=1.5)
    logits_SC = record.logits_KSC[0]
    targets_S = torch.distributions.Categorical(logits=logits_SC[:, :5]).sample()
    logits_KSC = torch.tensor(factors)[:, None, None] * logits_SC
    return dataclasses.replace(record, logits_KSC=logits_KSC, targets_S=targets_S, split="made-up/search")


def nll(logits_SC: Tensor, targets_S: Tensor, temperature: float) -> float:
    return torch.nn.functional.cross_entropy(logits_SC.double() / temperature, targets_S).item()


def test_the_temperature_an_exit_was_heated_by_is_found(make_record):
    fitted = fit_temperatures(drawn(make_record, [0.5, 1.0, 3.0]))
    assert fitted[1] == pytest.approx(1.0, abs=0.05)  # 6,000 images
    assert [fitted[0] / fitted[1], fitted[2] / fitted[1]] == pytest.approx([0.5, 3.0], rel=1e-5)


@pytest.mark.parametrize("damping", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
def test_no_other_temperature_is_likelier(make_record, damping, renormalise):
    record = drawn(make_record, [0.3, 1.0, 4.0], damping)
    num_outputs = 5 if renormalise else record.logits_KSC.shape[2]
    for logits_SC, fitted in zip(record.logits_KSC, fit_temperatures(record, renormalise=renormalise), strict=True):
        best = nll(logits_SC[:, :num_outputs], record.targets_S, fitted)
        for factor in (0.3, 0.99, 1.01, 3.0):
            assert nll(logits_SC[:, :num_outputs], record.targets_S, fitted * factor) > best


def test_neither_pieces_nor_the_few_images_looked_at_first_decide(make_record, monkeypatch, read_together):
    record = drawn(make_record, [0.3, 4.0])
    fitted = fit_temperatures(record)
    read_together(500)
    monkeypatch.setattr("offramp.evaluation.temperature.FEW", 40)
    assert fit_temperatures(record) == pytest.approx(fitted, rel=1e-6)


def test_sorted_images_that_mislead_the_first_look_change_nothing(make_record):
    """Every third image, those looked at first, is right; the others are wrong more often than not."""
    record = drawn(make_record, [1.0])
    record.targets_S[::3] = record.logits_KSC[0, ::3].argmax(-1)
    logits_SC = record.logits_KSC[0]
    (fitted,) = fit_temperatures(record)
    for factor in (0.99, 1.01):
        assert nll(logits_SC, record.targets_S, fitted * factor) > nll(logits_SC, record.targets_S, fitted)


def test_always_right_and_always_wrong_end_at_the_limits(make_record):
    record = drawn(make_record, [1.0, 1.0])
    record.logits_KSC[0] = torch.nn.functional.one_hot(record.targets_S, 5).float()
    record.logits_KSC[1] = -record.logits_KSC[0]
    assert fit_temperatures(record) == pytest.approx((LOWEST, HIGHEST), rel=1e-6)


def test_extreme_logits_stay_finite(make_record):
    record = drawn(make_record, [1e4, 1e-4])
    assert fit_temperatures(record) == pytest.approx((HIGHEST, LOWEST), rel=1e-6)


def test_search_alone_may_be_fitted_to(make_record):
    with pytest.raises(UsageError, match="not on made-up/certify"):
        fit_temperatures(dataclasses.replace(make_record(), split="made-up/certify"))
