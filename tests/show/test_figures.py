from types import SimpleNamespace

import pytest
import torch

from offramp.errors import UsageError
from offramp.evaluation import reliability
from offramp.files import Epoch
from offramp.show import figures
from offramp.terminal import short


def training(metrics):
    return figures.training(SimpleNamespace(metrics=metrics))


@pytest.fixture(autouse=True)
def _style():
    with figures.style():
        yield


def line(epoch, **values):
    return Epoch(epoch, **{"lr": 0.1, "loss": 2.0, "train_top1": (50.0, 60.0), **values})


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]


def drawn(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    return [tuple(curve.get_ydata()) for curve in axes.get_lines()]


@pytest.mark.parametrize(
    ("count", "text", "without_zeros"),
    [
        (0, "0", "0"),
        (812, "812", "812"),
        (6860, "6.86 k", "6.86 k"),
        (12_000_000, "12.0 M", "12 M"),
        (137_284_000, "137 M", "137 M"),
        (1.36e9, "1.36 G", "1.36 G"),
        (3.0e12, "3000 G", "3000 G"),
        (999_960, "1000 k", "1000 k"),
        (2.5e6, "2.50 M", "2.5 M"),
        (100e6, "100 M", "100 M"),
    ],
)
def test_short_counts(count, text, without_zeros):
    assert short(count) == text
    assert short(count, zeros=False) == without_zeros


def test_training_draws_held_out_accuracy_where_there_is_some():
    metrics = [line(1, search_top1=[1.0, 2.0]), line(2, search_top1=[3.0, 4.0])]
    figure = training(metrics)
    assert titles(figure) == ["top-1 on held-out images, %", "training loss (sum over exits)", "learning rate"]
    assert drawn(figure, "top-1 on held-out images, %") == [(1.0, 3.0), (2.0, 4.0)]
    assert drawn(figure, "training loss (sum over exits)") == [(2.0, 2.0)]


def test_training_draws_training_accuracy_otherwise_and_statistics_in_the_papers_words():
    metrics = [line(epoch, stats={"mine": [1.0, 2.0], "gamma": [0.1, 0.2], "a": [5.0, 4.0]}) for epoch in (1, 2)]
    assert titles(training(metrics)) == [
        "top-1 on training images, %",
        "training loss (sum over exits)",
        "learning rate",
        "a = −log F[N+1]  (nats)",
        "damping coefficient γ",
        "mine",
    ]


def test_training_draws_what_is_there_and_leaves_out_what_is_not():
    figure = training([Epoch(1, loss=3.0), Epoch(2, loss=2.0, stats={"a": (1.0,)})])
    assert titles(figure) == ["training loss (sum over exits)", "a = −log F[N+1]  (nats)"]
    assert drawn(figure, "training loss (sum over exits)") == [(3.0, 2.0)]
    assert drawn(figure, "a = −log F[N+1]  (nats)") == [(1.0,)]


@pytest.mark.parametrize("K", [1, 4, 5, 7])
def test_reliability_has_a_panel_per_exit_with_its_error(K):
    diagrams = [reliability(torch.rand(50), torch.rand(50) < 0.5) for _ in range(K)]
    assert titles(figures.reliability(diagrams)) == [
        f"exit {k} · ECE {diagram.ece:.3f}" for k, diagram in enumerate(diagrams, 1)
    ]


def test_accuracy_numbers_the_exits_of_one_curve_and_names_several():
    one = figures.PlotCurve("ours", [1e6, 2e6], [50.0, 60.0], [(1.0, 2.0), (1.0, 2.0)])
    two = figures.PlotCurve("theirs", [1e6], [40.0])
    single, several = figures.accuracy([one]), figures.accuracy([one, two])
    assert [text.get_text() for text in single.axes[0].texts] == ["1", "2"]
    assert single.legends == []
    assert [text.get_text() for text in several.legends[0].get_texts()] == ["ours", "theirs"]


def test_long_names_stay_inside_the_figure():
    curves = [figures.PlotCurve(f"{n} " + "argument=value " * 14, [1.0, 2.0], [n, n + 1.0]) for n in range(6)]
    figure = figures.accuracy(curves)
    figures.render(figure, "png", "accuracy")  # places everything
    names = figure.legends[0].get_window_extent()
    plot = figure.axes[0].get_window_extent()
    assert figure.bbox.x0 <= names.x0 < names.x1 <= figure.bbox.x1
    assert plot.height > 0.3 * figure.bbox.height


def test_each_curve_stands_at_its_own_operations_with_the_bars_it_has():
    one = figures.PlotCurve("ours", [1e6, 2e6], [50.0, 60.0], [(1.0, 2.0), (0.5, 3.0)])
    two = figures.PlotCurve("theirs", [3e6, 5e6], [40.0, 45.0])
    first, second = figures.accuracy([one, two]).axes[0].containers
    assert list(second.lines[0].get_xdata()) == [3e6, 5e6]
    assert not second.has_yerr
    (bars,) = first.lines[2]
    assert [[tuple(end) for end in bar] for bar in bars.get_segments()] == [
        [(1e6, 49.0), (1e6, 52.0)],
        [(2e6, 59.5), (2e6, 63.0)],
    ]


def test_accuracy_is_never_drawn_from_0():
    axes = training([line(epoch, train_top1=[98.0, 98.5]) for epoch in (1, 2)]).axes[0]
    assert axes.get_ylim()[0] > 90


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_same_figure_gives_the_same_bytes(kind, start):
    curve = figures.PlotCurve("ours", [1e6, 2e6], [50.0, 60.0], [(1.0, 2.0), (1.0, 2.0)])
    contents = set()
    for _ in range(2):
        with figures.style():
            contents.add(figures.render(figures.accuracy([curve]), kind, "accuracy"))
    (content,) = contents
    assert content.startswith(start)
    assert b"dc:date" not in content


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_it_is_said_how_to_get_it():
    assert not figures.available()
    with pytest.raises(UsageError, match=r"Plots need matplotlib: pip install 'offramp\[report\]'"):
        figures.require()
