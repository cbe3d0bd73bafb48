"""HTML pages of one file: plots are inline SVG in the page's own font and colours; no script, nothing loaded."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from offramp.show import figures
from offramp.terminal import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THEMED = {figures.INK: "var(--ink)", figures.MUTED: "var(--muted)", figures.LINE: "var(--line)"}


@dataclass(frozen=True)
class Sheet:
    """Images as `data:` addresses.

    Attributes:
        rows: In the order in which they were picked.
        shown_as: How the network's input became pixels, for the caption.
    """

    rows: tuple[tuple[str, ...], ...]
    shown_as: str


def page(template: str, **values: Any) -> str:
    """The page that `templates/<template>` makes of `values`.

    Names of files need not be UTF-8: what cannot be written is a question mark.
    """
    environment = Environment(
        loader=PackageLoader("offramp.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    return environment.get_template(template).render(**values).encode(errors="replace").decode()


def markdown_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table; an end of a line is `<br>`."""
    escaped = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def inline_svg(figure: "Figure", name: str) -> Markup:
    """A figure as an `<svg>` element for the page. `name` keeps the ids of several apart."""
    text = figures.render(figure, "svg", name, transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"| (width|height)="[\d.]+pt"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to groups, and their ids repeat from plot to plot
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    for colour, variable in _THEMED.items():
        text = text.replace(colour, variable)
    # What matplotlib wrote is trusted but for the texts in it, which it escapes itself.
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1))
