import math

import pytest

from offramp.config import Run
from offramp.errors import OfframpError
from offramp.paper import experiments
from offramp.paper.estimate import counted
from offramp.paper.identity import run_hash
from offramp.paper.published import published, published_table
from offramp.paper.results import (
    BUDGETS,
    at_budgets,
    manifest_of,
    measured,
    of_manifest,
    printed,
)
from offramp.paper.scales import PAPER


def test_a_curve_between_its_points() -> None:
    points = [[200, 80.0], [100, 60.0], [400, 90.0], [300, 80.0]]
    found = dict(zip(BUDGETS, at_budgets(points, 500), strict=True))
    assert found[0.3] == pytest.approx(70)
    assert found[0.5] == pytest.approx(80)
    assert found[0.7] == pytest.approx(85)
    assert found[1.0] == 90  # the dearest point leaves something over
    assert math.isnan(at_budgets([[200, 80.0], [500, 90.0]], 500)[0])  # nothing is so cheap


def test_the_best_epoch_is_shown_only_where_asked(manifest) -> None:
    made = manifest(Run(), [70.0], best=[72.0])
    assert of_manifest(made).top1 == (70.0,)
    assert of_manifest(made, best_epoch=True).top1 == (72.0,)
    assert of_manifest(made, best_epoch=True).epoch == 7


def test_what_a_run_has_not_is_none(manifest) -> None:
    figures = of_manifest(manifest(Run(), [70.0, 71.0]))
    assert [figures.values(what) for what in ("damping", "damping-train", "budgeted")] == [None] * 3
    assert figures.values("train-nll") == (0.5, 0.5)
    assert of_manifest(manifest(Run(), [70.0], damping=[0.2])).values("damping-train") == (0.1,)


def test_rows_find_their_runs_by_configuration_and_seed(tiny, manifest) -> None:
    """Two rows of two tables that are one configuration see the same run."""
    found = experiments(["table1", "table8"], tiny)
    run = found[0].row("MSDNet").with_seed(1)
    results = measured(found, (0, 1), {run_hash(run): manifest(run, [70.0, 71.0, 72.0])})
    for name, row in (("table1", "MSDNet"), ("table8", "MSDNet")):
        assert {seed: figures.top1 for seed, figures in results.of(name, row).items()} == {1: (70.0, 71.0, 72.0)}
    assert results.of("table1", "WPN") == {}


def test_a_manifest_from_other_defaults_is_refused(tiny, manifest) -> None:
    (table,) = experiments(["table1"], tiny)
    run = table.rows[0].with_seed(0)
    made = manifest(run, [70.0] * 3)
    made.file.run["training"]["momentum"] = 0.5
    with pytest.raises(OfframpError, match=r"training.momentum: 0.5 there, 0.9 now.*other defaults"):
        measured([table], (0,), {run_hash(run): made})
    made = manifest(run, [70.0] * 3)
    del made.file.run["training"]["precision"]  # a field that came later
    assert measured([table], (0,), {run_hash(run): made}).of("table1", "MSDNet")


def test_a_manifest_with_some_of_the_exits_is_refused(tiny, manifest) -> None:
    (table3,) = experiments(["table3"], tiny)
    (table1,) = experiments(["table1"], tiny)
    for row, exits, best, fine in (
        (table1.rows[0], 3, None, True),
        (table1.rows[0], 2, None, False),
        (table3.rows[0], 1, 1, True),
        (table3.rows[0], 3, 1, False),
        (table3.rows[0], 1, 3, False),
    ):
        run = row.with_seed(0)
        made = manifest(run, [70.0] * exits, best=None if best is None else [71.0] * best)
        if fine:
            assert manifest_of(row, 0, {run_hash(run): made}) is made
        else:
            with pytest.raises(OfframpError, match=r"m\.json is damaged: it has \d exits, its setting's network \d\."):
                manifest_of(row, 0, {run_hash(run): made})
    assert manifest_of(table1.rows[0], 1, {}) is None


def test_the_papers_numbers() -> None:
    assert printed().of("table5", "Damping loss")[0].values("damping")[-1] == 0.071
    assert printed().of("table3", "Damping loss last only")[0].top1 == (76.63,)


def test_the_papers_sums_over_exits() -> None:
    """Table 2's Δ, to the rounding of its five numbers."""
    rows = published()["table2"].rows
    for label, theirs in rows.items():
        total = sum(theirs.top1) - sum(rows["MSDNet"].top1)
        assert (theirs.delta or 0) == pytest.approx(total, abs=0.011), label
    assert [published_table(name).has_delta for name in ("table2", "table1", "league")] == [True, False, False]


@pytest.mark.parametrize("name", ["table1", "table2", "table4", "table5", "table6"])
def test_the_printed_costs_are_those_that_we_count(name) -> None:
    """All 64 to their last digit but two slips: exit 7's parameters, and Table 4, which has CIFAR-100's columns."""
    (experiment,) = experiments([name], PAPER)
    exits = counted(experiment.rows[0]).exits
    for kind, most in (("parameters", 0.006), ("operations", 0.055)):
        costs = getattr(published()[name], kind)
        ours = [getattr(exit, kind) / costs.unit for exit in exits]
        apart = [k + 1 for k, (a, b) in enumerate(zip(ours, costs.exits, strict=True)) if abs(a - b) > most]
        if name == "table4":
            assert apart == ([1, 2, 3, 4, 5, 6, 7] if kind == "parameters" else [5, 6, 7])
        else:
            assert apart == ([7] if kind == "parameters" and len(exits) == 7 else [])
    assert bool(published()[name].slip) == (len(exits) == 7)


def test_all_64_are_there() -> None:
    kinds = ("parameters", "operations")
    assert sum(len(costs.exits) for t in published().values() for kind in kinds if (costs := getattr(t, kind))) == 64
