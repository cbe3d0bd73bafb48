import dataclasses

import pytest

from offramp import backbones, objectives, rules
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.paper import EXPERIMENTS, experiments
from offramp.paper.identity import command, run_hash, run_name, second_stage
from offramp.paper.published import published, published_table
from offramp.paper.scales import PAPER, POCKET
from offramp.paper.study import distinct
from offramp.paper.watching import plain

BOTH = pytest.mark.parametrize("scale", [PAPER, POCKET], ids=lambda scale: scale.name)


@BOTH
def test_every_table_and_figure_is_there(scale) -> None:
    assert [e.name for e in experiments(["all"], scale)] == [
        *(f"table{n}" for n in range(1, 9)),
        "figure3",
        "figure4",
        "league",
        "league-imagenet",
    ]


@BOTH
def test_rows_are_the_papers(scale) -> None:
    """Every row that the paper printed is there by its name, and no other is said to be the paper's."""
    for experiment in experiments(["all"], scale):
        ours = [row.label for row in experiment.rows if row.in_paper]
        assert ours == list(published_table(experiment.name).rows)
        assert len({row.label for row in experiment.rows}) == len(experiment.rows)


def test_the_papers_means() -> None:
    """The mean of the exits is what the paper prints as the average, and the docstrings quote it."""
    for row in (row for table in ("table1", "table7") for row in published()[table].rows.values()):
        assert sum(row.top1) / 7 == pytest.approx(row.mean, abs=0.0011)
    expected = EXPERIMENTS["table1"].__doc__
    assert all(f"{row.mean:.3f}" in expected for row in published()["table1"].rows.values())


def test_the_recipe_to_the_letter() -> None:
    by_name = {e.name: e for e in experiments(["all"], PAPER)}
    for name, e in by_name.items():
        for row in e.rows:
            if "its own recipe" in row.label or "twice the batch" in row.label:
                continue  # test_methods.py has them
            where, training = row.run.data, row.run.training
            imagenet = where.source == Spec("imagenet")
            passes = 6 if row.run.rule.name == "meta-gf" and imagenet else 8 if row.run.rule.name == "meta-gf" else 1
            assert (training.epochs, where.batch_size) == ((100 * passes, 256) if imagenet else (300 * passes, 64))
            recipe = (training.optimizer, training.lr, training.momentum, training.weight_decay, training.schedule)
            assert recipe == ("sgd", 0.1, 0.9, 1e-4, "cosine")
            assert plain(where).holdout == (50_000 if name in ("figure4", "league-imagenet") else 0)
    strengths = {name: by_name[name].row("+ Dynamic").run.objective.args for name in ("table1", "table2")}
    assert strengths == {"table1": {"strength": 0.005, "alpha": 0.8}, "table2": {"strength": 0.01, "alpha": 0.3}}
    assert by_name["table4"].row("+ Power-sqrt").run.objective.args["strength"] == 0.075
    assert by_name["table7"].row("damping 0.025").run.objective == Spec("damping", {"strength": 0.025})


def test_tables_share_runs() -> None:
    by_name = {e.name: e for e in experiments(["all"], PAPER)}
    shared = [
        ("table1", "Damping", "table5", "Damping loss"),
        ("table1", "Damping", "table7", "damping 0.005"),
        ("table1", "+ Power-sqrt", "table8", "Power-sqrt"),
        ("table1", "WPN", "league", "WPN"),
        ("table3", "Threshold last only", "figure3", "95 %"),
        ("table3", "MSDNet last only (best epoch)", "figure3", "100 %"),
    ]
    for one, row, other, its in shared:
        assert run_hash(by_name[one].row(row).run) == run_hash(by_name[other].row(its).run)


def test_everything_can_be_built() -> None:
    """Objectives and rules are what they are called, and fit the networks."""
    networks = {}
    for row in distinct(experiments(["all"], POCKET)):
        run, setting = row.before or row.run, row.setting  # a second stage needs a finished first
        objective, rule = objectives.build(run.objective), rules.build(run.rule)
        key = (str(run.network), objective.damping_neuron == "required")
        if key not in networks:
            networks[key] = backbones.build(
                run.network, num_classes=setting.num_classes, image_shape=setting.image_shape, damping=key[1]
            )
        rule.check(networks[key])
        assert networks[key].num_exits in (1, setting.exits)
        assert run.training.epochs % rule.epochs_together(networks[key]) == 0
    for row in distinct(experiments(["all"], PAPER)):
        assert row.network.name in backbones.PRESETS
        assert objectives.build(row.run.objective)
        assert rules.build(row.run.rule)


def test_imta_begins_with_the_run_of_gradient_equilibrium_of_its_seed() -> None:
    """The same run as that row's; where its folder lies is no part of what it is."""
    (league,) = experiments(["league"], POCKET)
    row, first = league.row("IMTA"), league.row("gradient equilibrium")
    for seed in (0, 3):
        run, name = row.with_seed(seed), run_name(first.with_seed(seed))
        assert row.before_with_seed(seed) == first.with_seed(seed)
        assert (run.network, run.rule) == (Spec("collaborating", {"run": name}), Spec("one-for-all", {"teacher": name}))
        placed = second_stage(run, f"/elsewhere/{name}")
        assert (run_hash(placed), run_name(placed)) == (run_hash(run), run_name(run))
        assert f"collaborating run=there/{name} --rule one-for-all teacher=there/{name}" in command(run, "there/x")
    assert run_hash(row.with_seed(0)) != run_hash(row.with_seed(3))
    assert row.num_exits == 7


def test_figure_4_trains_on_as_many_images_as_the_tables() -> None:
    """At the pocket scale those held out come on top."""
    row = experiments(["figure4"], POCKET)[0].rows[0]
    assert row.run.data.source.args["limit"] - row.run.data.holdout == POCKET["imagenet"].data.args["limit"]


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no table or figure 'tabel1'. Did you mean table1"):
        experiments(["tabel1"], PAPER)
    with pytest.raises(UsageError, match="Say what to reproduce: table1"):
        experiments([], PAPER)


def test_a_setting_without_a_single_exit_says_what_to_do(tiny) -> None:
    settings = {"cifar100": dataclasses.replace(tiny["cifar100"], last_only=None)}
    for name in ("table3", "figure3"):
        with pytest.raises(
            UsageError, match=r"^The setting of msdnet .* last exit alone, .* Say one in its `last_only`\."
        ):
            experiments([name], dataclasses.replace(tiny, settings=settings))
