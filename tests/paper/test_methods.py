import dataclasses

import pytest

from offramp.config import Run, Spec, TrainConfig
from offramp.errors import UsageError
from offramp.paper.identity import run_hash
from offramp.paper.methods import CROSS_ENTROPY, LEAGUE, Method, own
from offramp.paper.scales import PAPER, POCKET, Recipe, Setting


def test_methods_of_ones_own() -> None:
    objective = own(Spec("damping", {"strength": 0.5})).run(PAPER["cifar100"])
    assert (objective.objective.name, objective.rule.name) == ("damping", "standard")
    rule = own(Spec("dfs", {"ratio": 0.3})).run(PAPER["cifar100"])
    assert (rule.objective.name, rule.rule.args) == ("cross-entropy", {"ratio": 0.3})
    assert own(Spec("offramp.paper.methods:WPN")) in LEAGUE
    with pytest.raises(UsageError, match="no argument 'ratoi'"):
        own(Spec("dfs", {"ratoi": 0.3}))
    with pytest.raises(UsageError, match=r"is a Method, which takes no arguments \(epsilon\)\.$"):
        own(Spec("offramp.paper.methods:WPN", {"epsilon": 0.1}))


def added(setting: Setting, words: str) -> Run:
    return own(Spec.parse(words.split())).run(setting)


@pytest.mark.parametrize(
    ("of", "strength", "alpha"), [("imagenet", 0.01, 0.3), ("cifar10", 0.075, 0.8), ("cifar100", 0.005, 0.8)]
)
def test_what_an_added_method_leaves_out_is_the_settings(of, strength: float, alpha: float) -> None:
    """Its lambda, its alpha, its arguments of WPN; what is said stays, and a league's method is the league's row."""
    setting = PAPER[of]
    dynamic = {"strength": strength, "alpha": alpha}
    assert added(setting, "dynamic over=batch").objective.args == {**dynamic, "over": "batch"}
    assert added(setting, "dynamic alpha=0.5").objective.args == {**dynamic, "alpha": 0.5}
    assert added(setting, "damping strength=0.2").objective.args == {"strength": 0.2}
    assert added(setting, "power-sqrt root=batch").objective.args == {"strength": strength, "root": "batch"}
    with pytest.raises(UsageError, match="the objective dynamic is power-sqrt under dynamic weights"):
        added(setting, "power-sqrt weighting=dynamic")
    assert added(setting, "wpn centre=row").rule.args == {"epsilon": alpha, **setting.wpn, "centre": "row"}
    assert added(setting, "dfs ratio=0.3").rule.args == {"ratio": 0.3}
    assert added(setting, "label-smoothing").objective.args == {}
    for label, words in (("dynamic", "dynamic"), ("power-sqrt", "power-sqrt"), ("damping", "damping"), ("WPN", "wpn")):
        (row,) = [method for method in LEAGUE if method.label == label]
        assert run_hash(added(setting, words)) == run_hash(row.run(setting))


def by_label(label: str, setting: Setting) -> Run:
    (method,) = [method for method in LEAGUE if method.label == label]
    return method.run(setting)


