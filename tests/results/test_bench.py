import numpy as np
import pytest
import torch
from tests.results import made_up

from offramp.errors import OfframpError
from offramp.files import RunFolder
from offramp.json_files import write
from offramp.policy import EVERYBODY, Policy
from offramp.results.bench import Account, Latency, account, accuracy, bench_of, latency, read_bench, to_measured


def masks(both: int, lost: int, gained: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Who is right, and where the last exit is: so many images of each kind."""
    right = [True] * both + [False] * lost + [True] * gained + [False] * neither
    full = [True] * both + [True] * lost + [False] * gained + [False] * neither
    return torch.tensor(right), torch.tensor(full)


def test_accuracy_counts_what_is_lost_and_gained():
    found = accuracy(*masks(80, 7, 3, 10))
    assert (found.top1, found.drop) == pytest.approx((83, 4))
    assert found.low < 4 < found.high
    # Who is right and against whom turned around: the drop changes its sign, and so does the interval.
    turned = accuracy(*reversed(masks(80, 7, 3, 10)))
    assert (turned.drop, turned.low, turned.high) == pytest.approx((-found.drop, -found.high, -found.low))


def test_nothing_lost_does_not_mean_that_nothing_can_be():
    found = accuracy(*masks(90, 0, 0, 10))
    assert found.drop == 0
    assert found.low == -found.high < 0
    more = accuracy(*masks(9000, 0, 0, 1000))
    assert more.high < found.high / 50  # it shrinks with the number of images


def test_the_interval_covers_the_true_drop():
    """Over draws of 400 images of which 3 % are lost and 1 % gained."""
    numbers = np.random.default_rng(0)
    covered = 0
    for both, lost, gained, neither in numbers.multinomial(400, [0.86, 0.03, 0.01, 0.10], size=1000):
        found = accuracy(*masks(both, lost, gained, neither))
        covered += found.low <= 2.0 <= found.high
    assert 930 <= covered <= 990


def test_latencies_are_percentiles_in_milliseconds():
    found = latency([k / 1000 for k in range(101)])
    assert (found.p50, found.p95, found.p99) == pytest.approx((50, 95, 99))
    assert latency([0.25]) == Latency(250, 250, 250)


def account_of(**changes) -> Account:
    settings = {
        "wall": 1.0,
        "segments": 0.85,
        "rows_K": [10, 8],
        "head_rows_K": [10, 5],
        "left_K": [6, 4],
        "stages_K": [100, 300],
        "heads_K": [50, 60],
        "straight_operations": 500,
        "straight_seconds": 0.1,
    }
    return account(**{**settings, **changes})


def test_an_account_divides_the_whole_time():
    found = account_of()
    # 10 images through the first stage and 4 through the second are 2,200 operations, 10 and 5 rows through the heads
    # 800; straight, 500 take 0.1 s.
    assert found.stages == pytest.approx(0.44)
    assert (found.exits, found.rest) == pytest.approx((0.16, 0.15))
    assert found.slower == pytest.approx(0.85 - 0.44 - 0.16)
    assert found.stages + found.slower + found.exits + found.rest == pytest.approx(1)
    assert found.idle_rows == pytest.approx(4 / 18)


def test_a_network_run_straight_is_its_stages_and_its_last_head():
    """Nobody leaves, and nothing is slower than straight."""
    nobody_leaves = {"rows_K": [10, 10], "head_rows_K": [0, 10], "left_K": [0, 10]}
    found = account_of(wall=4.6, segments=4.6, **nobody_leaves, straight_operations=460, straight_seconds=0.46)
    assert (found.stages, found.exits) == pytest.approx((4 / 4.6, 0.6 / 4.6))
    assert (found.slower, found.rest, found.idle_rows) == pytest.approx((0, 0, 0))


def test_times_to_each_exit_add_up_to_what_was_measured():
    found = to_measured([1.0, 2.0, 5.0], [6, 0, 4], 1.3)
    assert found == pytest.approx((0.5, 1.0, 2.5))
    assert (6 * found[0] + 4 * found[2]) / 10 == pytest.approx(1.3)


def test_realised_is_measured_over_promised():
    one = made_up.mode("1")
    assert one.realised == 0.75
    assert one.straight is one.exits[-1]


def test_what_is_written_is_read_again(tmp_path):
    run, policy = RunFolder(tmp_path), Policy((0.9, EVERYBODY))
    assert bench_of(run, "0" * 64, policy) is None
    bench = made_up.bench(policy, "0" * 64)
    write(run.bench, bench.to_json())
    assert read_bench(run) == bench_of(run, "0" * 64, policy) == bench
    assert bench_of(run, "1" * 64, policy) is None
    assert bench_of(run, "0" * 64, Policy((0.8, EVERYBODY))) is None
    write(run.bench, {"format": 1, "weights": "0" * 64})
    assert bench_of(run, "0" * 64, policy) is None  # of an older offramp


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 1},
        {"modes": {}},
        {"exits": []},
        {"accuracy": 90.0},
        {"conditions": {"threads": 2}},
        {"modes": {"1": {**made_up.bench().to_json()["modes"]["1"], "exits": []}}},
    ],
)
def test_a_file_of_another_make_is_refused_with_the_way_out(tmp_path, changes):
    run = RunFolder(tmp_path)
    write(run.bench, {**made_up.bench().to_json(), **changes})
    with pytest.raises(OfframpError, match=r"bench.json is damaged: .* `offramp bench .*` measures it anew"):
        read_bench(run)
