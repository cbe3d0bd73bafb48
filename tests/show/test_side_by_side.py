import io

import pytest
from rich.console import Console

from offramp.commands import CompareOptions, compare
from offramp.results.comparison import Spread
from offramp.show import figures
from offramp.show.side_by_side import _accuracy, html, markdown, on_terminal, spread_text, tables


@pytest.fixture
def comparison(make_run):
    other = {"name": "mine:Of<My>|Own", "args": {}}
    runs = [make_run(f"a{seed}", seed=seed) for seed in (0, 1)]
    runs += [make_run(f"b{seed}", seed=seed, objective=other) for seed in (0, 1)]
    return compare(CompareOptions([*runs, make_run("c", exits=2)]))


def test_brackets_in_names_are_no_markup(make_run):
    names = ("a[old]", "[/old]")
    runs = [make_run(f"run{n}", objective={"name": "mine:Of", "args": {"how": how}}) for n, how in enumerate(names)]
    console = Console(file=io.StringIO(), width=200)
    console.print(on_terminal(compare(CompareOptions(runs))))
    assert all(console.file.getvalue().count(f"how={name} ") == 2 for name in names)


def test_spreads_in_short():
    assert spread_text(Spread(70.394, 0.1434, 0.1601, 5)) == "70.39 ±0.14 (0.16)"
    assert spread_text(Spread(-0.5, 0.25, 0.25, 2), "+") == "-0.50 ±0.25 (0.25)"
    assert spread_text(Spread(70.394, None, None, 1)) == "70.39"
    assert spread_text(None) == ""


def test_tables_hold_every_group_and_exit(comparison):
    summary, exits = tables(comparison)
    a, b, c = comparison.groups
    assert [row[0] for row in summary.rows] == [a.label, b.label, c.label]
    assert [row[1] for row in summary.rows] == ["2", "2", "1"]
    assert [row[2] for row in summary.rows] == [spread_text(group.mean_top1) for group in (a, b, c)]
    assert [row[3] for row in summary.rows] == ["", "+0.00 ±0.00 (0.00), n = 2", ""]
    assert [row[0] for row in exits.rows] == ["1", "2", "3", "mean"]
    assert [row[1] for row in exits.rows[:3]] == [spread_text(a.exit(k, "top1")) for k in range(3)]
    assert exits.rows[2][3] == ""  # the group of two exits
    assert all(len(row) == len(exits.head) for row in exits.rows)


def test_markdown_tables_are_rectangular(comparison):
    lines = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [5] * 5 + [5] * 6
    assert "Of<My>\\|Own" in markdown(comparison)


def test_the_page_has_tables_plot_and_runs_and_the_same_bytes_twice(comparison):
    source = html(comparison)
    assert source.count("<table>") == 2
    assert source.count("<svg") == 1
    assert "Of&lt;My&gt;" in source
    assert "Of<My>" not in source
    assert all(str(run.path) in source for group in comparison.groups for run in group.runs)
    assert html(comparison) == source


def test_the_plot_has_a_line_a_group_from_its_lowest_seed_to_its_highest(comparison):
    with figures.style():
        (axes,) = _accuracy(comparison).axes
    for group, drawn in zip(comparison.groups, axes.containers, strict=True):
        top1 = [[run.figures.exits[k].top1 for run in group.runs] for k in range(group.num_exits)]
        assert drawn.get_label() == f"{group.label}, n = {len(group.runs)}"
        assert list(drawn.lines[0].get_xdata()) == group.operations
        assert list(drawn.lines[0].get_ydata()) == pytest.approx([sum(seeds) / len(seeds) for seeds in top1])
        ends = [end for bars in drawn.lines[2] for bar in bars.get_segments() for end in bar[:, 1]]
        lowest_to_highest = [end for seeds in top1 for end in (min(seeds), max(seeds))]
        assert ends == pytest.approx(lowest_to_highest if len(group.runs) > 1 else [])


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_the_page_has_its_tables_and_says_what_is_missing(comparison):
    source = html(comparison)
    assert source.count("<table>") == 2
    assert "plots need matplotlib" in source
    assert "<svg" not in source
