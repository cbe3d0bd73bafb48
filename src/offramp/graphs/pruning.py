"""A module as a graph of what its result depends on, with nothing computed for others."""

from collections.abc import Callable

from torch import fx, nn

from offramp.graphs.in_place import changes_in_place, makes_own, may_write
from offramp.graphs.tracer import Tracer


def pruned(module: nn.Module, looks_into: Callable[[nn.Module], bool]) -> fx.GraphModule:
    """A graph of what the module's result depends on, with the module's own weights under their names.

    Traced is the module's code and that of modules inside that it `looks_into`, all of which has to run alike in
    training and evaluation. Others are called as they are.
    """
    graphed = fx.GraphModule(module, _Selective(looks_into).trace(module), type(module).__name__)
    graphed.graph.eliminate_dead_code(_with_effect(graphed).__contains__)
    graphed.delete_all_unused_submodules()
    graphed.recompile()
    return graphed


class _Selective(Tracer):
    def __init__(self, looks_into: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.looks_into = looks_into

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.looks_into(m)


def _with_effect(graphed: fx.GraphModule) -> set[fx.Node]:
    """Steps that matter though their result may not be read: they write into something that is read after them.

    torch.fx counts no change in place. Where nothing says that a step makes a tensor of its own, what it gives is taken
    to share the memory of all that it reads.
    """
    nodes = graphed.graph.nodes
    modules = {n: graphed.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"}
    read: dict[fx.Node, set[fx.Node]] = {}  # the steps whose memory a step reads
    shared: dict[fx.Node, set[fx.Node]] = {}  # and those whose memory is what it gives
    for node in nodes:
        read[node] = set().union(*(shared[n] for n in node.all_input_nodes))
        is_new = makes_own(node, modules.get(node))
        shared[node] = {node} if is_new or not read[node] else read[node]
    effective: set[fx.Node] = set()
    needed: set[fx.Node] = set()
    alive = {node for node in nodes if node.op == "get_attr"}  # what the network holds, beyond this call
    for node in reversed(nodes):
        writes = may_write(modules[node]) if node in modules else changes_in_place(node)
        if node.is_impure() or (writes and read[node] & alive):
            effective.add(node)
        if node in effective or needed.intersection(node.users):
            needed.add(node)
            alive |= read[node]
    return effective