def test_rivals_with_their_own_recipes_stand_beside_those_with_the_settings() -> None:
    steps = {"schedule": "multistep", "milestones": (250 / 300, 280 / 300, 295 / 300)}
    cifar, imagenet, pocket = PAPER["cifar100"], PAPER["imagenet"], POCKET["cifar100"]
    dfs, cgt = (by_label(f"{name}, its own recipe", cifar) for name in ("DFS", "CGT, hard gate"))
    assert (dfs.rule.args, dfs.data.batch_size) == ({"dropout": 0.5}, 500)
    assert dfs.training == TrainConfig(weight_decay=5e-4, **steps)
    assert (cgt.rule.args, cgt.data.batch_size) == ({"gate": "hard"}, 500)
    assert cgt.objective == Spec("label-smoothing", {"smoothing": 0.1})
    assert cgt.training == TrainConfig(weight_decay=5e-4, nesterov=True, **steps)
    dfs = by_label("DFS, its own recipe", imagenet)
    assert (dfs.rule.args, dfs.data.batch_size, dfs.training.epochs) == ({"dropout": 0.5}, 256, 100)
    assert (dfs.training.weight_decay, dfs.training.milestones) == (0, (70 / 90, 80 / 90, 85 / 90))
    dfs = by_label("DFS, its own recipe", pocket)
    assert (dfs.data.batch_size, dfs.training) == (64, TrainConfig(epochs=100, weight_decay=5e-4, **steps))
    for setting, batch, rate in ((cifar, 1024, 0.8), (imagenet, 4096, 0.8), (pocket, 256, 0.2)):
        own = by_label("WPN, its own recipe", setting)
        assert (own.data.batch_size, own.training.lr) == (batch, rate)  # as much rate an image as twice the batch has
        assert own.rule == by_label("WPN", setting).rule
    for setting in (cifar, imagenet, pocket):
        wpn, larger = by_label("WPN", setting), by_label("WPN, twice the batch", setting)
        assert larger.data.batch_size == 2 * wpn.data.batch_size
        assert dataclasses.replace(larger, data=wpn.data) == wpn


def test_a_method_of_ones_own_may_have_a_recipe_of_its_own() -> None:
    plain = CROSS_ENTROPY.run(PAPER["imagenet"])
    method = Method("mine", recipe=lambda setting: Recipe(training={"lr": 0.3, "augment": False}))
    run = method.run(PAPER["imagenet"])
    assert run.training == dataclasses.replace(plain.training, lr=0.3, augment=False)
    assert run.data == plain.data
    assert run_hash(dataclasses.replace(run, training=plain.training)) == run_hash(plain)
    bare = dataclasses.replace(PAPER["imagenet"], rivals={})
    assert by_label("DFS, its own recipe", bare).training == plain.training


# Of runs that are in studies by now: what a row is called may change, its hash may not.
KNOWN = {
    "cross-entropy": "9ec0823838b0",
    "damping, λ/√K": "93ac4e612b6d",
    "dynamic": "bd0778f9b45a",
    "dynamic, tanh, on cross-entropy (R3, W1)": "45d5202014db",
    "WPN": "a08a723c2f52",
    "DFS": "f9ab7a34078a",
    "CGT": "a8095542ae2d",
}


@pytest.mark.parametrize("label", KNOWN)
def test_rows_keep_their_hashes(label: str) -> None:
    assert run_hash(by_label(label, POCKET["cifar100"])) == KNOWN[label]


def test_the_league_is_complete() -> None:
    """What the study has to compare at the least."""
    labels = [method.label for method in LEAGUE]
    assert len(set(labels)) == len(labels)
    rules = {method.rule(PAPER["cifar100"]).name for method in LEAGUE}
    assert rules == {"standard", "wpn", "dfs", "gradient-equilibrium", "pcgrad", "cagrad", "meta-gf", "cgt"}
    assert by_label("IMTA", PAPER["cifar100"]).rule.name == "one-for-all"
    objectives = {str(method.objective(PAPER["cifar100"])) for method in LEAGUE}
    assert "damping strength=0.005 per_sqrt_exits=True" in objectives
    assert "damping strength=[0.000714, 0.001429, 0.002143, 0.002857, 0.003571, 0.004286, 0.005]" in objectives
    assert "dynamic strength=0.005 alpha=0.8 normalisation='tanh'" in objectives
    assert "dynamic strength=0.005 alpha=0.8 normalisation='centre'" in objectives
    assert "dynamic strength=0.005 alpha=0.8 normalisation='centre-clipped'" in objectives
    gates = [str(method.rule(PAPER["cifar100"])) for method in LEAGUE if method.label.startswith("CGT")]
    assert gates == ["cgt", "cgt gate='hard'", "cgt total='exits'", "cgt gate='hard'", "cgt gate='soft'"]
