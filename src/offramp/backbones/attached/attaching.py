"""`attach`: exits on a model that has none.

B images, K exits, N classes.
"""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from offramp.backbones.attached.alone import NUM_IMAGES, check_alone
from offramp.backbones.attached.heads import HEADS, HeadKind, new_exit, with_neuron, with_outputs
from offramp.checks import check_choice, check_counts, check_flags
from offramp.errors import UsageError
from offramp.graphs.cutting import GraphPart
from offramp.graphs.in_place import changes_in_place
from offramp.graphs.interpreter import Fields, Shape
from offramp.graphs.random_state import ONE_AT_A_TIME, RandomState, random_state_kept
from offramp.graphs.sites import AUTO, MAX_CARRY, At, Site, Sites
from offramp.graphs.tracing import Traced, trace
from offramp.network import Carry, EarlyExitNet, as_carry, eval_twin

TOLERANCE = 1e-4  # of the largest logit: how far the last exit may be from the model


def attach(
    model: nn.Module,
    at: At = "auto",
    *,
    num_classes: int | None = None,
    damping: bool = False,
    head: HeadKind = "pool",
    image_shape: Sequence[int] | None = None,
    max_carry: int = MAX_CARRY,
) -> EarlyExitNet:
    """A network of stages and exits made of a copy of `model`, cut after some of its modules.

    A parameter `layer1.0.weight` of the model stands at `stages.<k>.layer1.0.weight`, one of the last exit, which is
    everything from the model's last pooling on, at `exits.<K-1>.fc.weight`. The last exit gives the model's logits.

    Args:
        model: A classifier, images `[B, channels, H, W]` to logits `[B, N]`. It is left as it is.
        at: Names of modules, in the order in which they run: a stage ends after each (all its calls), with an exit.
            Or shares of the operations, such as `[0.25, 0.5, 0.75]`, which is what `auto` stands for: near each, a cut
            with a small carry is taken. A single name or share needs no list.
        num_classes: N. The model's own head is kept if it has as many; else its last Linear gets fresh weights.
        damping: Whether each exit has the damping neuron. The last exit's starts with weights and bias of zero: its
            class logits are the model's, but its share of the softmax, which counts as "not sure", is not zero. A last
            exit that does not end with a Linear has none (`offramp.network.NO_NEURON`).
        head: New exits: `pool`, pooling and a Linear, or `deep`, with two convolutions or a hidden layer before.
        image_shape: `(channels, height, width)`. Without it, what a model of timm says of itself, or
            (3, 224, 224) for one of torchvision.
        max_carry: Tensors that a cut may carry.

    Raises:
        UsageError: A model that cannot be cut there, with the place, the reason and the nearest cut that works; one
            whose answers the parts do not give; one that mixes the images of a batch; one that cannot be copied.
    """
    check_flags(damping=damping)
    check_choice("head", head, HEADS)
    check_counts(max_carry=max_carry)
    _check_model(model)
    shape = _checked(image_shape_of(model) if image_shape is None else image_shape)
    with ONE_AT_A_TIME:  # what is drawn for new exits is not the model's, which another thread may be trying out
        traced = trace(model, shape)
        own_classes = _classes_of(traced)
        sites = Sites(traced, max_carry)
        num_classes = own_classes if num_classes is None else num_classes
        check_counts(num_classes=num_classes)
        chosen = choose(sites, at)
        network = _assemble(sites, chosen, num_classes, damping, head, shape)
        _check_and_own(network, sites, chosen, model)
        last = network.exits[-1]
        assert isinstance(last, GraphPart)
        if num_classes != own_classes:
            if not with_outputs(last, num_classes + damping):
                network.exits[-1] = _new_last_exit(sites, num_classes + damping, head)
        elif damping:
            with_neuron(last)
        like = next(model.parameters(), torch.empty(0))
        network.origin = origin_of(model) | {"at": [site.name for site in chosen]}
    return network.to(like).train(model.training)


def sites_of(model: nn.Module, image_shape: tuple[int, int, int]) -> Sites:
    """Where a model can be cut; errors as for `attach`."""
    return Sites(trace(model, image_shape))


