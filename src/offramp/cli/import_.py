"""`offramp import`."""

from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from offramp.config import SpecFlag
from offramp.terminal import escaped


def import_(
    file: tyro.conf.Positional[Path],
    *,
    preset: SpecFlag,
    out: Annotated[Path | None, tyro.conf.arg(metavar="WEIGHTS")] = None,
    damping: bool = False,
) -> None:
    """Make weights of the original MSDNet and RANet programs ours: a safetensors file, for `--init` and for Python.

    Args:
        file: Checkpoint that the original program wrote (.pth.tar); nothing in it is run.
        preset: The network it belongs to, such as msdnet7-cifar100, msdnet5-imagenet or ranet6-cifar100.
        out: Weights file to write (default: FILE with the ending .safetensors); its metadata say which network it is.
        damping: The checkpoint's exits have one more output than classes, the damping neuron.
    """
    from offramp import backbones
    from offramp.backbones.originals import load_original
    from offramp.storage import save_tensors

    network = backbones.build(preset, damping=damping or None)
    file = file.expanduser()
    load_original(network, file)
    assert network.spec is not None
    if out is None:
        out = file.with_name(file.name.removesuffix(".tar").removesuffix(".pth") + ".safetensors")
    out = out.expanduser()
    save_tensors(out, network.state_dict(), {"network": dumps(network.spec.to_json()), "source": file.name})
    print(f"{escaped(out)}: {network.num_exits} exits, {sum(p.numel() for p in network.parameters()):,} parameters.")
