"""`offramp import`: weights of the original programs, made ours."""

from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Annotated

import tyro

from offramp.commands.options import OpensRuns
from offramp.config import SpecFlag, unset
from offramp.terminal import escaped


@dataclass(frozen=True, kw_only=True)
class ImportOptions(OpensRuns):
    """Convert weights of the original MSDNet and RANet programs.

    The result is a safetensors file, for `--init` and for Python.
    """

    file: tyro.conf.Positional[Path] = field(kw_only=False)
    """Checkpoint that the original program wrote (.pth.tar); nothing in it is run."""
    preset: SpecFlag
    """The network it belongs to, such as msdnet7-cifar100, msdnet5-imagenet or ranet6-cifar100."""
    out: Annotated[Path | None, unset("WEIGHTS")] = None
    """Weights file to write (default: FILE with the ending .safetensors); its metadata say which network it is."""
    damping: bool = False
    """The checkpoint's exits have one more output than classes, the damping neuron."""

    def main(self) -> None:
        from offramp import backbones
        from offramp.backbones.originals import load_original
        from offramp.storage import save_tensors

        network = backbones.build(self.preset, damping=self.damping or None)
        file = self.file.expanduser()
        load_original(network, file)
        assert network.spec is not None
        out = self.out
        if out is None:
            out = file.with_name(file.name.removesuffix(".tar").removesuffix(".pth") + ".safetensors")
        out = out.expanduser()
        save_tensors(out, network.state_dict(), {"network": dumps(network.spec.to_json()), "source": file.name})
        parameters = sum(p.numel() for p in network.parameters())
        if self.json:
            print(dumps({"written": str(out), "exits": network.num_exits, "parameters": parameters}))
            return
        print(f"{escaped(out)}: {network.num_exits} exits, {parameters:,} parameters.")