def _check_model(model: Any) -> None:
    """Refuse what is no model, has exits, or lacks weights; and one whose call is more than its forward."""
    if isinstance(model, type):
        raise UsageError(f"attach takes a model, not the class {model.__name__}; build it first.")
    if not isinstance(model, nn.Module):
        raise UsageError(f"attach takes a torch.nn.Module, not {model!r}.")
    if torch.is_inference_mode_enabled():
        raise UsageError("attach makes parameters that are to be trained; call it outside of torch.inference_mode().")
    kind = type(model).__name__
    if isinstance(model, EarlyExitNet):
        raise UsageError(f"The {kind} has exits already.")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise UsageError(f"The {kind} is compiled; attach to model._orig_mod and compile the network.")
    unmade = [name for name, p in model.named_parameters() if isinstance(p, UninitializedParameter)]
    if unmade:
        raise UsageError(
            f"{kind} has lazy modules, such as {unmade[0].rpartition('.')[0]}; run it once on images first."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(f"{kind} is on the device meta and has no weights; give it some, as by to_empty.")
    if model._forward_hooks or model._forward_pre_hooks:
        raise UsageError(
            f"{kind} has hooks of its own, which no part would run; remove them or put it into a Sequential."
        )


def _checked(image_shape: Any) -> tuple[int, int, int]:
    if not isinstance(image_shape, Sequence) or isinstance(image_shape, str) or len(image_shape) != 3:
        raise UsageError(f"image_shape must be (channels, height, width), not {image_shape!r}.")
    channels, height, width = image_shape
    check_counts(channels=channels, height=height, width=width)
    return channels, height, width


def image_shape_of(model: nn.Module) -> tuple[int, int, int]:
    """The images that a model says it is for; refused is one that does not."""
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    if size is not None and len(size) == 3:
        return size[0], size[1], size[2]
    if type(model).__module__.startswith("torchvision.models."):
        side = getattr(model, "image_size", 224)
        return 3, side, side
    raise UsageError(
        f"{type(model).__name__} does not say which images it is for; pass image_shape=(channels, H, W), "
        "or --image-size to a command."
    )


def origin_of(model: nn.Module) -> dict[str, Any]:
    """Where a model comes from, as far as it says so; a builder that knows better writes over it.

    The licence stays open: a model of timm names that of its weights on the hub, whether or not it has got those.
    """
    kind = type(model)
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, dict) else {}
    origin: dict[str, Any] = {"model": f"{kind.__module__}.{kind.__qualname__}", "library": None, "weights": None}
    mean, std, size = config.get("mean"), config.get("std"), config.get("input_size")
    known = {"mean": list(mean), "std": list(std), "size": list(size[-2:])} if mean and std and size else None
    return origin | {"licence": None, "input": known}


def choose(sites: Sites, at: At) -> list[Site]:
    """The sites that `at` stands for (see `attach`)."""
    if isinstance(at, str):
        return _automatic(sites) if at == "auto" else sites.find(_names(at.split(",")))
    entries: list[Any] = list(at) if isinstance(at, Sequence) else [at]
    if entries and all(isinstance(entry, float) for entry in entries):
        return sites.near_shares(entries)
    if not all(isinstance(entry, str) for entry in entries):
        raise UsageError(f"`at` must be 'auto', names of modules or shares of the operations, not {at!r}.")
    return sites.find(_names(entries))


def _names(at: Sequence[str]) -> list[str]:
    names = [name.strip() for name in at]
    if not all(names) or not names:
        raise UsageError("`at` names no module to cut after; name one, or write at=auto.")
    return names


def _automatic(sites: Sites) -> list[Site]:
    """What `auto` takes; where that is fewer than usual, it warns."""
    chosen = sites.automatic()
    if len(chosen) < len(AUTO):
        missing = " or ".join(str(share) for share in AUTO if share not in chosen)
        warnings.warn(
            f"{type(sites.traced.model).__name__} gets {len(chosen) + 1} exits: it has no place to cut near {missing} "
            "of its operations.",
            stacklevel=4,
        )
    return list(chosen.values())


def _classes_of(traced: Traced) -> int:
    """The number of classes that the model gives."""
    output = traced.values[next(reversed(traced.graph.nodes))][0]
    if not isinstance(output, Shape) or len(output.sizes) != 2:
        kind = output.kind if isinstance(output, Fields) else type(output).__name__
        what = f"a tensor {list(output.sizes)}" if isinstance(output, Shape) else f"a {kind}"
        how = ", such as its `logits`" if isinstance(output, Fields) and "logits" in output else ""
        raise UsageError(
            f"{type(traced.model).__name__} gives {what} for one image, not logits [1, N]: it is no classifier "
            f"or gives more than that. Wrap it in a module that gives the logits{how}."
        )
    return output.sizes[1]


