"""Weights that the original MSDNet and RANet programs wrote (kalviny/MSDNet-PyTorch, yangle15/RANet-pytorch).

Their networks and ours hold the same tensors under other names; nothing is reordered or reshaped.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.backbones.layers import Stem, Unit
from offramp.backbones.msdnet import Layer, Transition
from offramp.backbones.msdnet import Stage as MSDNetStage
from offramp.backbones.ranet import FusionLayer, PlainBlock
from offramp.backbones.ranet import Stage as RANetStage
from offramp.errors import UsageError
from offramp.files.network import check_fit
from offramp.network import EarlyExitNet
from offramp.storage import load_pickled

Module = Any  # type checkers do not see the attributes of a module found in a list
Renames = Iterator[tuple[str, str]]  # module here, module there
_COUNTER = "num_batches_tracked"  # of a batch norm; old versions of PyTorch did not write it, and nothing here reads it


def load_original(network: EarlyExitNet, path: Path) -> None:
    """Fill `network`, an MSDNet or RANet, from a checkpoint of the original program; another one is refused."""
    tensors, names = read_checkpoint(path), original_names(network)
    own = {names[here]: tensor for here, tensor in network.state_dict().items()}
    tensors = {name: tensor for name, tensor in own.items() if name.endswith(_COUNTER)} | tensors
    check_fit(own, tensors, path)
    network.load_state_dict({here: tensors[name] for here, name in names.items()})


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the original's names; nothing in the file is run."""
    checkpoint = load_pickled(path)
    tensors = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UsageError(f"{path} is no checkpoint of MSDNet or RANet: it holds no dictionary `state_dict` of tensors.")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def original_names(network: EarlyExitNet) -> dict[str, str]:
    """For each entry of the state dict of an MSDNet or RANet, its name in the original program, in our order."""
    if isinstance(network.stages[0], MSDNetStage):
        renames = dict(_msdnet(network.stages))
    elif isinstance(network.stages[0], RANetStage):
        renames = dict(_ranet(network.stages))
    else:
        raise UsageError("Only MSDNet and RANet have weights in the originals' format.")
    for k in range(network.num_exits):
        renames |= _unit(f"exits.{k}.first", f"classifier.{k}.m.0.net")
        renames |= _unit(f"exits.{k}.second", f"classifier.{k}.m.1.net")
        renames[f"exits.{k}.linear"] = f"classifier.{k}.linear"
    names = {}
    for entry in network.state_dict():
        module, _, leaf = entry.rpartition(".")
        names[entry] = f"{renames[module]}.{leaf}"
    return names


def _msdnet(stages: Module) -> Renames:
    for k, stage in enumerate(stages):
        for j, part in enumerate(stage.parts):
            here, there = f"stages.{k}.parts.{j}", f"blocks.{k}.{j}"
            if isinstance(part, Stem):
                yield from _stem(part, here, there)
            elif isinstance(part, Layer):
                for i, scale in enumerate(part.scales):
                    yield from _branch(scale.same, f"{here}.scales.{i}.same", f"{there}.layers.{i}.conv_normal")
                    if scale.down is not None:
                        yield from _branch(scale.down, f"{here}.scales.{i}.down", f"{there}.layers.{i}.conv_down")
            elif isinstance(part, Transition):
                for i in range(len(part.scales)):
                    yield from _unit(f"{here}.scales.{i}", f"{there}.m.{i}.net").items()


def _ranet(stages: Module) -> Renames:
    flow, number = -1, 0  # sub-network and block within it, as the original counts them
    for k, stage in enumerate(stages):
        if stage.stem is not None:
            yield from _stem(stage.stem, f"stages.{k}.stem", "FirstLayer")
        if stage.starts:
            flow, number = flow + 1, 0
        fusion = [(f"stages.{k}.fusion.{i}", block) for i, block in enumerate(stage.fusion)]
        for here, block in [*fusion, (f"stages.{k}.plain", stage.plain)]:
            yield from _ranet_block(block, here, f"scale_flows.{flow}.{number}")
            number += 1


def _ranet_block(block: Module, here: str, there: str) -> Renames:
    for j, layer in enumerate(block.layers):
        if isinstance(layer, FusionLayer):
            yield from _branch(layer.own, f"{here}.layers.{j}.own", f"{there}.layers.{j}.conv_normal")
            yield from _branch(layer.up, f"{here}.layers.{j}.up", f"{there}.layers.{j}.conv_up")
        else:
            yield from _branch(layer, f"{here}.layers.{j}", f"{there}.layers.{j}.conv_normal")
    if not isinstance(block, PlainBlock):
        yield from _unit(f"{here}.extra", f"{there}.conv_last.net").items()
    if block.transition is not None:
        yield from _unit(f"{here}.transition", f"{there}.trans.net").items()


def _stem(stem: Stem, here: str, there: str) -> Renames:
    for i, scale in enumerate(stem.scales):
        # The unit of the ImageNet stem is not wrapped in a `net` there.
        wrapper = ".net" if isinstance(scale, Unit) else ""
        yield from _unit(f"{here}.scales.{i}", f"{there}.layers.{i}{wrapper}").items()


def _branch(branch: Module, here: str, there: str) -> Renames:
    for unit in range(len(branch)):
        yield from _unit(f"{here}.{unit}", f"{there}.net", first=3 * unit).items()


def _unit(here: str, there: str, first: int = 0) -> dict[str, str]:
    return {f"{here}.conv": f"{there}.{first}", f"{here}.norm": f"{there}.{first + 1}"}
