"""`offramp layers`."""

from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from offramp.config import Spec, SpecFlag
from offramp.terminal import Screen

if TYPE_CHECKING:
    from offramp.backbones.attached import Sites


def layers(
    model: tyro.conf.Positional[SpecFlag],
    *,
    image_size: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="SIDE or H W")] = None,
    in_channels: Annotated[int | None, tyro.conf.arg(metavar="C")] = None,
    every: bool = False,
    json: bool = False,
) -> None:
    """List where a model can be cut for exits: after which modules, at which share of its operations, what is carried.

    Args:
        model: timm/NAME, torchvision/NAME, or package.module:Name, something that returns a torch.nn.Module.
        image_size: Side of the images, or height and width (default: what the model says of itself).
        in_channels: Channels of the images.
        every: List cuts that carry several tensors as well.
        json: Print JSON: all cuts, and the modules after which it cannot be cut, with the reason.
    """
    found = _described(model, image_size, in_channels)
    if json:
        print(dumps(found, indent=1))
    else:
        _print_table(found, every)


def _described(spec: Spec, image_size: tuple[int, ...] | None, in_channels: int | None) -> dict[str, Any]:
    from offramp.backbones.attached import Sites, zoo
    from offramp.backbones.attached.tracing import trace

    args = dict(spec.args)  # as they stand after --network, where the images' shape comes from the data
    given = args.pop("image_size", None), args.pop("in_channels", None)
    side = given[0] if image_size is None else image_size[0] if len(image_size) == 1 else image_size
    in_channels = given[1] if in_channels is None else in_channels
    model = zoo.model_of(Spec(spec.name, args), in_channels=in_channels, image_size=side)
    sites = Sites(trace(model, zoo.image_shape_for(model, side, in_channels)))
    total, upto = sites.operations()
    automatic = _automatic(sites)
    return {
        "model": str(spec),
        "image_shape": sites.traced.image_shape,
        "operations": total,
        "cuts": [
            {
                "after": site.name,
                "operations": upto[site.place],
                "share": upto[site.place] / total,
                "carry": site.carry,
                "size": site.size,
                "reads": site.reads,
                "auto": site.name in automatic,
            }
            for site in sites.good
        ],
        "not_after": {site.name: site.why_not for site in sites.all if site.why_not is not None},
    }


def _automatic(sites: "Sites") -> set[str]:
    from offramp.errors import UsageError

    try:
        return {site.name for site in sites.automatic().values()}
    except UsageError:  # none; the table still shows those there are
        return set()


def _print_table(found: dict[str, Any], every: bool) -> None:
    from rich import box
    from rich.table import Table

    channels, height, width = found["image_shape"]
    shown = [cut for cut in found["cuts"] if every or cut["auto"] or len(cut["carry"]) == 1]
    left_out = len(found["cuts"]) - len(shown)
    more = f" {left_out} more cuts carry several tensors (--every)." if left_out else ""
    refused = f" {len(found['not_after'])} modules cannot be cut after (--json says why)." if found["not_after"] else ""
    table = Table(
        title=f"{found['model']}: where it can be cut, {channels} x {height} x {width} images",
        caption=(
            f"For one image; of {found['operations']:,} operations in all (as `offramp cost` counts, the last exit "
            f"included). *: taken by at=auto.{more}{refused}"
        ),
        box=box.SIMPLE_HEAD,
    )
    table.add_column("after", overflow="fold")
    for heading in ("operations", "of all", "carry", "numbers", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for cut in shown:
        carry = " + ".join(" x ".join(map(str, sizes)) for sizes in cut["carry"])
        numbers = (f"{cut['operations']:,}", f"{cut['share']:.1%}", carry, f"{cut['size']:,}")
        table.add_row(cut["after"], *numbers, "*" if cut["auto"] else "")
    Screen().print(table)
