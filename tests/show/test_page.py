import re

import jinja2
import pytest

from offramp.show import figures
from offramp.show.page import inline_svg, page


def figure(label="a & <b>"):
    curves = [figures.PlotCurve(name, [1e6, 2e6], [50.0, 60.0], [(1.0, 2.0)] * 2) for name in (label, "other")]
    return figures.accuracy(curves)


def test_inline_plots_take_the_colours_of_the_page_and_refer_only_to_themselves():
    with figures.style():
        svg = str(inline_svg(figure(), "first"))
    assert svg.startswith('<svg role="img" aria-label="first"')
    assert "a &amp; &lt;b&gt;" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"https?:|<\?xml|<!DOCTYPE|metadata", svg)
    referred = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    assert referred == set(re.findall(r'id="([^"]+)"', svg)) & referred
    assert referred


def test_ids_of_two_plots_do_not_meet():
    with figures.style():
        ids = [set(re.findall(r' id="([^"]+)"', inline_svg(figure(), name))) for name in ("first", "second")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        page("compare.html.j2", title="x")
