"""`offramp layers`: where a model can be cut for exits."""

from dataclasses import dataclass, field
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

from offramp.commands.options import Computes, Flag, NamedModel, in_threads
from offramp.config import Spec, unset
from offramp.errors import UsageError
from offramp.terminal import Screen

if TYPE_CHECKING:
    from offramp.backbones.attached import Sites


@dataclass(frozen=True, kw_only=True)
class LayersOptions(Computes):
    """List where a model can be cut for exits.

    After which modules, at which share of operations, carrying what.
    """

    model: NamedModel = field(kw_only=False)
    """timm/NAME, torchvision/NAME, or package.module:Name, something that returns a torch.nn.Module."""
    image_size: Annotated[tuple[int, ...] | None, unset("SIDE or H W")] = None
    """Side of the images, or height and width (default: what the model says of itself)."""
    in_channels: Annotated[int | None, unset("C")] = None
    """Channels of the images."""
    every: bool = False
    """List cuts that carry several tensors as well."""
    json: Flag = False
    """Print JSON: all cuts, and the modules after which it cannot be cut, with the reason."""

    def main(self) -> None:
        result = layers(self)
        from offramp.show.tables import layers_table

        if self.json:
            print(dumps(result, indent=1))
        else:
            Screen().print(layers_table(result, self.every))


@in_threads
def layers(options: LayersOptions) -> dict[str, Any]:
    """Where a model can be cut, as JSON values."""
    from offramp.backbones.attached import sites_of, zoo

    spec, image_size, in_channels = options.model, options.image_size, options.in_channels
    args = dict(spec.args)  # as they stand after --network, where the images' shape comes from the data
    of_spec = args.pop("image_size", None), args.pop("in_channels", None)
    side = of_spec[0] if image_size is None else image_size[0] if len(image_size) == 1 else image_size
    in_channels = of_spec[1] if in_channels is None else in_channels
    model = zoo.model_of(Spec(spec.name, args), in_channels=in_channels, image_size=side)
    sites = sites_of(model, zoo.image_shape_for(model, side, in_channels))
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
    try:
        return {site.name for site in sites.automatic().values()}
    except UsageError:  # none; the table still shows those there are
        return set()