def _parts(sites: Sites, chosen: Sequence[Site], own: Sequence[bool]) -> Iterator[GraphPart]:
    """The stages, and the last exit."""
    cutter = sites.cutter
    (logits,) = cutter.output.all_input_nodes
    places = [-1, *(site.place for site in chosen), sites.head, len(cutter.nodes) - 1]
    carries = [cutter.crossing(place).nodes for place in places[:-1]]
    for i, (after, until) in enumerate(itertools.pairwise(places)):
        is_exit = i == len(places) - 2
        yield cutter.part(after, until, list(carries[i]), [logits] if is_exit else carries[i + 1], own[i])


def _assemble(
    sites: Sites, chosen: Sequence[Site], num_classes: int, damping: bool, head: HeadKind, shape: tuple[int, int, int]
) -> EarlyExitNet:
    *stages, last = _parts(sites, chosen, [False] * (len(chosen) + 2))
    exits: list[nn.Module] = []
    for site in chosen:
        assert site.layout is not None
        exits.append(new_exit(site.layout, (1, *site.carry[site.reads]), num_classes + damping, head))
    return EarlyExitNet(
        stages,
        [*exits, last],
        num_classes=num_classes,
        damping=damping,
        reads=[*(site.reads for site in chosen), 0],
        image_shape=shape,
    )


@torch.no_grad()
def _check_and_own(network: EarlyExitNet, sites: Sites, chosen: Sequence[Site], model: nn.Module) -> None:
    """Refuse parts that do not give the model's logits; parts that write into their inputs clone them first."""
    twin = eval_twin(model)
    like = next(model.parameters(), torch.empty(0))
    with random_state_kept():
        images = torch.randn(NUM_IMAGES, *sites.traced.image_shape).to(like)
        drawn = RandomState()
        wanted: Tensor = twin(images.clone())
        if not wanted.isfinite().all():
            odd = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
            hint = f" Its weights are not, such as {odd[0]}." if odd else ""
            raise UsageError(f"{type(model).__name__} gives logits that are not finite for random images.{hint}")
        drawn.restore()  # what is random in evaluation mode too comes out alike
        parts = [eval_twin(part) for part in (*network.stages, network.exits[-1])]
        carry: Carry = (images,)
        writes = []
        for part in parts:
            before = [x._version for x in carry]
            outputs = as_carry(part(*carry))
            writes.append([x._version for x in carry] != before or _starts_in_place(part))
            carry = outputs
    scale = wanted.abs().max().clamp_min(1.0)
    if carry[0].shape != wanted.shape or not (carry[0] - wanted).abs().max() <= TOLERANCE * scale:
        raise UsageError(
            f"{type(model).__name__} cannot be cut: its parts give other logits than the model for {NUM_IMAGES} "
            "images. Its forward does something that torch.fx does not see, such as keeping state between calls."
        )
    check_alone(model, parts, images)
    if any(writes):
        *stages, last = _parts(sites, chosen, writes)
        for k, stage in enumerate(stages):
            network.stages[k] = stage
        network.exits[-1] = last


def _starts_in_place(part: nn.Module) -> bool:
    """Whether something writes into what a part is given, if only in training mode."""
    assert isinstance(part, fx.GraphModule)
    for node in part.graph.nodes:
        module = part.get_submodule(str(node.target)) if node.op == "call_module" else None
        if changes_in_place(node, module) and any(read.op == "placeholder" for read in node.all_input_nodes):
            return True
    return False


def _new_last_exit(sites: Sites, num_outputs: int, head: HeadKind) -> nn.Module:
    """What stands in the place of a head that cannot be given another number of classes."""
    node = sites.cutter.nodes[sites.head]
    layout = sites.layout(node)
    if layout is None:
        raise UsageError(
            f"The last exit of {type(sites.traced.model).__name__} does not end with a Linear, so it cannot be given "
            "another number of classes; build the model with num_classes of the data."
        )
    return new_exit(layout, sites.cutter.values[node][0].sizes, num_outputs, head)
