"""The search against brute force, and its promises on the images it searched."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

from offramp.errors import UsageError
from offramp.evaluation.budgeted import curve, geometric_policies
from offramp.evaluation.paired import gains
from offramp.evaluation.search import (
    FAMILY,
    Candidates,
    Ranking,
    ascend,
    best_at_prices,
    in_operations,
    search_thresholds,
    steps_between,
)
from offramp.evaluation.thresholds import PUBLISHED_P, Scores, scores
from offramp.policy import EVERYBODY, NOBODY, SOFTMAX, Measure


def made_up(num_exits: int, num_images: int = 14, levels: int = 9) -> tuple[Scores, Ranking]:
    """Random scores with ties in confidence."""
    confidence_KS = torch.randint(0, levels, (num_exits, num_images)) / levels
    right_KS = torch.rand(num_exits, num_images) < torch.linspace(0.4, 0.9, num_exits)[:, None]
    operations_K = torch.tensor([1.0, 1.5, 4.0, 9.0], dtype=torch.float64)[:num_exits]
    return Scores(confidence_KS, right_KS, operations_K), Ranking.of(confidence_KS)


def worth(seen: Scores, thresholds: list[float], price: float) -> float:
    """Accuracy less the price of the operations, in shares of the whole network's; image by image."""
    K, S = seen.confidence_KS.shape
    total = 0.0
    for i in range(S):
        k = next(k for k in range(K) if k == K - 1 or seen.confidence_KS[k, i].item() >= thresholds[k])
        total += float(seen.right_KS[k, i]) - price * (seen.operations_K[k] / seen.operations_K[-1]).item()
    return total / S


def prices(seen: Scores, price: float) -> torch.Tensor:
    """What `ascend` takes, `[1, K]`."""
    return price * (seen.operations_K / seen.operations_K[-1])[None]


