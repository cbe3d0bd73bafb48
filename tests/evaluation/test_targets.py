import dataclasses

import pytest
import torch

from offramp.costs import cost
from offramp.errors import UsageError
from offramp.evaluation import record
from offramp.evaluation.search import search_thresholds
from offramp.evaluation.targets import policy_for
from offramp.policy import EVERYBODY, Measure, Policy
from offramp.storage import weights_hash

# The second exit takes half the operations (10, 20, 40), but most of the time: the two disagree.
TIMES = (0.6, 1.6, 1.7)


@pytest.fixture
def search(make_record):
    record = make_record(K=3, N=4, S=800)
    own = torch.nn.functional.one_hot(record.targets_S, record.logits_KSC.shape[-1])
    record.logits_KSC.add_(own * torch.tensor([2.0, 4.0, 7.0])[:, None, None] * 2 * torch.rand(800, 1))
    return dataclasses.replace(record, split="made-up/search")


def accuracy(policy: Policy, record) -> float:
    labels_S = policy.choose(record.logits_KSC, record.num_classes).labels_S
    return 100 * (labels_S == record.targets_S).double().mean().item()


def last(record) -> float:
    return accuracy(Policy((1e8, 1e8, EVERYBODY)), record)


@pytest.mark.parametrize("budget", [0.4, 25, 40])
def test_a_budget_is_kept_and_is_what_the_search_finds(search, make_cost, budget):
    cost = make_cost(10, 20, 40)
    policy = policy_for(search, cost, budget=budget)
    assert policy == search_thresholds(search, cost, [budget])[0]
    choice = policy.choose(search.logits_KSC, search.num_classes)
    spent = torch.tensor([10.0, 20.0, 40.0])[choice.exits_S].mean().item()
    assert spent == pytest.approx(policy.found["operations"], rel=1e-6)
    assert spent <= (40 * budget if budget <= 1 else budget)
    assert policy.network == search.weights
    assert policy.found["fingerprint"] == search.fingerprint


def test_few_images_on_which_nothing_was_lost_show_no_small_drop(make_record, make_cost):
    """Fifty images that every exit answers rightly: that nothing can be lost is known of the last exit alone."""
    search = dataclasses.replace(make_record(K=3, N=4, S=50), split="made-up/search")
    search.logits_KSC[:] = 9.0 * torch.nn.functional.one_hot(search.targets_S, search.logits_KSC.shape[-1])
    procedure = {
        max_drop: policy_for(search, make_cost(10, 20, 40), max_drop=max_drop).found["procedure"]
        for max_drop in (0, 200 / 52 - 0.01, 200 / 52 + 0.01)  # two errors of a fifty-second each, in points
    }
    assert list(procedure.values()) == ["last exit alone", "last exit alone", "first exit alone"]
    bold = policy_for(search, make_cost(10, 20, 40), max_drop=0, caution=0)
    assert bold.found["procedure"] == "first exit alone"


@pytest.mark.parametrize("caution", [0.0, 1.0, None])
def test_no_more_accuracy_is_lost_on_search_than_allowed(search, make_cost, caution):
    cost, spent = make_cost(10, 20, 40), []
    for max_drop in (0, 1, 3, 10):
        policy = policy_for(search, cost, max_drop=max_drop, caution=caution)
        assert last(search) - accuracy(policy, search) <= max_drop + 1e-9
        assert policy.found["max_drop"] == max_drop
        spent.append(policy.found["operations"])
    assert spent == sorted(spent, reverse=True)
    assert spent[0] > spent[-1]


def test_caution_costs_operations_and_saves_accuracy(search, make_cost):
    cost = make_cost(10, 20, 40)
    bold, default, timid = (policy_for(search, cost, max_drop=1, caution=caution) for caution in (0, None, 50))
    assert default.found["caution"] == 2.0
    assert bold.found["operations"] < default.found["operations"] < timid.found["operations"]
    assert accuracy(bold, search) < accuracy(default, search)
    assert accuracy(timid, search) >= last(search) - 1


