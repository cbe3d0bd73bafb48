import random

import pytest
import torch

from offramp.errors import UsageError
from offramp.runtime.timing import conditions, kernels_kept, ratio, take_turns


def test_variants_take_turns_and_the_order_turns_around() -> None:
    order: list[str] = []

    def variant(name: str, seconds: float):
        def step() -> float:
            order.append(name)
            return seconds

        return step

    seconds = take_turns({"a": variant("a", 1.0), "b": variant("b", 2.0)}, rounds=3, warmup=1)
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_the_ratio_is_the_median_of_pairs_and_not_the_ratio_of_medians() -> None:
    busy = [1.0, 10.0, 100.0, 2.0, 5.0]  # the machine, round by round
    found = ratio([0.5 * one for one in busy], busy)
    assert found == {"ratio": 0.5, "at_least": 0.5, "at_most": 0.5}


def test_five_rounds_are_bounded_by_their_extremes() -> None:
    found = ratio([3.0, 1.0, 2.0, 5.0, 4.0], [1.0] * 5)
    assert found == {"ratio": 3.0, "at_least": 1.0, "at_most": 5.0}


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_bound_is_wrong_at_most_as_often_as_it_says(level: float) -> None:
    drawn = random.Random(0)
    draws, n, median_of = 2000, 11, 0.5  # uniform on [0, 1]
    above = sum(
        ratio([drawn.random() for _ in range(n)], [1.0] * n, level)["at_least"] > median_of for _ in range(draws)
    )
    below = sum(
        ratio([drawn.random() for _ in range(n)], [1.0] * n, level)["at_most"] < median_of for _ in range(draws)
    )
    spread = 4 * (level * (1 - level) * draws) ** 0.5
    assert 0 < above < level * draws + spread
    assert 0 < below < level * draws + spread


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"4 rounds are too few .* 0\.05: 5"):
        ratio([1.0] * 4, [1.0] * 4)
    with pytest.raises(UsageError, match="8 rounds are too few"):
        ratio([1.0] * 8, [1.0] * 8, 0.05 / 16)
    assert ratio([1.0] * 9, [1.0] * 9, 0.05 / 16)["ratio"] == 1


def test_conditions_name_what_times_depend_on() -> None:
    here = conditions(torch.device("cpu"))
    assert here.keys() == {
        "device",
        "cores",
        "threads",
        "kernels_kept",
        "load_average",
        "torch",
        "onnxruntime",
        "openvino",
        "python",
    }
    assert here["threads"] == torch.get_num_threads()
    assert here["device"] == conditions()["device"] != "cpu"


def test_kernels_kept_are_a_matter_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    assert conditions()["kernels_kept"] == 1024
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "50")
    assert conditions()["kernels_kept"] == 50
    assert kernels_kept(torch.device("cuda")) is None


def test_a_number_of_kernels_that_is_none_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16k")
    with pytest.raises(UsageError, match="ONEDNN_PRIMITIVE_CACHE_CAPACITY must be a whole number, not '16k'"):
        kernels_kept(torch.device("cpu"))
    assert kernels_kept(torch.device("cuda")) is None
