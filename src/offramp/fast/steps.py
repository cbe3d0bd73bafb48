"""What a plan consists of: units, copies, and segments of anything else; each runs forward and backward.

R rows (one a pixel, over the whole batch). Maps lie as `[B, height, width, channels]` in slabs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from offramp.fast import patches
from offramp.fast.kernels import Kernels
from offramp.fast.placing import Region, Slab
from offramp.fast.tracing import call

Kept = tuple[Any, ...]


class Pass:
    """What lies where during one forward and backward pass.

    Args:
        slabs: Of the plan.
        dtype: What units compute in.
        kernels: For batch norm and ReLU.
    """

    def __init__(self, slabs: Sequence[Slab], dtype: torch.dtype, kernels: Kernels) -> None:
        self.dtype, self.kernels = dtype, kernels
        self.slabs = slabs
        self.maps: list[Tensor | None] = [None] * len(slabs)
        self.values: dict[fx.Node, Any] = {}  # what is not a map
        self.gradients: list[Tensor | None] = [None] * len(slabs)
        self.reached: list[list[Region]] = [[] for _ in slabs]  # what has got a gradient in each
        self.value_gradients: dict[fx.Node, Tensor] = {}
        self.parameter_gradients: dict[nn.Parameter, Tensor] = {}
        self.frozen_slabs: set[int] = set()  # whose gradient nobody wants

    def read(self, region: Region) -> Tensor:
        """A map `[B, height, width, channels]`."""
        whole = self.maps[region.slab]
        assert whole is not None, "a map is read before it is written"
        return _channels(whole, region)

    def target(self, region: Region, batch: int, device: torch.device) -> Tensor:
        """Where a map is written; the slab is allocated with its first."""
        whole = self.maps[region.slab]
        if whole is None:
            whole = self.maps[region.slab] = allocated(self.slabs[region.slab], batch, self.dtype, device)
        return _channels(whole, region)

    def put(self, node: fx.Node, region: Region, x_BHWC: Tensor) -> None:
        """Bring a map to where it belongs: as it is, where the slab is its own."""
        if self.slabs[region.slab].home is node:
            self.maps[region.slab] = x_BHWC
        else:
            self.target(region, len(x_BHWC), x_BHWC.device).copy_(x_BHWC)

    def give(self, node: fx.Node, region: Region | None, value: Any) -> None:
        """Bring what a node gives to where it belongs; maps are `[B, channels, height, width]`."""
        if region is None:
            self.values[node] = value
        else:
            self.put(node, region, value.permute(0, 2, 3, 1))

    def gradient(self, region: Region) -> Tensor | None:
        """Of a map, as far as it has been added up; None where nothing that was given a gradient has read it."""
        whole = self.gradients[region.slab]
        is_reached = any(region.overlaps(other) for other in self.reached[region.slab])
        return _channels(whole, region) if whole is not None and is_reached else None

    def gradient_target(self, region: Region) -> Tensor:
        """Where gradients of a map are added."""
        whole = self.gradients[region.slab]
        if whole is None:
            like = self.maps[region.slab]
            assert like is not None
            whole = self.gradients[region.slab] = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        self.reached[region.slab].append(region)
        return _channels(whole, region)

    def add_gradient(self, region: Region, gradient_BHWC: Tensor, *, owned: bool) -> None:
        """Add to a map's gradient. A tensor that is `owned` may become the gradient itself."""
        like = self.maps[region.slab]
        assert like is not None
        if self.gradients[region.slab] is None and gradient_BHWC.shape == like.shape:
            if not owned or gradient_BHWC.dtype != like.dtype or not gradient_BHWC.is_contiguous():
                gradient_BHWC = torch.empty(like.shape, dtype=like.dtype, device=like.device).copy_(gradient_BHWC)
            self.gradients[region.slab] = gradient_BHWC
            self.reached[region.slab].append(region)
        else:
            self.gradient_target(region).add_(gradient_BHWC)

    def result(self, node: fx.Node, region: Region | None) -> Any:
        """What a node gives; maps are `[B, channels, height, width]`."""
        if region is None:
            return self.values[node]
        return self.read(region).permute(0, 3, 1, 2)

    def add_node_gradient(self, node: fx.Node, region: Region | None, gradient: Tensor) -> None:
        """Add to the gradient of what a node gives."""
        if region is not None:
            self.add_gradient(region, gradient.permute(0, 2, 3, 1), owned=False)
        elif node in self.value_gradients:
            self.value_gradients[node] = self.value_gradients[node] + gradient
        else:
            self.value_gradients[node] = gradient

    def node_gradient(self, node: fx.Node, region: Region | None) -> Tensor | None:
        """Of what a node gives; maps are `[B, channels, height, width]`."""
        if region is None:
            return self.value_gradients.get(node)
        gradient_BHWC = self.gradient(region)
        return None if gradient_BHWC is None else gradient_BHWC.permute(0, 3, 1, 2)

    def add_parameter_gradient(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add to what a parameter gets."""
        before = self.parameter_gradients.get(parameter)
        self.parameter_gradients[parameter] = gradient if before is None else before + gradient


def allocated(slab: Slab, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of a slab `[B, height, width, channels]`."""
    make = torch.zeros if _reads_beside(dtype, device) else torch.empty
    return make(batch, *slab.sides, slab.width, dtype=dtype, device=device)


def _reads_beside(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products may read the channels beside theirs, times 0, so that no garbage may lie there.

    oneDNN's in bf16 do, with AMX, of more than 32 channels but for multiples of 32 (uxlfoundation/oneDNN#5717).
    """
    if dtype != torch.bfloat16 or device.type != "cpu":
        return False
    has_amx: Callable[[], bool] | None = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return has_amx is None or has_amx()


def _channels(whole: Tensor, region: Region) -> Tensor:
    return whole if region.width == whole.shape[-1] else whole.narrow(-1, region.first, region.width)


class Step(Protocol):
    """One step of a plan."""

    def forward(self, run: Pass) -> Kept:
        """Compute; gives what `backward` needs, tensors and others."""

    def backward(self, run: Pass, kept: Kept) -> None:
        """Turn the gradients of what it gave into those of what it read."""


@dataclass(frozen=True)
class Copying:
    """A map that lies in two slabs."""

    source: Region
    target: Region

    def forward(self, run: Pass) -> Kept:
        """See `Step`."""
        x = run.read(self.source)
        run.target(self.target, len(x), x.device).copy_(x)
        return ()

    def backward(self, run: Pass, kept: Kept) -> None:
        """See `Step`."""
        gradient = run.gradient(self.target)
        if gradient is not None and self.source.slab not in run.frozen_slabs:
            run.add_gradient(self.source, gradient, owned=False)


@dataclass(frozen=True)
class Cutting:
    """Some channels of a map: no work, but what has a gradient in part has one as a whole."""

    source: Region
    target: Region

    def forward(self, run: Pass) -> Kept:
        """See `Step`."""
        return ()

    def backward(self, run: Pass, kept: Kept) -> None:
        """See `Step`."""
        if run.gradient(self.target) is not None:
            run.gradient_target(self.source)


@dataclass(frozen=True)
class Units:
    """One unit, or several 1 x 1 units that read the same map and run as one."""

    source: Region
    targets: Sequence[Region]
    convs: Sequence[nn.Conv2d]
    norms: Sequence[nn.BatchNorm2d]
    is_pointwise: bool

    def forward(self, run: Pass) -> Kept:
        """See `Step`."""
        x_BHWC = self._input(run)
        weight = _joined([conv.weight for conv in self.convs]).to(run.dtype)
        if self._by_rows(run):
            z_BHWC = (_rows(x_BHWC) @ weight.flatten(1).t()).view(*x_BHWC.shape[:3], -1)
        else:
            conv = self.convs[0]
            bias = None if conv.bias is None else conv.bias.to(run.dtype)
            z = torch.ops.aten.convolution(x_BHWC.permute(0, 3, 1, 2), weight, bias, *_settings(conv))
            z_BHWC = z.permute(0, 2, 3, 1).contiguous()
        if z_BHWC.shape[:3].numel() == 1:
            raise ValueError(f"Batch norm cannot train on a single value a channel: {list(z_BHWC.shape)}.")
        gain_C, shift_C = _joined([norm.weight for norm in self.norms]), _joined([norm.bias for norm in self.norms])
        parts = [run.target(region, len(z_BHWC), z_BHWC.device) for region in self.targets]
        return weight, gain_C, *run.kernels.forward(z_BHWC, gain_C, shift_C, self.norms[0].eps, parts)

    def statistics(self, kept: Kept) -> Iterable[tuple[nn.BatchNorm2d, Tensor, Tensor]]:
        """Each norm with mean and unbiased variance `[C]` of the batch."""
        mean_C, variance_C = kept[2:4]
        widths = [norm.num_features for norm in self.norms]
        return zip(self.norms, _parts(mean_C, widths), _parts(variance_C, widths), strict=True)

    def backward(self, run: Pass, kept: Kept) -> None:
        """See `Step`."""
        weight, gain_C, *of_kernels = kept
        gradients = [run.gradient(region) for region in self.targets]
        if all(gradient is None for gradient in gradients):
            return
        given = [
            torch.zeros_like(run.read(region)) if gradient is None else gradient
            for region, gradient in zip(self.targets, gradients, strict=True)
        ]
        dz_BHWC, dgain_C, dshift_C = run.kernels.backward(gain_C, self.norms[0].eps, tuple(of_kernels), given)
        reached = [gradient is not None for gradient in gradients]
        _share(run, [norm.weight for norm in self.norms], dgain_C, reached)
        _share(run, [norm.bias for norm in self.norms], dshift_C, reached)
        if self._by_rows(run):
            self._backward_by_rows(run, weight.flatten(1), _rows(dz_BHWC), reached)
        elif self.convs[0].bias is None and patches.pay(self.convs[0], run.dtype):
            self._backward_by_patches(run, weight, _rows(dz_BHWC))
        else:
            self._backward_by_convolution(run, weight, dz_BHWC, reached)

    def _backward_by_rows(self, run: Pass, weight_OI: Tensor, dz_RO: Tensor, reached: Sequence[bool]) -> None:
        if any(conv.weight.requires_grad for conv in self.convs):
            dweight = dz_RO.t() @ _rows(self._input(run))
            _share(run, [conv.weight for conv in self.convs], dweight[:, :, None, None], reached)
        if self.source.slab not in run.frozen_slabs:
            like = run.read(self.source)
            if run.gradient(self.source) is None and like.shape[-1] == run.slabs[self.source.slab].width:
                run.add_gradient(self.source, (dz_RO @ weight_OI).view(like.shape), owned=True)
            elif like.dtype == dz_RO.dtype:
                run.gradient_target(self.source).flatten(0, 2).addmm_(dz_RO, weight_OI)
            else:
                run.add_gradient(self.source, (dz_RO @ weight_OI).view(like.shape), owned=True)

    def _backward_by_patches(self, run: Pass, weight: Tensor, dz_RO: Tensor) -> None:
        (conv,) = self.convs
        if conv.weight.requires_grad:
            _share(run, [conv.weight], patches.weight_gradient(conv, self._input(run), dz_RO))
        if self.source.slab not in run.frozen_slabs:
            patches.add_input_gradient(conv, weight, dz_RO, run.gradient_target(self.source))

    def _backward_by_convolution(self, run: Pass, weight: Tensor, dz_BHWC: Tensor, reached: Sequence[bool]) -> None:
        conv, x_BHWC = self.convs[0], self._input(run)
        wanted = (
            self.source.slab not in run.frozen_slabs,
            any(conv.weight.requires_grad for conv in self.convs),
            conv.bias is not None and conv.bias.requires_grad,
        )
        dx, dweight, dbias = torch.ops.aten.convolution_backward(
            dz_BHWC.permute(0, 3, 1, 2),
            x_BHWC.permute(0, 3, 1, 2),
            weight,
            None if conv.bias is None else [len(weight)],
            *_settings(conv),
            wanted,
        )
        if wanted[0]:
            run.add_gradient(self.source, dx.permute(0, 2, 3, 1), owned=True)
        if wanted[1]:
            _share(run, [conv.weight for conv in self.convs], dweight, reached)
        if wanted[2]:
            _share(run, [conv.bias], dbias)

    def _input(self, run: Pass) -> Tensor:
        """In the type computed with; contiguous where it is not read by rows."""
        x_BHWC = run.read(self.source).to(run.dtype)
        return x_BHWC if self._by_rows(run) and x_BHWC.stride(-1) == 1 else x_BHWC.contiguous()

    def _by_rows(self, run: Pass) -> bool:
        """Measured: in bfloat16 matrix products of rows win, in float32 oneDNN's convolution does.

        Torch does not use the latter for fewer than 16 images on one thread, but one that wants other maps than these.
        """
        is_small = torch.get_num_threads() == 1 and len(run.read(self.source)) < 16
        return self.is_pointwise and (run.dtype == torch.bfloat16 or is_small)


@dataclass(frozen=True)
class Segment:
    """Operations in a row that are no units: differentiated by autograd, among themselves."""

    nodes: Sequence[fx.Node]
    sources: Sequence[fx.Node]
    """What they read from before."""
    results: Sequence[fx.Node]
    """What others read of them."""
    regions: dict[fx.Node, Region]
    """Where those of both lie that are maps."""
    root: nn.Module
    modules: Sequence[nn.Module]
    attributes: Sequence[nn.Parameter]

    def forward(self, run: Pass) -> Kept:
        """See `Step`."""
        env: dict[fx.Node, Any] = {}
        leaves: dict[fx.Node, Tensor] = {}
        for node in self.sources:
            value = run.result(node, self.regions.get(node))
            if isinstance(value, Tensor):
                value = self._apart(run, node, value)
                if value.is_floating_point() or value.is_complex():
                    leaves[node] = value.requires_grad_()
            env[node] = value
        with torch.enable_grad():
            for node in self.nodes:
                env[node] = call(self.root, node, env)
        for node in self.results:
            value = env[node].detach() if isinstance(env[node], Tensor) else env[node]
            run.give(node, self.regions.get(node), value)
        outs = {node: env[node] for node in self.results if isinstance(env[node], Tensor) and env[node].requires_grad}
        return leaves, outs

    def backward(self, run: Pass, kept: Kept) -> None:
        """See `Step`."""
        leaves, outs = kept
        found_for = {node: run.node_gradient(node, self.regions.get(node)) for node in outs}
        given = {node: gradient for node, gradient in found_for.items() if gradient is not None}
        parameters = self._parameters()
        wanted = {node: leaf for node, leaf in leaves.items() if self._is_wanted(run, node)}
        if not given or not (parameters or wanted):
            return
        found = torch.autograd.grad(
            [outs[node] for node in given],
            [*wanted.values(), *parameters],
            [gradient.to(outs[node].dtype) for node, gradient in given.items()],
            allow_unused=True,
            retain_graph=True,  # it goes with the pass; the pass may run backward twice
        )
        for node, gradient in zip(wanted, found, strict=False):
            if gradient is not None:
                run.add_node_gradient(node, self.regions.get(node), gradient)
        for parameter, gradient in zip(parameters, found[len(wanted) :], strict=True):
            if gradient is not None:
                run.add_parameter_gradient(parameter, gradient)

    def _apart(self, run: Pass, node: fx.Node, value: Tensor) -> Tensor:
        """Without history; where others write beside it, also without the slab's count of writes (`data`)."""
        is_shared = node in self.regions and run.slabs[self.regions[node].slab].home is None
        return value.data if is_shared else value.detach()

    def _parameters(self) -> list[nn.Parameter]:
        own = [p for module in self.modules for p in module.parameters()]
        return [p for p in dict.fromkeys([*own, *self.attributes]) if p.requires_grad]

    def _is_wanted(self, run: Pass, node: fx.Node) -> bool:
        return node not in self.regions or self.regions[node].slab not in run.frozen_slabs


def _rows(x_BHWC: Tensor) -> Tensor:
    """`[R, channels]`, without a copy where the channels are neighbours."""
    return x_BHWC.flatten(0, 2)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _parts(joined: Tensor, lengths: list[int]) -> Sequence[Tensor]:
    return [joined] if len(lengths) == 1 else torch.split(joined, lengths)


def _share(run: Pass, parameters: Sequence[Any], gradient: Tensor, reached: Sequence[bool] = (True,)) -> None:
    """Give each of several joined parameters its part of the gradient, where the gradient has reached it."""
    parts = _parts(gradient, [p.shape[0] for p in parameters])
    for parameter, part, is_reached in zip(parameters, parts, reached, strict=True):
        if parameter.requires_grad and is_reached:
            run.add_parameter_gradient(parameter, part if part.dtype == parameter.dtype else part.to(parameter.dtype))


def _settings(conv: nn.Conv2d) -> tuple[Any, ...]:
    """What torch's operators want to know of a convolution."""
    return conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups
