"""Batch norm merged into the convolution before it: the same function in evaluation mode, with less to do."""

import itertools

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from offramp.network import has_hooks, runs_in_turn


def fold(module: nn.Module) -> None:
    """Merge each batch norm into the convolution it follows; in evaluation mode only.

    Where a `Sequential` inside runs one after the other, or the graph of a module that torch.fx has written does so. A
    subclass of `Sequential` that runs its modules in its own way is left alone, and so are modules with hooks
    (`weight_norm` is one).

    W' = W g / sqrt(v + eps) and b' = (b - m) g / sqrt(v + eps) + h, for batch norm of gain g, shift h, running mean m
    and variance v.
    """
    if isinstance(module, fx.GraphModule):
        _fold_graph(module)
    for child in module.children():
        fold(child)
    if not runs_in_turn(module):
        return
    names = list(module._modules)
    for name, after in itertools.pairwise(names):
        merged = _merged(module._modules[name], module._modules[after])
        if merged is not None:
            module._modules[name], module._modules[after] = merged, nn.Identity()


def _fold_graph(module: fx.GraphModule) -> None:
    """The same in a graph, where the batch norm alone reads what the convolution gives."""
    for node in [node for node in module.graph.nodes if node.op == "call_module"]:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        merged = _merged(*(module.get_submodule(str(one.target)) for one in (source, node)))
        if merged is not None:
            source.target = f"folded_{node.name}"  # a name of its own: others may call the same convolution
            module.add_submodule(source.target, merged)
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()


def _merged(conv: nn.Module | None, norm: nn.Module | None) -> nn.Conv2d | None:
    """The convolution that does what both do; None where they are anything else than a plain one and its batch norm."""
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
        return None
    if has_hooks(conv) or has_hooks(norm):
        return None
    merged: nn.Conv2d = fuse_conv_bn_eval(conv, norm)
    return merged
