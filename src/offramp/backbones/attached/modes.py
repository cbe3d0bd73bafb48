"""What a model does otherwise in training mode, found by comparing a trace in each mode."""

import inspect
from typing import Any

from torch import fx, nn
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
    found = {}
    for owner in both[0].keys() | both[1].keys():
        one, other = both[0].get(owner, []), both[1].get(owner, [])
        if one != other:
            what = next((b or a for a, b in zip([*one, None], [*other, None], strict=False) if a != b), None)
            found[owner] = f"other operations in training mode, such as {what[1] if what else 'none'}"
    if found:
        return found
    places = [{node: i for i, node in enumerate(side.nodes)} for side in (training, evaluating)]
    for one, other in zip(training.nodes, evaluating.nodes, strict=True):
        if [places[0][n] for n in one.all_input_nodes] != [places[1][n] for n in other.all_input_nodes]:
            return {_caller(other): f"{other.name} reads something else in training mode"}
    return {}


def _by_owner(graph: fx.Graph) -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":  # one node for all readers: it belongs to the first
            continue
        args, kwargs = node.args, dict(node.kwargs)
        if node.target in DROPOUTS:
            arguments = inspect.signature(node.target).bind(*args, **kwargs).arguments
            args, kwargs = (), {name: value for name, value in arguments.items() if name != "training"}
        plain = fx.node.map_arg((args, kwargs), lambda read: "a node")
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        found.setdefault(_caller(node), []).append((node.op, target, repr(plain)))
    return found


def _caller(node: fx.Node) -> str:
    owners = owners_of(node)
    if node.op == "call_module":
        owners = owners[:-1]
    return owners[-1] if owners else ""


def dropout_as_modules(model: nn.Module, evaluating: fx.Graph, training: fx.Graph) -> None:
    """What `F.dropout(x, training=self.training)` has baked in, as a module that knows its mode."""
    number = 0
    for node, in_training in zip(list(evaluating.nodes), list(training.nodes), strict=True):
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
