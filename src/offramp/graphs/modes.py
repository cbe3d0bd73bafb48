"""What a model does otherwise in training mode, found by comparing a trace in each mode."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def owners_of(node: fx.Node) -> tuple[str, ...]:
    """The modules that a node belongs to, outermost first; a leaf is among them."""
    return tuple(dict.fromkeys(name for name, _ in node.meta.get("nn_module_stack", {}).values()))


def differing(training: fx.Graph, evaluating: fx.Graph) -> dict[str, str]:
    """The modules whose own operations are others in training mode; where there are none, whose inputs are."""
    both = [_by_owner(training), _by_owner(evaluating)]
    differences = {}
    for owner in both[0].keys() | both[1].keys():
        one, other = both[0].get(owner, []), both[1].get(owner, [])
        if one != other:
            what = next((b or a for a, b in zip([*one, None], [*other, None], strict=False) if a != b), None)
            differences[owner] = f"other operations in training mode, such as {what[1] if what else 'none'}"
    if differences:
        return differences
    sides = [_operations(training), _operations(evaluating)]
    places = [{node: i for i, node in enumerate(side)} for side in sides]
    for one, other in zip(*sides, strict=True):
        reads = [
            [known.get(n, n.target) for n in node.all_input_nodes]
            for known, node in zip(places, (one, other), strict=True)
        ]
        if reads[0] != reads[1]:
            return {_caller(other): f"{other.name} reads something else in training mode"}
    return {}


def other_constants(evaluating: fx.Graph, *constants: Mapping[str, Tensor]) -> dict[str, str]:
    """The modules that make a constant which is another in training mode; `constants`: of training, of evaluation."""
    for node in evaluating.nodes:
        if node.op == "get_attr" and node.target in constants[1]:
            one, other = (tensors.get(str(node.target)) for tensors in constants)
            if one is None or other is None or not _is_same(one, other):
                return {_caller(node): "it makes another constant in training mode"}
    return {}


def _is_same(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return one.is_meta or torch.equal(one, other)


def _operations(graph: fx.Graph) -> list[fx.Node]:
    """All nodes but those that read an attribute: there is one for all who read it, where the first does."""
    return [node for node in graph.nodes if node.op != "get_attr"]


def _by_owner(graph: fx.Graph) -> dict[str, list[tuple[str, str, str]]]:
    operations: dict[str, list[tuple[str, str, str]]] = {}
    for node in _operations(graph):
        args, kwargs = node.args, dict(node.kwargs)
        if node.target in DROPOUTS:
            arguments = inspect.signature(node.target).bind(*args, **kwargs).arguments  # type: ignore[arg-type]
            args, kwargs = (), {name: value for name, value in arguments.items() if name != "training"}
        plain = fx.node.map_arg((args, kwargs), lambda read: str(read.target) if read.op == "get_attr" else "a node")
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        operations.setdefault(_caller(node), []).append((node.op, target, repr(plain)))
    return operations


def _caller(node: fx.Node) -> str:
    owners = owners_of(node)
    if node.op == "call_module":
        owners = owners[:-1]
    return owners[-1] if owners else ""


def dropout_as_modules(model: nn.Module, evaluating: fx.Graph, training: fx.Graph) -> None:
    """What `F.dropout(x, training=self.training)` has baked in, as a module that knows its mode."""
    number = 0
    for node, in_training in zip(_operations(evaluating), _operations(training), strict=True):
        if node.target not in DROPOUTS:
            continue
        arguments, others = (_dropout_arguments(n) for n in (node, in_training))
        if arguments["training"] or not others["training"]:
            continue  # always, or never
        name = f"dropout_of_forward_{number}"
        number += 1
        setattr(model, name, DROPOUTS[node.target](arguments["p"], inplace=arguments["inplace"]))
        with evaluating.inserting_before(node):
            module = evaluating.call_module(name, (arguments["input"],))
        module.meta.update(node.meta)
        node.replace_all_uses_with(module)
        evaluating.erase_node(node)


def _dropout_arguments(node: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    return bound.arguments
