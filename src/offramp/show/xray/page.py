"""The page of a record of gradients."""

from typing import Any

from offramp.results.labels import short_name, summary
from offramp.results.xray import XrayReport
from offramp.show import figures
from offramp.show.page import Sheet, inline_svg, page
from offramp.show.xray import plots


def xray_page(report: XrayReport, images: Sheet | None, no_images: str | None) -> str:
    """The page; `images` are those that the report picks, or `no_images` says why there are none."""
    config, record = report.config, report.record
    with figures.style():
        drawn = {name: inline_svg(figure, name) for name, figure in plots.draw(report).items()}
    data = "data of your own" if config.data is None else str(config.data.source)
    network = "a network of your own" if config.network is None else short_name(config.network.to_json())
    objective, rule = config.objective.to_json(), None if config.rule is None else config.rule.to_json()
    return page(
        "xray.html.j2",
        title=f"The gradients of {short_name(objective)} · {network} · {data}",
        objective=summary(objective),
        rule=None if rule is None or short_name(rule) == "Standard" else summary(rule),
        report=report,
        record=record,
        together=plots.epochs_a_step(len(record.epochs_E)),
        plots=drawn,
        rows=_rows(report, images),
        no_images=no_images,
        shown_as=None if images is None else images.shown_as,
    )


def _rows(report: XrayReport, images: Sheet | None) -> list[dict[str, Any]]:
    """What the template shows of the picked images, a row each kind; rows without any are left out."""
    K = report.record.num_exits
    half = K // 2  # an exit in the middle belongs to neither
    early, late = ("exit 1", f"exit {K}") if half == 1 else (f"exits 1–{half}", f"exits {K - half + 1}–{K}")
    kinds = (
        (f"Learned by {early} first, by {late} later", report.shallow_first),
        (f"Learned by {late} first, by {early} later", report.deep_first),
        ("Learned last, all exits together", report.last),
    )
    pictures = [[""] * len(row) for _, row in kinds] if images is None else images.rows
    return [
        {
            "title": title,
            "tiles": [
                {
                    "image": image,
                    "index": watched.index,
                    "name": report.record.class_names[watched.target],
                    "learned": " ".join(str(epoch) if epoch else "–" for epoch in watched.learned),
                }
                for watched, image in zip(row, addresses, strict=True)
            ],
        }
        for (title, row), addresses in zip(kinds, pictures, strict=True)
        if row
    ]
