import dataclasses

import pytest

from offramp.evaluation import Curve, Point
from offramp.policy import EVERYBODY, SOFTMAX, Policy
from offramp.results.dynamic import ClassUse, Dynamic, ExitUse, Picked
from offramp.show import figures
from offramp.show.dynamic import flow, plot, section
from offramp.show.page import Sheet


def point(accuracy, operations):
    return Point(Policy((0.5, EVERYBODY)), accuracy, operations, (0.5, 0.5))


def made_up(classes=(), picked=((), ()), measure=SOFTMAX):
    return Dynamic(
        published=Curve((point(60.0, 300), point(50.0, 200)), "x/test", "f", 400),
        searched=Curve((point(70.0, 250),), "x/test", "f", 400),
        point=Point(Policy((0.5, EVERYBODY), measure), 64.0, 210.0, (0.5, 0.5)),
        certificate=None,
        source=None,
        note=None,
        search_images=400,
        full_top1=66.0,
        full_operations=400,
        exits=(ExitUse(0.5, 200, 0.5, 60.0, 62.0), ExitUse(EVERYBODY, 200, 0.5, 68.0, 70.0)),
        classes=tuple(classes),
        picked=picked,
    )


def of_class(name, lost, gained, images=10):
    if images == 0:
        return ClassUse(name, 0, None, None, 0, 0, ())
    return ClassUse(name, images, 50.0, 50.0, lost, gained, (0.5, 0.5))


def test_classes_are_sorted_by_what_they_lose_and_those_without_images_are_left_out():
    classes = [of_class("a", 1, 1), of_class("b", 0, 3), of_class("c", 5, 1), of_class("none", 0, 0, images=0)]
    values = section(made_up([*classes, of_class("d", 0, 0)]), None)
    assert [row.name for row in values["payers"]] == ["c", "a", "d", "b"]
    assert (values["losing"], values["gaining"], values["shown"]) == (1, 1, 4)


def test_the_standard_error_is_binomial():
    assert section(made_up(), None)["policy_se"] == pytest.approx(100 * (0.64 * 0.36 / 400) ** 0.5)


def test_tiles_say_class_wrong_answer_and_confidence_rounded_down():
    picked = ((Picked(7, 0, 0, 0.99996), Picked(9, 1, 0, 0.5)), (Picked(3, 1, 1, -0.0001),))
    sheet = Sheet((("u", "v"), ("w",)), "as it is")
    rows = section(made_up([of_class("cat", 0, 0), of_class("dog", 0, 0)], picked), sheet)["sheet"]["rows"]
    assert [(row["exit"], row["last"]) for row in rows] == [(1, False), (2, True)]
    assert [tuple(tile.values()) for row in rows for tile in row["tiles"]] == [
        ("u", 7, "cat", None, "0.999"),
        ("v", 9, "dog", "cat", "0.500"),
        ("w", 3, "dog", None, "-0.001"),
    ]


def test_the_plot_has_the_published_points_by_operations_the_searched_ones_the_policy_and_the_exits():
    exits = figures.PlotCurve("exits", [100.0, 400.0], [40.0, 66.0], [(1.0, 1.0), (1.0, 1.0)])
    with figures.style():
        (axes,) = plot(made_up(), exits).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert drawn["geometric shares, as published"] == [[200, 50], [300, 60]]
    assert drawn["searched thresholds"] == [[250, 70]]
    assert drawn["the policy below"] == [[210, 64]]
    (bars,) = axes.containers
    assert bars.lines[0].get_xydata().tolist() == [[100, 40], [400, 66]]
    assert bars.has_yerr
    assert [text.get_text() for text in axes.texts] == ["1", "2"]


def test_a_thousand_images_flow_and_all_of_them_leave():
    uses = [ExitUse(0.5, images, images / 7, 50.0 if images else None, None) for images in (3, 0, 2, 2)]
    rows = flow(dataclasses.replace(made_up(), exits=tuple(uses)), None)
    assert [row["come"] for row in rows] == [1000, 571, 571, 286]
    assert [row["leave"] for row in rows] == [429, 0, 285, 286]
    sheet = Sheet((("a", "b", "c", "d"), (), ("e",), ()), "as it is")
    shown = [row["images"] for row in flow(dataclasses.replace(made_up(), exits=tuple(uses)), sheet)]
    assert shown == [("a", "b", "c"), (), ("e",), ()]