def test_whoever_allows_everything_leaves_at_the_first_exit(search, make_cost):
    policy = policy_for(search, make_cost(10, 20, 40), max_drop=100, caution=0)
    assert policy.choose(search.logits_KSC, search.num_classes).exits_S.tolist() == [0] * 800
    assert policy.found["procedure"] == "first exit alone"


def test_the_measure_is_kept(search, make_cost):
    measure = Measure("entropy", temperatures=(1.5, 1.2, 1.0))
    for target in ({"budget": 0.5}, {"max_drop": 1}, {"latency": 1, "times": TIMES}):
        assert policy_for(search, make_cost(10, 20, 40), measure=measure, **target).measure == measure


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "one target"),
        ({"budget": 0.5, "max_drop": 1}, "one target"),
        ({"budget": 0.5, "latency": 1, "times": TIMES}, "one target"),
        ({"max_drop": 1, "latency": 1, "times": TIMES}, "one target"),
        ({"latency": 1}, "needs times"),
        ({"budget": 0.5, "times": TIMES}, "no use for times"),
        ({"latency": 0.5, "times": TIMES}, r"0.5 ms an image cannot be kept: .* takes 0.6 ms \(the whole network 1"),
        ({"latency": float("nan"), "times": TIMES}, "latency must be a number of at least 0"),
        ({"latency": float("inf"), "times": TIMES}, "latency must be a number of at least 0"),
        ({"latency": 1, "times": TIMES[:2]}, "2 times for 3 exits"),
        ({"latency": 1, "times": ()}, "0 times for 3 exits"),
        ({"latency": 1, "times": (0.5, float("nan"), 1)}, "that of exit 2 is nan"),
        ({"max_drop": 1, "times": (0.5, 0.7, float("inf"))}, "that of exit 3 is inf"),
        ({"max_drop": 1, "times": (0.0, 0.7, 1.0)}, "above 0; that of exit 1 is 0.0"),
        ({"max_drop": 1, "times": (0.6, 0.5, 1.0)}, "exit 2 takes 0.5 ms, less than the 0.6 ms"),
        ({"budget": 0.1}, "cannot be kept"),
        ({"max_drop": -1}, "max_drop must be a number of at least 0"),
        ({"max_drop": float("nan")}, "max_drop must be a number"),
        ({"max_drop": 1, "caution": -1}, "caution must be a number of at least 0"),
        ({"budget": 0.5, "caution": float("inf")}, "caution must be a number of at least 0"),
        ({"budget": 0.5, "measure": Measure(temperatures=(1.0,))}, "1 temperatures for 3 exits"),
    ],
)
def test_what_cannot_be_is_refused(search, make_cost, arguments, said):
    with pytest.raises(UsageError, match=said):
        policy_for(search, make_cost(10, 20, 40), **arguments)


def spent(policy: Policy, record, of_exit) -> float:
    exits_S = policy.choose(record.logits_KSC, record.num_classes).exits_S
    return torch.tensor(of_exit, dtype=torch.float64)[exits_S].mean().item()


@pytest.mark.parametrize("latency", [0.6, 0.63, 0.8, 1.2, 1.7, 99.0])
def test_a_latency_is_kept_and_both_costs_are_remembered(search, make_cost, latency):
    policy = policy_for(search, make_cost(10, 20, 40), latency=latency, times=TIMES)
    assert policy == search_thresholds(search, make_cost(10, 20, 40), [latency], times=TIMES)[0]
    found = policy.found
    assert spent(policy, search, TIMES) <= latency * (1 + 1e-9)
    assert found["milliseconds"] == pytest.approx(spent(policy, search, TIMES))
    assert found["operations"] == pytest.approx(spent(policy, search, (10, 20, 40)))
    assert (found["price"], found["times"], found["latency"]) == ("milliseconds", list(TIMES), latency)
    assert "budget" not in found


