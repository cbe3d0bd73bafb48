"""The drawn figures hold what the runs gave, and nothing of the paper's."""

import pytest
from tests.paper.figures import figures_of

from offramp.paper import experiments
from offramp.paper.plots import draw
from offramp.paper.results import BUDGETS, Results
from offramp.paper.scales import PAPER, POCKET
from offramp.show import figures


def test_the_threshold_sweep() -> None:
    (figure3,) = experiments(["figure3"], PAPER)
    rows = figure3.rows[:2]  # the others are not run yet
    results = Results(
        {
            ("figure3", row.label): {seed: figures_of((75.0 + n + seed,), train_nll=(0.5 - n / 10,)) for seed in (0, 1)}
            for n, row in enumerate(rows)
        }
    )
    with figures.style():
        accuracy, loss = draw(figure3, results).axes
    assert accuracy.lines[0].get_xydata().tolist() == [[70, 75.5], [75, 76.5]]
    assert loss.lines[0].get_xydata().ravel() == pytest.approx([70, 0.5, 75, 0.4])


def test_budgeted_curves_with_the_spread_of_their_seeds() -> None:
    (figure4,) = experiments(["figure4"], PAPER)
    curves = {seed: figures_of((1.0,), budgeted=(60.0 + 4 * seed,) * len(BUDGETS)) for seed in (0, 1)}
    results = Results({("figure4", "WPN"): curves, ("figure4", "dynamic"): curves})
    with figures.style():
        (axes,) = draw(figure4, results).axes
    assert [line.get_label() for line in axes.lines] == ["WPN", "dynamic"]
    assert set(axes.lines[0].get_ydata()) == {62.0}
    (band,) = axes.collections[0].get_paths()
    assert (band.vertices[:, 1].min(), band.vertices[:, 1].max()) == (60.0, 64.0)


def test_a_figure_of_other_data_says_so_itself() -> None:
    for scale, said in ((PAPER, None), (POCKET, "Measured on fashion-mnist")):
        (figure3,) = experiments(["figure3"], scale)
        results = Results({("figure3", figure3.rows[0].label): {0: figures_of((75.0,), train_nll=(0.5,))}})
        with figures.style():
            drawn = draw(figure3, results)
        assert drawn.get_supxlabel() == (said or "")


def test_nothing_is_drawn_of_nothing() -> None:
    for experiment in experiments(["figure3", "figure4", "table1"], PAPER):
        assert draw(experiment, Results({})) is None
