"""Where a traced model can be cut, what each cut carries and costs, and which cuts `auto` takes.

B images. A site is a place after the last operation of a module; of several modules that end there the outermost names
it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx, nn

from offramp.checks import near
from offramp.costs import operations_of
from offramp.errors import UsageError
from offramp.graphs.cutting import Cutter
from offramp.graphs.interpreter import BATCHES, Interpreter, Shape, meta_twin
from offramp.graphs.tracing import Traced
from offramp.network import eval_twin

AUTO = (0.25, 0.5, 0.75)  # shares of the operations at which `auto` looks for exits
WINDOW = 0.1  # how far from a share, at most, it looks for a smaller carry
FAR = 2 * WINDOW  # how far from a share a cut may lie
MAX_CARRY = 8  # tensors
Layout = Literal["map", "map, channels last", "class token", "tokens", "vector"]
At = Literal["auto"] | str | float | Sequence[str] | Sequence[float]


@dataclass(frozen=True)
class Site:
    """A place where a model can, or cannot, be cut.

    Attributes:
        name: The module it lies after.
        place: Its index in the graph.
        carry: Shapes of what crosses it, for one image (without B).
        reads: Index of the tensor in the carry that an exit reads.
        layout: How the exit reads it; None where it cannot.
        why_not: Why it cannot be cut here; None where it can.
    """

    name: str
    place: int
    carry: tuple[tuple[int, ...], ...]
    reads: int
    layout: Layout | None
    why_not: str | None

    @property
    def size(self) -> int:
        """Numbers in the carry, for one image."""
        return sum(math.prod(sizes) for sizes in self.carry)


class Sites:
    """The sites of a traced model before its last exit."""

    def __init__(self, traced: Traced, max_carry: int = MAX_CARRY) -> None:
        self.traced, self.max_carry = traced, max_carry
        self.cutter = Cutter(traced)
        self.ends = self.cutter.ends()
        self.head = self._find_head()
        names: dict[int, str] = {}
        for name, place in self.ends.items():
            if place not in names or name.count(".") < names[place].count("."):
                names[place] = name
        self.all = [self.at(names[place], place) for place in sorted(names) if place < self.head]

    @property
    def good(self) -> list[Site]:
        """Those where the model can be cut."""
        return [site for site in self.all if site.why_not is None]

    def at(self, name: str, place: int) -> Site:
        """The site at a place."""
        crossing = self.cutter.crossing(place)
        why_not = crossing.why_not
        if why_not is None and len(crossing.nodes) > self.max_carry:
            why_not = f"{len(crossing.nodes)} tensors would have to be carried, and at most {self.max_carry} may be"
        values = [self.cutter.values[node][0] for node in crossing.nodes]
        shapes = [value.sizes[1:] if isinstance(value, Shape) else () for value in values]
        last = self._last_tensor_of(name, place)
        reads = crossing.nodes.index(last) if last in crossing.nodes else len(crossing.nodes) - 1
        layout = self.layout(crossing.nodes[reads]) if why_not is None else None
        if why_not is None and layout is None:
            why_not = f"an exit would read a tensor of sides {list(shapes[reads])}, which is no map and no tokens"
        return Site(name, place, tuple(shapes), reads, layout, why_not)

    def layout(self, node: fx.Node) -> Layout | None:
        """How an exit reads what a node gives."""
        value = self.cutter.values[node][0]
        sides = self.traced.image_shape[1:]
        return layout_of(value.sizes, sides, self._has_class_token(node)) if isinstance(value, Shape) else None

    def find(self, names: Sequence[str]) -> list[Site]:
        """The sites that these modules name, in the order in which they are run; whatever else is refused."""
        sites = [self._named(name) for name in names]
        for before, after in itertools.pairwise(sites):
            if before.place == after.place:
                raise UsageError(f"{before.name} and {after.name} end at the same place; name one of them.")
            if before.place > after.place:
                raise UsageError(
                    f"The cuts are out of order: {after.name} ends before {before.name}; name them in the order in "
                    "which they run."
                )
        return sites

    def near_shares(self, shares: Sequence[float]) -> list[Site]:
        """A site near each share of the operations: few tensors, then a small carry, then the outermost module.

        Refused are shares that do not rise from 0 to 1, or with no site of their own.
        """
        if not shares or any(not 0 < share < 1 for share in shares) or sorted(set(shares)) != list(shares):
            raise UsageError(f"Shares of the operations must rise between 0 and 1, such as 0.25, 0.5, not {shares}.")
        sites = self._nearest_to(shares)
        missing = [share for share in shares if share not in sites]
        if missing:
            total, upto = self.operations()
            nearest = min(self.good, key=lambda site: abs(upto[site.place] / total - missing[0]), default=None)
            hint = self._why_none()
            if nearest:
                hint = f"; the nearest lies after {nearest.name} at {upto[nearest.place] / total:.3g}"
            raise UsageError(
                f"{self._model} has no place to cut near {missing[0]} of its operations{hint}. Ask for other shares, "
                "or name modules; `offramp layers` lists them."
            )
        return list(sites.values())

    def automatic(self) -> dict[float, Site]:
        """What `auto` takes, by share: as `near_shares`, without those shares near which there is no site."""
        sites = self._nearest_to(AUTO)
        if not sites:
            raise UsageError(
                f"{self._model} has no place to cut near {', '.join(map(str, AUTO))} of its "
                f"operations{self._why_none()}; name modules to cut after, `offramp layers` lists them."
            )
        return sites

    def _why_none(self) -> str:
        """What keeps cuts away, in words that follow a statement: the module run as a whole with the most weights."""
        sizes = {
            name: sum(p.numel() for p in self.traced.model.get_submodule(name).parameters())
            for name in self.traced.leaves
        }
        largest = max(sizes, key=sizes.__getitem__, default=None)
        if largest is not None and sizes[largest]:
            return f": {largest} is run as a whole ({self.traced.leaves[largest]})"
        refused = [site for site in self.all if site.why_not is not None]
        if refused and not self.good:
            middle = refused[len(refused) // 2]
            return f": after {middle.name}, for one, {middle.why_not}"
        return ""

    def _nearest_to(self, shares: Sequence[float]) -> dict[float, Site]:
        """The sites near those shares that have one, behind weights of its own."""
        total, upto = self.operations()
        gaps = [after - before for before, after in itertools.pairwise(shares)]
        window = min([WINDOW, *(gap / 2 for gap in gaps)])
        chosen: dict[float, Site] = {}
        last = -1
        for share in shares:
            off = {site.place: abs(upto[site.place] / total - share) for site in self.good}
            left = [site for site in self.good if upto[site.place] and off[site.place] <= FAR]
            left = [s for s in left if self.cutter.parameters_of(self.cutter.nodes[last + 1 : s.place + 1])]
            near = [site for site in left if off[site.place] <= window]
            single = [site for site in left if off[site.place] <= 2 * window and len(site.carry) == 1]
            near = [site for site in near if len(site.carry) == 1] or single or near
            near = near or sorted(left, key=lambda site: off[site.place])[:1]
            if near:
                chosen[share] = min(near, key=lambda s: (len(s.carry), s.size, s.name.count("."), off[s.place]))
                last = chosen[share].place
        return chosen

    def operations(self) -> tuple[int, dict[int, int]]:
        """Operations of one image in all, and up to each site, as `offramp.cost` counts."""
        bounds = [-1, *(site.place for site in self.all), len(self.cutter.nodes) - 1]
        try:
            upto = self._counted(meta_twin(self.traced.model).eval(), bounds)
        except Exception:  # some module looks at numbers: run it with memory
            upto = self._counted(eval_twin(self.traced.model), bounds)
        return max(upto[bounds[-1]], 1), upto

    def _counted(self, model: nn.Module, bounds: Sequence[int]) -> dict[int, int]:
        like = next(model.parameters(), torch.empty(0))
        images = torch.zeros(BATCHES[0], *self.traced.image_shape, device=like.device, dtype=like.dtype)
        interpreter = Interpreter(model, self.traced.graph, images)
        interpreter.env[self.cutter.images] = images
        upto = {-1: 0}
        for before, until in itertools.pairwise(bounds):
            upto[until] = upto[before] + operations_of(interpreter.run_nodes, self.cutter.nodes[before + 1 : until + 1])
        return upto

    @property
    def _model(self) -> str:
        return type(self.traced.model).__name__

    def _named(self, name: str) -> Site:
        place, why_not = self.ends.get(name), "nothing but the last exit follows"
        if place is None:
            place, why_not = self._not_called(name)
        elif place < self.head:
            site = self.at(name, place)
            if site.why_not is None:
                return site
            why_not = site.why_not
        nearest = min(self.good, key=lambda site: abs(site.place - place), default=None)
        hint = f"The nearest cut that works: {nearest.name}." if nearest else "There is no cut that works."
        raise UsageError(f"{self._model} cannot be cut after {name}: {why_not}. {hint}")

    def _not_called(self, name: str) -> tuple[int, str]:
        """Where a module belongs that is not called by itself, and why that is so."""
        if name not in dict(self.traced.model.named_modules()):
            raise UsageError(
                f"{self._model} has no module {name!r} to cut after.{near(name, [*self.ends])} `offramp layers` lists "
                "them all."
            )
        for leaf in (str(node.target) for node in self.cutter.nodes if node.op == "call_module"):
            if name.startswith(f"{leaf}.") and leaf in self.ends:
                why = f" ({self.traced.leaves[leaf]})" if leaf in self.traced.leaves else ""
                return self.ends[leaf], f"it is called within {leaf}, which is run as a whole{why}"
        inside = [end for end in self.ends if name.startswith(f"{end}.")]
        return self.ends[max(inside, key=len)] if inside else 0, "it is not called by itself"

    def _last_tensor_of(self, name: str, place: int) -> fx.Node:
        """The node whose value a module gives: the last of its nodes that gives a tensor."""
        nodes: list[fx.Node] = self.cutter.nodes[: place + 1]
        own = [n for n in nodes if name in self.traced.owners[n] and self.cutter.depends[n] and n in self.cutter.kept]
        return own[-1] if own else nodes[-1]

    def _has_class_token(self, node: fx.Node) -> bool:
        """Whether the parameter of a class token is part of what a node gives."""
        seen, todo = {node}, [node]
        while todo:
            for read in todo.pop().all_input_nodes:
                if read.op == "get_attr" and str(read.target).split(".")[-1] in ("cls_token", "class_token"):
                    return True
                if read not in seen:
                    seen.add(read)
                    todo.append(read)
        return False

    def _find_head(self) -> int:
        """The place before the last exit: where the images' last map or tokens are about to be pooled.

        Where the last map is a single pixel, and pooling cannot be told by sides, it is the last map; and where nothing
        with weights would follow, the place before what has the last.
        """
        alone = [p for p in range(len(self.cutter.nodes)) if self._is_alone(p)]
        weighty = [i for i, n in enumerate(self.cutter.nodes) if self.cutter.parameters_of([n])]
        alone = [p for p in alone if not weighty or p < weighty[-1]]
        maps = [p for p in alone if len(self._sizes(p)) > 2]
        wide = [p for p in maps if math.prod(self._sizes(p)[1:]) > self._channels(p)]
        if wide and not any(self._is_spatial(node) for node in self.cutter.nodes[wide[-1] + 1 :]):
            return wide[-1]
        if maps:
            return maps[-1]
        if alone:
            return alone[-1]
        raise UsageError(f"{self._model} has no place to cut: no single tensor leads to its logits.")

    def _is_alone(self, place: int) -> bool:
        crossing = self.cutter.crossing(place)
        return crossing.why_not is None and crossing.nodes == (self.cutter.nodes[place],)

    def _sizes(self, place: int) -> tuple[int, ...]:
        sizes: tuple[int, ...] = self.cutter.values[self.cutter.nodes[place]][0].sizes
        return sizes

    def _channels(self, place: int) -> int:
        sizes, layout = self._sizes(place), self.layout(self.cutter.nodes[place])
        return sizes[1] if layout == "map" else sizes[-1]

    def _is_spatial(self, node: fx.Node) -> bool:
        """Whether a convolution of more than one pixel: what has that is no head."""
        if node.op != "call_module":
            return False
        inside = self.traced.model.get_submodule(str(node.target)).modules()
        return any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in inside)


def layout_of(sizes: tuple[int, ...], image_sides: tuple[int, int], has_class_token: bool) -> Layout | None:
    """How a tensor of these sizes (B first) is to be read; None where an exit cannot read it."""
    if len(sizes) == 2:
        return "vector"
    if len(sizes) == 3:
        return "class token" if has_class_token else "tokens"
    if len(sizes) != 4:
        return None
    first, last = _distortion(sizes[2:], image_sides), _distortion(sizes[1:3], image_sides)
    return "map, channels last" if last < first else "map"


def _distortion(sides: tuple[int, ...], image_sides: tuple[int, int]) -> float:
    """How far the ratio of two sides is from that of the images, 1 for the same."""
    ratio = sides[0] * image_sides[1] / (sides[1] * image_sides[0])
    return max(ratio, 1 / ratio)


assert BATCHES[0] == 1  # shapes in a Site are those of one image
