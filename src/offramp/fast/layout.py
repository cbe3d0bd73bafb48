"""In which turn the nodes of a traced part run, and where the maps lie that they give."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from offramp.fast.placing import Copy, Places, Region
from offramp.fast.tracing import Traced, UntraceableError


@dataclass(frozen=True)
class Fused:
    """The turn of nodes that run as one."""

    first: fx.Node


@dataclass(frozen=True)
class Cut:
    """Some channels of a map: no work."""

    source: Region
    target: Region


Turn = Fused | Copy | Cut | Sequence[fx.Node]


class Layout:
    """What runs in turn, and the slabs: nodes that run as one, copies of maps into slabs, cuts, and all the others.

    Args:
        traced: The part.
        fused: Nodes that run as one, in order, by their first; only their last one's map is ever read by others.

    Raises:
        UntraceableError: Maps of several types would lie in one slab.
    """

    def __init__(self, traced: Traced, fused: Mapping[fx.Node, Sequence[fx.Node]]) -> None:
        places = Places()
        hidden = {node for nodes in fused.values() for node in nodes[1:]}
        order: list[tuple[str, fx.Node]] = []
        sources: dict[fx.Node, fx.Node] = {}  # of cuts
        for node in traced.nodes:
            joined, cut = traced.joined(node), traced.cut(node)
            if node in fused:
                places.own(fused[node][-1], traced.shape(fused[node][-1]))
                order.append(("fused", node))
            elif node in hidden:
                continue
            elif joined is not None:
                places.join(node, joined, traced.shape(node))
                order.append(("joined", node))
            elif cut is not None:
                places.cut(node, *cut)
                sources[node] = cut[0]
                order.append(("cut", node))
            else:
                if traced.is_map(node):
                    places.own(node, traced.shape(node))
                if node.op != "placeholder":
                    order.append(("alone", node))
        self.slabs, self.regions, copies = places.settle()
        lasts = [nodes[-1] for nodes in fused.values()][:1]
        shared = [node for node, region in self.regions.items() if self.slabs[region.slab].home is None]
        if len({traced.results[node].dtype for node in (*lasts, *shared)}) > 1:
            raise UntraceableError("it joins maps of several types")
        self.turns: list[Turn] = []
        for kind, pairs in itertools.groupby(order, key=lambda pair: pair[0]):
            nodes = [node for _, node in pairs]
            if kind == "fused":
                self.turns += [Fused(node) for node in nodes]
            elif kind == "joined":
                self.turns += [copy for node in nodes for copy in copies if copy.node is node]
            elif kind == "cut":
                self.turns += [Cut(self.regions[sources[node]], self.regions[node]) for node in nodes]
            else:
                self.turns.append(nodes)
