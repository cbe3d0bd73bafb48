"""`offramp cost`."""

import dataclasses
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from offramp.config import Spec, SpecFlag
from offramp.errors import UsageError
from offramp.terminal import Screen, escaped

if TYPE_CHECKING:
    from offramp.costs import Cost
    from offramp.network import EarlyExitNet


def cost(
    preset: tyro.conf.Positional[SpecFlag],
    *,
    damping: bool = False,
    num_classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    image_shape: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="C H W")] = None,
    json: bool = False,
) -> None:
    """Count a network's operations, multiply-adds and parameters per exit and per stage, for one image.

    Args:
        preset: A preset such as msdnet7-cifar100, msdnet, ranet, auto, package.module:Name, or a run's folder.
        damping: With the damping neuron.
        num_classes: Classes of the data.
        image_shape: Channels, height and width of the images.
        json: Print JSON: exits (cumulative, with all heads on the way), path (with the last head alone), stages, heads.
    """
    from offramp.costs import cost as count

    network = _network(preset, damping, num_classes, image_shape)
    try:
        counted = count(network, image_shape)
    except RuntimeError as error:
        if image_shape is None:
            raise
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{preset} cannot run on images of shape {image_shape}: {reason}") from error
    if json:
        print(dumps({"network": str(preset), **dataclasses.asdict(counted)}, indent=1))
    else:
        _print_tables(str(preset), counted)


def _network(
    spec: Spec, damping: bool, num_classes: int | None, image_shape: tuple[int, int, int] | None
) -> "EarlyExitNet":
    from offramp import backbones
    from offramp.network import rebuild
    from offramp.runs import RunFolder

    if spec.name in backbones.NETWORKS or not Path(spec.name).expanduser().is_dir():
        return backbones.build(spec, num_classes=num_classes, image_shape=image_shape, damping=damping or None)
    if damping or num_classes or spec.args:
        raise UsageError(f"{spec.name} is a run: its network is what it is; only image-shape can be set.")
    folder = RunFolder(spec.name)
    config = folder.read_config()
    if config["network"] is None:
        raise UsageError(f"The network of {spec.name} was built by hand; call offramp.cost on it in Python.")
    with folder.naming(config):
        return rebuild(Spec.from_json(config["network"]))


def _print_tables(title: str, counted: "Cost") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    exits = Table(title=f"{escape(escaped(title))}: up to each exit", box=box.SIMPLE_HEAD)
    parts = Table(
        title="each stage and each head by itself",
        caption='For one image; counts, not latencies. Operations are the paper\'s FLOPs; "alone": with no other head.',
        box=box.SIMPLE_HEAD,
    )
    for heading in ("exit", "operations", "of all", "multiply-adds", "parameters", "alone"):
        exits.add_column(heading, justify="right", no_wrap=True)
    for heading in ("stage", "operations", "parameters", "head", "operations", "parameters"):
        parts.add_column(heading, justify="right", no_wrap=True)
    for k, (upto, alone, stage, head) in enumerate(
        zip(counted.exits, counted.path, counted.stages, counted.heads, strict=True), 1
    ):
        share = upto.operations / max(counted.exits[-1].operations, 1)
        numbers = (f"{upto.multiply_adds:,}", f"{upto.parameters:,}", f"{alone.operations:,}")
        exits.add_row(str(k), f"{upto.operations:,}", f"{share:.1%}", *numbers)
        of_head = (str(k), f"{head.operations:,}", f"{head.parameters:,}")
        parts.add_row(str(k), f"{stage.operations:,}", f"{stage.parameters:,}", *of_head)
    Screen().print(exits, parts)
