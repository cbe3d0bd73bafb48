"""The paper's full method by one name."""

from offramp.objectives import Damping, DynamicWeights, PowerSqrt, dynamic


def test_it_is_power_sqrt_under_dynamic_weights_unless_told_otherwise():
    assert dynamic() == PowerSqrt(weighting=DynamicWeights())
    assert dynamic("damping", strength=[0.1, 0.2]) == Damping((0.1, 0.2), weighting=DynamicWeights())


def test_every_setting_of_the_weights_reaches_them():
    settings = {
        "alpha": 0.3,
        "normalisation": "tanh",
        "over": "batch",
        "applied_to": "cross-entropy",
        "reverse": True,
        "with_gradient": True,
    }
    assert set(settings) == set(DynamicWeights.__dataclass_fields__)
    assert dynamic(strength=0.07, **settings) == PowerSqrt(0.07, weighting=DynamicWeights(**settings))
