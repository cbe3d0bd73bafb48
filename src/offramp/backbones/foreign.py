"""Weights of other programs: of the model that exits were attached to, with other classes, without the damping neuron.

Nothing in a file is run.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.files import weights_of
from offramp.files.network import check_owner, load_weights, shape_of
from offramp.network import EarlyExitNet, last_linear
from offramp.storage import load_pickled, load_tensors

TORCH_FILES = (".pth", ".pt", ".bin")
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Classifiers of torchvision that may have further outputs in training, which are left out here, and their names."""


def start_from(network: EarlyExitNet, path: str | Path) -> str | None:
    """Take over the weights of a file or a finished run.

    Weights of a network without the damping neuron fit one that has it: the neuron keeps its fresh weights.

    A file may also hold the weights of the model that exits were attached to, under that model's names: those of the
    network without `stages.<k>.`, and without `exits.<K-1>.` for the last exit, which ends as the model did. The other
    exits keep their fresh weights, and so does the last layer where it tells other classes apart. Auxiliary heads of
    torchvision's GoogLeNet and Inception are left out. A first convolution for colours is summed for grey images.

    Args:
        path: A safetensors file, a `.pth`, `.pt` or `.bin` file of tensors (also under `state_dict` or `model`, also
            with `module.` before every name), or a run's folder. Nothing in a file is run.

    Returns:
        What was taken over and what starts fresh, for a person; None where nothing starts fresh.

    Raises:
        UsageError: Weights of another network, with what is missing, unknown or of another shape.
        OfframpError: A damaged file.
    """
    source = weights_of(path)
    tensors = _tensors_of(source, is_foreign=source == Path(path).expanduser())
    note = None
    if _has_original_names(network, tensors):
        tensors, note = _under_own_names(network, tensors, source)
    if network.damping:
        for name, own in network.state_dict().items():
            there = tensors.get(name)
            if (
                there is not None
                and own.shape[:1] == (network.num_outputs,)
                and there.shape[:1] == (network.num_classes,)
            ):
                tensors[name] = torch.cat([there, own[-1:].to(there)])
    load_weights(network, tensors, source)
    return note


def _tensors_of(source: Path, *, is_foreign: bool) -> dict[str, Tensor]:
    if source.suffix == ".safetensors":
        tensors, metadata = load_tensors(source, foreign=is_foreign)
        check_owner(source, metadata)
        return tensors
    if source.suffix not in TORCH_FILES:
        raise UsageError(
            f"{source} is no safetensors, {', '.join(TORCH_FILES)} file; `offramp import` converts checkpoints of the "
            "originals."
        )
    held = load_pickled(source, "Of a whole model, save its `state_dict()` alone.")
    for key in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    names = list(held) if isinstance(held, Mapping) else []
    if not names or not all(isinstance(held[name], Tensor) for name in names):
        content = f"the entries {', '.join(map(str, names[:5]))}" if names else f"a {type(held).__name__}"
        raise UsageError(f"{source} holds no dictionary of tensors by name; found {content}.")
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): held[name] for name in names}


def _original_names(network: EarlyExitNet) -> dict[str, str]:
    """Own names of the trunk and the last exit, with the names in the model that exits were attached to."""
    last = f"exits.{network.num_exits - 1}."
    names = {}
    for name in network.state_dict():
        if name.startswith("stages."):
            names[name] = name.split(".", 2)[2]
        elif name.startswith(last):
            names[name] = name.removeprefix(last)
    return names


def _has_original_names(network: EarlyExitNet, tensors: Mapping[str, Tensor]) -> bool:
    there = sum(name in tensors for name in _original_names(network).values())
    return there > sum(name in tensors for name in network.state_dict())


def _under_own_names(
    network: EarlyExitNet, tensors: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, Tensor], str | None]:
    """The weights of the model that exits were attached to, as weights of the network, and what is to be said of it."""
    own, originals = network.state_dict(), _original_names(network)
    renamed = {here: tensors[there] for here, there in originals.items() if there in tensors}
    left = {name: tensor for name, tensor in tensors.items() if name not in originals.values()}
    heads = tuple(itertools.chain.from_iterable(AUXILIARY.values()))
    auxiliary = [name for name in left if name.startswith(heads)]
    for name in auxiliary:
        del left[name]
    head = [name for name in originals if name.startswith("exits.")]
    classifier = _last_layer(network)
    fresh = {name for name in own if name not in originals}
    note = "trunk and last exit; the other exits start fresh" if fresh else None
    if head and not any(name in renamed for name in classifier or head):  # the last exit is none of the model's
        fresh |= set(head) - renamed.keys()
        note = f"trunk; the exits start fresh, without {shape_of(left, sorted(left)) if left else 'a head'} of the file"
        left = {}
    elif classifier and all(_tells_others_apart(network, own[name], renamed.get(name)) for name in classifier):
        fresh |= set(classifier)
        there, here = len(renamed[classifier[0]]), network.num_classes
        note = f"trunk and last exit; its last layer, for {there} classes there and {here} here, starts fresh"
        note += ", as do the other exits" if network.num_exits > 1 else ""
    note = f"{note or 'trunk and last exit'}; auxiliary heads of the file are left out" if auxiliary else note
    first = next((name for name, tensor in renamed.items() if tensor.ndim == 4), None)
    if first is not None and network.image_shape is not None and network.image_shape[0] == 1:
        grey = for_grey(renamed[first])
        if renamed[first].shape[1] == 3 and grey.shape == own[first].shape:
            renamed[first] = grey
            note = f"{note or 'trunk and last exit'}; its first convolution, for colours, is summed for grey images"
    fresh |= {
        name for name in originals if name not in renamed and name.endswith("num_batches_tracked")
    }  # of old files
    return {**renamed, **{name: own[name] for name in fresh}, **left}, note and f"From {source.name}: {note}."


def for_grey(weight: Tensor) -> Tensor:
    """Weights `[O, C, H, W]` of a first convolution for images of one channel: as if it stood in all C channels."""
    return weight.sum(1, keepdim=True)


def _last_layer(network: EarlyExitNet) -> list[str]:
    """Own names of the parameters that make the last exit's outputs."""
    head = network.exits[-1]
    linear = last_linear(head)
    made_by = {id(parameter) for parameter in (head if linear is None else linear).parameters()}
    named = head.named_parameters(prefix=f"exits.{network.num_exits - 1}")
    return [name for name, p in named if id(p) in made_by and p.shape[:1] == (network.num_outputs,)]


def _tells_others_apart(network: EarlyExitNet, own: Tensor, there: Tensor | None) -> bool:
    """Whether a tensor of the last layer is that of another number of classes."""
    if there is None or there.shape[1:] != own.shape[1:]:
        return False
    return there.shape[:1] not in ((network.num_classes,), (network.num_outputs,))