@pytest.mark.parametrize("price", [0.001, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("start", [0, 14])
def test_one_threshold_is_put_where_brute_force_puts_it(price, start):
    for _ in range(10):
        seen, ranking = made_up(2)
        ranks_JK = ascend(seen, ranking, torch.tensor([[start]]), prices(seen, price))
        found = ranking.thresholds(ranks_JK).squeeze(0).tolist()
        options = [NOBODY, EVERYBODY, *seen.confidence_KS[0].unique().tolist()]
        best = max(worth(seen, [option, EVERYBODY], price) for option in options)
        assert worth(seen, found, price) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("price", [0.001, 0.1, 0.3, 1.0])
def test_where_it_ends_no_single_threshold_can_be_bettered(price):
    for start in (0, 5, 14):
        seen, ranking = made_up(4)
        began = torch.full((1, 3), start)
        ranks_JK = ascend(seen, ranking, began, prices(seen, price))
        found = ranking.thresholds(ranks_JK).squeeze(0).tolist()
        value = worth(seen, found, price)
        assert value >= worth(seen, ranking.thresholds(began).squeeze(0).tolist(), price) - 1e-12
        for k in range(3):
            for option in [NOBODY, EVERYBODY, *seen.confidence_KS[k].unique().tolist()]:
                assert worth(seen, [*found[:k], option, *found[k + 1 :]], price) <= value + 1e-12


def test_several_starts_come_close_to_brute_force_over_all_thresholds():
    """Not a theorem: moving one threshold at a time can end in a hollow. Here it finds the best in most of 20 draws."""
    hits = 0
    for _ in range(20):
        seen, ranking = made_up(3, levels=5)
        starts = torch.tensor(list(itertools.product((0, 5, 14), repeat=2)))
        price = 0.2
        ranks_JK = ascend(seen, ranking, starts, prices(seen, price).expand(len(starts), -1))
        found = max(worth(seen, row, price) for row in ranking.thresholds(ranks_JK).tolist())
        options = [[NOBODY, EVERYBODY, *row.unique().tolist()] for row in seen.confidence_KS[:2]]
        best = max(worth(seen, [*pair, EVERYBODY], price) for pair in itertools.product(*options))
        assert found <= best + 1e-12
        hits += found == pytest.approx(best, abs=1e-12)
    assert hits >= 16


def test_ranks_and_thresholds_are_each_others_inverse():
    seen, ranking = made_up(4)
    thresholds_JK = torch.tensor([[NOBODY, 1 / 9, EVERYBODY, EVERYBODY], [4 / 9, NOBODY, 0.0, EVERYBODY]])
    ranks_JK = ranking.ranks(thresholds_JK)
    for j, k in itertools.product(range(2), range(3)):
        assert ranks_JK[j, k] == (seen.confidence_KS[k] >= thresholds_JK[j, k]).sum()
    taken_JK, right_JS = seen.replay(ranking.thresholds(ranks_JK))
    expected_JK, expected_JS = seen.replay(thresholds_JK)
    assert torch.equal(taken_JK, expected_JK)
    assert torch.equal(right_JS, expected_JS)


def test_dearer_operations_are_spent_less():
    seen, ranking = made_up(4, num_images=300, levels=200)
    ranks_PK = best_at_prices(seen, ranking, ranking.ranks(torch.tensor([[NOBODY] * 3 + [EVERYBODY]])))
    taken_PK, right_PS = seen.replay(ranking.thresholds(ranks_PK))
    spent_P, right_P = seen.operations(taken_PK), right_PS.double().mean(1)
    assert (spent_P.diff() >= -1e-12).all()  # prices fall
    assert (right_P.diff() >= -1e-12).all()
    assert spent_P[0] == 1.0  # at the highest price everybody leaves at the first exit
    assert spent_P[-1] > 2 * spent_P[0]


@pytest.fixture
def records(make_record):
    """Four exits, the third of no use (as right as the second), and images of very different difficulty."""
    gains_K = torch.tensor([2.0, 3.5, 3.5, 6.0])[:, None, None]

    def make(S: int, split: str):
        record = make_record(K=4, N=5, S=S, scale=1.5)
        own = torch.nn.functional.one_hot(record.targets_S, record.logits_KSC.shape[-1])
        record.logits_KSC.add_(own * gains_K * torch.rand(S, 1) * 1.5)
        return dataclasses.replace(record, split=split)

    return make(1500, "made-up/search"), make(4000, "made-up/test")


BUDGETS = (0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)


def test_within_each_time_none_is_worse_on_search_than_geometric_shares(records, make_cost):
    search, _ = records
    cost, times = make_cost(100, 200, 300, 1000), (1.0, 1.5, 8.5, 10.0)
    found = search_thresholds(search, cost, [10 * budget for budget in BUDGETS], times=times)
    timed = scores(search, cost, SOFTMAX, times)
    family_JK, family_JS = timed.replay(timed.thresholds(geometric_policies(search, cost, FAMILY)))
    policy_JK, policy_JS = timed.replay(timed.thresholds(found))
    better = 0
    for budget, right_S, spent in zip(BUDGETS, policy_JS, timed.spent(policy_JK), strict=True):
        assert spent <= 10 * budget + 1e-9
        rivals_JS = family_JS[timed.spent(family_JK) <= 10 * budget]
        rival = max(rivals_JS.double().mean(1).tolist(), default=0.0)
        assert right_S.double().mean() >= rival
        better += right_S.double().mean().item() > rival
    assert better >= 3


def test_what_an_exit_costs_is_one_vector():
    """The search sees no difference between times and operations of the same numbers."""
    seen, ranking = made_up(4, num_images=200, levels=150)
    timed = dataclasses.replace(seen, operations_K=torch.full((4,), 7.0).double(), times_K=seen.operations_K)
    start_JK = torch.tensor([[200, 0, 0], [0, 0, 0], [60, 60, 60]])
    ranks_PK = best_at_prices(seen, ranking, start_JK)
    assert torch.equal(best_at_prices(timed, ranking, start_JK), ranks_PK)
    assert torch.equal(steps_between(timed, ranking, ranks_PK), steps_between(seen, ranking, ranks_PK))
    taken_JK, _ = seen.replay(ranking.thresholds(ranks_PK))
    assert torch.equal(timed.spent(taken_JK), seen.operations(taken_JK))
    assert timed.operations(taken_JK).tolist() == [7.0] * len(taken_JK)


@pytest.mark.parametrize("caution", [0.0, 1.0])
@pytest.mark.parametrize("measure", [SOFTMAX, Measure("entropy"), Measure("patience")], ids=str)
def test_within_each_budget_none_is_worse_on_search_than_geometric_shares(records, make_cost, measure, caution):
    search, _ = records
    cost = make_cost(100, 200, 300, 1000)
    found = search_thresholds(search, cost, BUDGETS, measure=measure, caution=caution)
    again = dataclasses.replace(search, split="made-up/again")
    family = curve(geometric_policies(search, cost, FAMILY, measure=measure), again, cost).points
    points = curve(found, again, cost).points
    better = 0
    for budget, point in zip(BUDGETS, points, strict=True):
        assert point.operations <= 1000 * budget + 1e-9
        rivals = [rival.accuracy for rival in family if rival.operations <= 1000 * budget]
        assert point.accuracy >= max(rivals, default=0.0)
        better += point.accuracy > max(rivals, default=0.0)
        assert point.policy.found["accuracy"] == point.accuracy
        assert point.policy.found["operations"] == point.operations
        assert (point.policy.found["budget"], point.policy.found["caution"]) == (1000 * budget, caution)
    assert better >= 3


def test_on_other_images_it_gains_where_an_exit_is_of_no_use(records, make_cost):
    """Geometric shares send images to the third exit, which costs and adds nothing."""
    search, test = records
    cost = make_cost(100, 200, 300, 1000)
    found = search_thresholds(search, cost, (0.2, 0.3, 0.45))
    for gain in gains(found, geometric_policies(search, cost, FAMILY), test, cost):
        assert gain.low > 0


def test_enough_caution_leaves_geometric_shares(records, make_cost):
    search, _ = records
    cost = make_cost(100, 200, 300, 1000)
    found = search_thresholds(search, cost, BUDGETS, caution=1e9)
    assert {policy.found["procedure"] for policy in found} <= {
        "geometric shares",
        "first exit alone",
        "last exit alone",
    }


def test_what_is_found_by_chance_is_not_taken(make_record, make_cost):
    """All exits answer at random: whatever beats geometric shares on 200 images does so by chance."""
    search = dataclasses.replace(make_record(K=3, S=200, N=4), split="made-up/search")
    cost = make_cost(10, 20, 40)
    bold, cautious = (search_thresholds(search, cost, (0.5, 0.7, 0.9), caution=caution) for caution in (0.0, 3.0))
    assert [policy.found["procedure"] for policy in bold] == ["search"] * 3
    assert "search" not in [policy.found["procedure"] for policy in cautious]


def test_the_family_holds_the_published_points():
    assert set(PUBLISHED_P) <= set(FAMILY)


def test_one_exit_takes_everything(make_record, make_cost):
    search = dataclasses.replace(make_record(K=1), split="made-up/search")
    (policy,) = search_thresholds(search, make_cost(10), [1.0])
    answers_S = search.logits_KSC[0, :, : search.num_classes].argmax(-1)
    assert policy.thresholds == (EVERYBODY,)
    assert policy.found["operations"] == 10
    assert policy.found["accuracy"] == pytest.approx(100 * (answers_S == search.targets_S).double().mean().item())


def test_exits_that_cost_the_same_are_free_to_choose_among(make_record, make_cost):
    search = dataclasses.replace(make_record(K=2), split="made-up/search")
    (policy,) = search_thresholds(search, make_cost(10, 10), [1.0])
    right_KS = search.logits_KSC[..., : search.num_classes].argmax(-1) == search.targets_S
    assert policy.found["operations"] == 10
    assert policy.found["accuracy"] >= 100 * right_KS.double().mean(1).max().item()


def test_times_that_are_equal_but_for_rounding_are_as_good_as_equal(records, make_cost):
    """Prices reach up to where a right answer does not pay for the next exit; a gap of 1e-12 would spread them thin."""
    search, _ = records
    cost, latencies = make_cost(100, 200, 300, 1000), (1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
    for rounding in (1e-14, 1e-9, 1e-6):
        equal, nearly = (
            search_thresholds(search, cost, latencies, times=(1.0, 1.5, third, 4.0), caution=0)
            for third in (1.5, 1.5 + rounding)
        )
        for one, other in zip(nearly, equal, strict=True):
            assert one.found["accuracy"] == pytest.approx(other.found["accuracy"], abs=0.05)


def test_budgets_are_operations_or_shares(make_cost):
    cost = make_cost(10, 20, 40)
    assert [in_operations(budget, cost) for budget in (0.25, 0.5, 1, 12, 4e6)] == [10, 20, 40, 12, 4e6]
    with pytest.raises(UsageError, match=r"2 operations an image cannot be kept: .* takes 10 \(0.250"):
        in_operations(0.05, cost)
    for budget in (float("nan"), -1, float("inf")):
        with pytest.raises(UsageError, match="budget must be a number of at least 0"):
            in_operations(budget, cost)


def test_search_alone_may_be_searched(records, make_cost):
    search, test = records
    with pytest.raises(UsageError, match="not on made-up/test"):
        search_thresholds(test, make_cost(1, 2, 3, 4), [1.0])
    with pytest.raises(UsageError, match="caution must be a number of at least 0"):
        search_thresholds(search, make_cost(1, 2, 3, 4), [1.0], caution=-1.0)


def test_scores_are_of_the_measure(records, make_cost):
    search, _ = records
    cost = make_cost(1, 2, 3, 4)
    margin, softmax = (scores(search, cost, measure) for measure in (Measure("margin"), SOFTMAX))
    assert torch.equal(margin.right_KS, softmax.right_KS)
    assert (margin.confidence_KS < softmax.confidence_KS).all()


def test_one_image_more_is_not_beyond_one_standard_error():
    right_JS = torch.ones(3, 50, dtype=torch.bool)
    right_JS[:2, 0] = False  # the two geometric ones are wrong about one image of fifty, which the find gets right
    seen = SimpleNamespace(right_KS=right_JS)
    found = Candidates(seen, torch.zeros(3, 2), right_JS, torch.ones(3), 2)
    assert found.choose_within(1.0, caution=0.0) == 2
    assert found.choose_within(1.0, caution=1.0) == 0
    assert found.standard_error(right_JS[2])[2].item() == pytest.approx(1 / 52)