def test_times_in_proportion_to_operations_change_nothing(search, make_cost):
    """Milliseconds are operations in another unit then: the same thresholds, whatever the target."""
    cost, times = make_cost(10, 20, 40), (0.125, 0.25, 0.5)  # exact in binary, as are their sums
    for operations in (12, 20, 28, 40):
        in_time = policy_for(search, cost, latency=operations / 80, times=times)
        assert in_time.thresholds == policy_for(search, cost, budget=operations).thresholds
    for max_drop in (0, 1, 3):
        in_time = policy_for(search, cost, max_drop=max_drop, times=times)
        in_operations = policy_for(search, cost, max_drop=max_drop)
        assert in_time.thresholds == in_operations.thresholds
        assert (in_time.found["price"], in_operations.found["price"]) == ("milliseconds", "operations")
        assert "times" not in in_operations.found


def test_the_cheapest_is_cheapest_in_what_is_counted(search, make_cost):
    cost = make_cost(10, 20, 40)
    for max_drop in (2, 5, 10):
        in_time = policy_for(search, cost, max_drop=max_drop, times=TIMES, caution=0)
        in_operations = policy_for(search, cost, max_drop=max_drop, caution=0)
        assert last(search) - accuracy(in_time, search) <= max_drop + 1e-9
        assert spent(in_time, search, TIMES) < spent(in_operations, search, TIMES)
        assert spent(in_time, search, (10, 20, 40)) > spent(in_operations, search, (10, 20, 40))


def test_within_the_same_time_the_search_for_time_is_more_accurate(search, make_cost):
    cost = make_cost(10, 20, 40)
    for budget in (0.4, 0.5, 0.6, 0.7):
        in_operations = policy_for(search, cost, budget=budget, caution=0)
        latency = spent(in_operations, search, TIMES)
        in_time = policy_for(search, cost, latency=latency, times=TIMES, caution=0)
        assert accuracy(in_time, search) > accuracy(in_operations, search) + 1


def test_all_the_time_there_is_gives_the_most_accurate(search, make_cost):
    """Also where the mean of equal times is not exactly that time: 0.1 in binary."""
    for times in ((0.1, 0.2, 0.7), (1e-3, 1.1e-3, 1.3e-3)):
        policy = policy_for(search, make_cost(10, 20, 40), latency=times[-1], times=times, caution=0)
        assert accuracy(policy, search) >= last(search)


def test_exits_that_take_the_same_time_are_free_to_choose_among(search, make_cost):
    policy = policy_for(search, make_cost(10, 20, 40), latency=2, times=(2, 2, 2))
    assert policy.found["milliseconds"] == 2
    assert accuracy(policy, search) >= last(search)


@pytest.mark.parametrize("part", ["train", "certify", "test"])
@pytest.mark.parametrize("target", [{"budget": 0.5}, {"max_drop": 1}, {"latency": 1, "times": TIMES}])
def test_other_parts_than_search_are_refused(search, make_cost, part, target):
    record = dataclasses.replace(search, split=f"digits/{part}")
    with pytest.raises(UsageError, match=f"not on digits/{part}: .*holdout=0"):
        policy_for(record, make_cost(10, 20, 40), **target)


def test_from_a_network_to_a_saved_policy(network, split, tmp_path):
    """The lines of docs/design.md's example, on a network and images."""
    seen = record(network, dataclasses.replace(split, name="made-up/search"))
    spent = cost(network, (1, 4, 4))
    policy = policy_for(seen, spent, budget=0.7)
    assert policy.found["operations"] <= 0.7 * spent.exits[-1].operations
    policy.save(tmp_path / "policy.json")
    back = Policy.load(tmp_path / "policy.json")
    assert back == policy
    back.check_network(weights_hash(network.state_dict()))
    again = record(network, split)
    assert torch.equal(back.choose(again.logits_KSC, 4).exits_S, policy.choose(seen.logits_KSC, 4).exits_S)
    with torch.no_grad():
        network.exits[0][1].bias[0] += 1
    with pytest.raises(UsageError, match="found for the network"):
        back.check_network(weights_hash(network.state_dict()))
