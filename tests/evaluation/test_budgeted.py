import dataclasses

import pytest
import torch

from offramp.errors import UsageError
from offramp.evaluation.budgeted import budgeted, curve, geometric_policies
from offramp.evaluation.thresholds import PUBLISHED_P, share_thresholds
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy, geometric_shares


@pytest.fixture
def records(make_record):
    """Exits that are right more often the deeper they are, and surer where they are right."""
    search, test = make_record(K=3, N=4, S=300), make_record(K=3, N=4, S=500)
    for record in (search, test):
        own = torch.nn.functional.one_hot(record.targets_S, record.logits_KSC.shape[-1])
        record.logits_KSC.add_(own * torch.tensor([1.0, 3.0, 6.0])[:, None, None] * torch.rand(len(own), 1))
    return dataclasses.replace(search, split="made-up/search"), test


@pytest.mark.parametrize("measure", [Measure(), Measure("margin", renormalise=True), Measure("entropy")], ids=str)
def test_the_published_curve_is_what_its_policies_choose(records, make_cost, measure):
    search, test = records
    result = budgeted(search, test, make_cost(10, 20, 40), measure=measure)
    assert (result.split, result.num_images, len(result.points)) == ("made-up/test", 500, 39)
    confidence_KS, _ = measure.over(search.logits_KSC, search.num_classes)
    thresholds_JK = share_thresholds(confidence_KS, geometric_shares(PUBLISHED_P, 3))
    for point, thresholds in zip(result.points, thresholds_JK.tolist(), strict=True):
        assert point.policy.thresholds == tuple(thresholds)
        choice = point.policy.choose(test.logits_KSC, test.num_classes)
        leaving = choice.exits_S.bincount(minlength=3).tolist()
        assert point.shares == pytest.approx([n / 500 for n in leaving], rel=1e-12)
        assert point.operations == pytest.approx(sum(n * f for n, f in zip(leaving, (10, 20, 40), strict=True)) / 500)
        right = (choice.labels_S == test.targets_S).double().mean().item()
        assert point.accuracy == pytest.approx(100 * right, rel=1e-12)


def test_policies_remember_where_they_come_from(records, make_cost):
    search, _ = records
    policy = geometric_policies(search, make_cost(10, 20, 40), (0.5,))[0]
    assert policy.network == search.weights
    there = curve([policy], dataclasses.replace(search, split="made-up/again"), make_cost(10, 20, 40)).points[0]
    assert policy.found == {
        "procedure": "geometric shares",
        "p": 0.5,
        "split": "made-up/search",
        "fingerprint": "f",
        "images": 300,
        "accuracy": there.accuracy,
        "operations": there.operations,
    }


def test_a_curve_takes_policies_of_several_measures_in_their_order(records, make_cost):
    _, test = records
    policies = [
        Policy((0.9, 0.8, EVERYBODY)),
        Policy((NOBODY, 1.0, EVERYBODY), Measure("patience")),
        Policy((0.5, 0.5, EVERYBODY)),
    ]
    result = curve(policies, test, make_cost(10, 20, 40))
    assert [point.policy for point in result.points] == policies
    alone = [curve([policy], test, make_cost(10, 20, 40)).points[0] for policy in policies]
    assert list(result.points) == alone
    assert len({point.operations for point in alone}) == 3


def test_each_step_touches_only_its_part(records, make_cost):
    search, test = records
    cost = make_cost(10, 20, 40)
    with pytest.raises(UsageError, match="not on made-up/test"):
        budgeted(test, test, cost)
    for part in ("search", "certify", "train"):
        with pytest.raises(UsageError, match=f"test set, not on digits/{part}"):
            budgeted(search, dataclasses.replace(test, split=f"digits/{part}"), cost)


def test_records_of_two_networks_are_refused(records, make_cost):
    search, test = records
    with pytest.raises(UsageError, match="found for the network"):
        budgeted(search, dataclasses.replace(test, weights="other"), make_cost(10, 20, 40))
