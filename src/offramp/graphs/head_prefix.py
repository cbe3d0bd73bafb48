"""The prefix of a head: its steps before the first that is trained, such as pooling.

B images.
"""

import itertools
from collections import OrderedDict

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from offramp.network import has_hooks

# The same in training as in evaluation, image by image, and without weights.
FIXED_MODULES = (
    *(nn.Identity, nn.Flatten, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AvgPool1d, nn.MaxPool1d),
)
_FLATTEN, _MEAN = (torch.flatten, "flatten"), (torch.mean, "mean")


def split_head(head: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A head as its prefix and the rest, which share its modules; the rest's weights keep their names.

    A head that is neither a Sequential nor a graph of torch.fx, or that has hooks, has no prefix: Identity.
    """
    if has_hooks(head):
        return nn.Identity(), head
    if type(head) is nn.Sequential:
        prefix = [*itertools.takewhile(lambda layer: is_fixed(layer[1]), head.named_children())]
        rest = [*head.named_children()][len(prefix) :]
        return nn.Sequential(OrderedDict(prefix)), nn.Sequential(OrderedDict(rest))
    if isinstance(head, fx.GraphModule):
        return _cut_graph(head)
    return nn.Identity(), head


def is_fixed(module: nn.Module) -> bool:
    """Whether a module does the same with an image in training and evaluation, and has no weights."""
    return type(module) in FIXED_MODULES and not has_hooks(module)


def _cut_graph(head: fx.GraphModule) -> tuple[nn.Module, nn.Module]:
    inputs = [node for node in head.graph.nodes if node.op == "placeholder"]
    chain = inputs[:1]
    while len(users := list(chain[-1].users)) == 1 and _is_fixed_node(head, users[0], chain[-1]):
        chain += users
    if len(inputs) != 1 or len(chain) == 1:
        return nn.Identity(), head
    graphs = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in chain:
        copies[node] = graphs[0].node_copy(node, copies.__getitem__)
    graphs[0].output(copies[chain[-1]])
    copies[chain[-1]] = graphs[1].placeholder("kept")
    for node in head.graph.nodes:
        if node not in chain:
            copies[node] = graphs[1].node_copy(node, copies.__getitem__)
    prefix, rest = (fx.GraphModule(head, graph) for graph in graphs)
    return prefix, rest


def _is_fixed_node(head: fx.GraphModule, node: fx.Node, read: fx.Node) -> bool:
    if node.all_input_nodes != [read] or node.args[:1] != (read,):
        return False
    if node.op == "call_module":
        return is_fixed(head.get_submodule(str(node.target)))
    second = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", node.kwargs.get("dim"))
    if node.target in _FLATTEN:
        return bool(second == 1)
    if node.target in _MEAN:
        return second in ([2, 3], (2, 3))
    return node.target is F.adaptive_avg_pool2d
