"""The page's part "Dynamic inference": its plot, and what its template needs."""

import math
from math import sqrt
from typing import TYPE_CHECKING, Any

from offramp.evaluation import Curve
from offramp.policy import Measure
from offramp.results.dynamic import Dynamic, leaves_from
from offramp.show import figures
from offramp.show.page import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES_SHOWN = 100
FLOW = 1000  # images


def plot(dynamic: Dynamic, exits: figures.PlotCurve) -> "Figure":
    """Accuracy against expected operations; `exits` is the curve of the exits alone."""
    policy = figures.PlotCurve("the policy below", [dynamic.point.operations], [dynamic.point.accuracy])
    published = _curve("geometric shares, as published", dynamic.published)
    return figures.budgeted(exits, published, _curve("searched thresholds", dynamic.searched), policy)


def _curve(label: str, curve: Curve) -> figures.PlotCurve:
    points = curve.points
    return figures.PlotCurve(label, [point.operations for point in points], [point.accuracy for point in points])


def section(dynamic: Dynamic, sheet: Sheet | None) -> dict[str, Any]:
    """What the template needs besides `dynamic`."""
    share, images = dynamic.point.accuracy / 100, dynamic.published.num_images
    payers = sorted((row for row in dynamic.classes if row.images), key=lambda row: row.difference or 0.0)
    return {
        "policy_se": 100 * sqrt(share * (1 - share) / images),
        "leaves_from": leaves_from,
        "measure": _measure(dynamic.policy.measure),
        "payers": payers,
        "shown": min(CLASSES_SHOWN, len(payers)),
        "losing": sum(row.lost > row.gained for row in payers),
        "gaining": sum(row.gained > row.lost for row in payers),
        "sheet": None if sheet is None else {"rows": _rows(dynamic, sheet), "shown_as": sheet.shown_as},
        "flow": flow(dynamic, sheet),
    }


def flow(dynamic: Dynamic, sheet: Sheet | None) -> list[dict[str, Any]]:
    """How many of 1,000 images come to each exit and leave there, and three of them."""
    total, gone = sum(use.images for use in dynamic.exits), 0
    rows = []
    for k, use in enumerate(dynamic.exits):
        before, gone = gone, gone + use.images
        come = FLOW - round(FLOW * before / total)
        leave = come - FLOW + round(FLOW * gone / total)  # of rounded sums, so that all of them make 1,000
        rows.append(
            {
                "exit": k + 1,
                "come": come,
                "leave": leave,
                "top1": use.top1,
                "images": () if sheet is None else sheet.rows[k][:3],
            }
        )
    return rows


def _measure(measure: Measure) -> str:
    meaning = measure.meaning
    if measure.renormalise:
        meaning += ", of classes that sum to 1"
    return meaning if measure.temperatures is None else f"{meaning}, of logits divided by each exit’s temperature"


def _rows(dynamic: Dynamic, sheet: Sheet) -> list[dict[str, Any]]:
    names = [row.name for row in dynamic.classes]
    return [
        {
            "exit": k,
            "last": k == len(dynamic.picked),
            "tiles": [
                {
                    "image": image,
                    "index": pick.index,
                    "name": names[pick.target],
                    "answer": names[pick.answer] if pick.answer != pick.target else None,
                    "confidence": f"{math.floor(1000 * pick.confidence) / 1000:.3f}",
                }
                for pick, image in zip(picked, images, strict=True)
            ],
        }
        for k, (picked, images) in enumerate(zip(dynamic.picked, sheet.rows, strict=True), 1)
    ]
