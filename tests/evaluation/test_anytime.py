import dataclasses
import math

import pytest
import torch

from offramp.evaluation import Record, anytime


def slow(record: Record, k: int, renormalise: bool) -> dict[str, object]:
    """One exit, image by image, in Python's own floating point."""
    N, right, top5, nll, per_class = record.num_classes, 0, 0, 0.0, [[0, 0] for _ in range(record.num_classes)]
    for row, target in zip(record.logits_KSC[k].double().tolist(), record.targets_S.tolist(), strict=True):
        classes = row[:N]
        total = sum(math.exp(value) for value in (classes if renormalise else row))
        order = sorted(range(N), key=lambda n: -classes[n])
        right += order[0] == target
        top5 += target in order[:5]
        nll -= classes[target] - math.log(total)
        per_class[target][0] += order[0] == target
        per_class[target][1] += 1
    S = record.num_images
    return {
        "top1": 100 * right / S,
        "top5": 100 * top5 / S,
        "nll": nll / S,
        "class_top1": [100 * n / of if of else None for n, of in per_class],
    }


@pytest.mark.parametrize("damping", [True, False])
@pytest.mark.parametrize("renormalise", [True, False])
def test_figures_equal_a_slow_loop(make_record, damping, renormalise):
    record = make_record(damping=damping)
    result = anytime(record, renormalise=renormalise)
    for k, figures in enumerate(result.exits):
        expected = slow(record, k, renormalise)
        assert figures.top1 == pytest.approx(expected["top1"], rel=1e-12)
        assert figures.top5 == pytest.approx(expected["top5"], rel=1e-12)
        assert figures.nll == pytest.approx(expected["nll"], rel=1e-6)
        assert list(figures.class_top1) == pytest.approx(expected["class_top1"], rel=1e-12)
        share = figures.top1 / 100
        assert figures.top1_se == pytest.approx(100 * math.sqrt(share * (1 - share) / 400), rel=1e-12)
        assert sum(figures.reliability.images) == 400
    assert result.mean_top1 == pytest.approx(sum(f.top1 for f in result.exits) / 3, rel=1e-12)
    assert result.num_images == sum(result.class_images) == 400
    assert result.renormalised is renormalise


@pytest.mark.parametrize("renormalise", [True, False])
def test_figures_do_not_depend_on_how_many_images_are_read_together(make_record, read_together, renormalise):
    record = make_record()
    whole = anytime(record, renormalise=renormalise)
    read_together(13 * 7)  # pieces of seven images, and one left over
    assert anytime(record, renormalise=renormalise) == whole


def test_the_two_readings_differ_in_likelihood_only_by_the_neurons_share(make_record):
    """A9: accuracy is the same, and log-probabilities differ by log(1 - F[N+1])."""
    record = make_record(K=1)
    kept, renormalised = anytime(record).exits[0], anytime(record, renormalise=True).exits[0]
    share_S = record.logits_KSC[0].double().softmax(-1)[:, -1]
    assert kept.top1 == renormalised.top1
    assert kept.class_top1 == renormalised.class_top1
    assert kept.nll - renormalised.nll == pytest.approx(-(1 - share_S).log().mean().item(), rel=1e-5)
    assert kept.damping == renormalised.damping


def test_without_the_neuron_the_readings_agree_and_nothing_is_said_of_damping(make_record):
    record = make_record(damping=False)
    assert anytime(record).exits == anytime(record, renormalise=True).exits
    assert all(exit.damping is None for exit in anytime(record).exits)


def test_the_damping_neuron_never_takes_an_answer(make_record):
    """Reading A9(c) would count these as errors."""
    record = make_record(K=1, N=3)
    record.logits_KSC[..., 3] = 100.0
    figures = anytime(record).exits[0]
    assert figures.damping.wins == 100.0
    without = dataclasses.replace(record, logits_KSC=record.logits_KSC[..., :3])
    assert figures.top1 == anytime(without).exits[0].top1 > 0


def test_one_exit(make_record):
    result = anytime(make_record(K=1))
    assert result.mean_top1 == result.exits[0].top1
    assert result.mean_top1_se == pytest.approx(result.exits[0].top1_se, rel=1e-12)
    assert result.deep_only == ()


def test_the_mean_over_equal_exits_is_as_uncertain_as_one(make_record):
    record = make_record(K=1)
    thrice = dataclasses.replace(record, logits_KSC=record.logits_KSC.repeat(3, 1, 1))
    assert anytime(thrice).mean_top1_se == pytest.approx(anytime(record).mean_top1_se, rel=1e-12)


def test_top5_says_nothing_with_ten_classes(make_record):
    assert anytime(make_record(N=10)).exits[0].top5 is None
    assert anytime(make_record(N=11)).exits[0].top5 is not None


def test_a_class_without_images_has_no_accuracy(make_record):
    record = make_record(N=3)
    record = dataclasses.replace(record, targets_S=record.targets_S.clamp(max=1))
    result = anytime(record)
    assert result.class_images[2] == 0
    assert all(exit.class_top1[2] is None for exit in result.exits)
    assert result.knows_from[2] is None


def test_classes_that_only_deep_exits_know():
    """Of four classes the first is known from exit 1, the second from exit 2, the third from exit 4, the last never."""
    known = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    targets_S = torch.arange(4).repeat(10)
    answers_KS = torch.where(known[:, targets_S], targets_S, (targets_S + 1) % 4)
    logits_KSC = torch.nn.functional.one_hot(answers_KS, 4).float()
    record = Record(logits_KSC, targets_S, torch.arange(40), ("a", "b", "c", "d"), "s", "f", "w", 40, "cpu")
    result = anytime(record)
    assert result.knows_from == (0, 1, 3, None)
    assert result.deep_only == ("c",)
    assert [exit.class_top1 for exit in result.exits] == [
        tuple(100.0 if yes else 0.0 for yes in row) for row in known.tolist()
    ]


def test_extreme_logits_stay_finite(make_record):
    result = anytime(make_record(scale=1e4))
    assert all(math.isfinite(exit.nll) and math.isfinite(exit.ece) for exit in result.exits)


def test_it_shows_the_error_that_evaluate_shows(make_record):
    """Where all answers are right it said ±0.00."""
    record = make_record(K=1, S=4, N=3, damping=False)
    right = dataclasses.replace(record, targets_S=record.logits_KSC[0].argmax(-1))
    assert str(anytime(right)).count("100.00 ±20.00") == 2
