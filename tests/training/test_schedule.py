import math

import pytest

from offramp.config import TrainConfig
from offramp.training.loop import learning_rate

ORACLE = {  # protocols of the originals: E = 300, 782 iterations an epoch, lr 0.1
    (0, 0): 0.1,
    (0, 1): 0.09999999999551686,
    (75, 0): 0.08535533905932738,
    (150, 0): 0.05,
    (225, 0): 0.014644660940672627,
    (299, 0): 2.741531724392843e-06,
    (299, 781): 4.483152737932983e-12,
}


@pytest.mark.parametrize(("when", "rate"), ORACLE.items())
def test_cosine_per_iteration(when: tuple[int, int], rate: float) -> None:
    epoch, iteration = when
    found = learning_rate(TrainConfig(epochs=300, lr=0.1), epoch * 782 + iteration, 782)
    assert found == pytest.approx(rate, rel=1e-9, abs=1e-20)


def test_multistep_of_cifar_and_of_imagenet() -> None:
    cifar = TrainConfig(epochs=300, schedule="multistep")
    assert [learning_rate(cifar, e * 10, 10) for e in (0, 149, 150, 224, 225, 299)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    imagenet = TrainConfig(epochs=90, schedule="multistep", milestones=(1 / 3, 2 / 3))
    for epoch in range(90):
        assert learning_rate(imagenet, epoch * 7 + 6, 7) == pytest.approx(0.1 * 0.1 ** (epoch // 30))


@pytest.mark.parametrize("epochs", [10, 50, 90, 100, 160, 200, 300])
def test_a_milestone_between_whole_epochs_waits_and_one_at_an_epoch_does_not(epochs: int) -> None:
    """0.55 * 100 is 55.00000000000001, and the rate fell at epoch 56."""
    for percent in range(1, 100):
        config = TrainConfig(epochs=epochs, schedule="multistep", milestones=(percent / 100,))
        first = -(-percent * epochs // 100)
        rates = [learning_rate(config, epoch, 1) for epoch in range(epochs)]
        assert rates == [config.lr] * first + [config.lr * 0.1] * (epochs - first)


def test_warm_up_is_linear_and_meets_the_schedule() -> None:
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [learning_rate(config, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * s / 40)) for s in range(40)])
