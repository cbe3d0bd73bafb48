"""Whether a network's stages and exits write into maps that they are given, and whether later parts read these.

In a network of modules whoever reads the map later sees what was written. In a fast form several maps lie in the same
memory, of which the same write would change others too, and autograd lets nobody write into what a plan gives: then no
part is run in a fast form. And where an exit writes into a map that a later part reads, the later answers hang on
whether the exit was run: such a network trains, but exits that skip work, and files of its parts, are refused.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.drawing import drawing_apart
from offramp.errors import UsageError
from offramp.fast.tracing import anybody_hears, trial
from offramp.network import EarlyExitNet, as_carry

LOUD = 30.0  # times the other image's noise, for what cuts off large values alone, as ReLU6 does
ROUNDING = 1e-5  # of the largest value of an image; the same kernels are run twice


def why_as_it_is(network: EarlyExitNet, images: Tensor) -> str | None:
    """Why all stages and exits have to be run as they are, if so: tried on copies, with two images of noise.

    Args:
        network: In the mode in which it is to run. Nothing in it changes, and nobody's random numbers do.
        images: Of the shape, in the type and on the device of those to come.
    """
    try:
        with trial():
            name = next((name for name, _ in _who_writes(_Copy(network), _noise(images))), None)
    except Exception as error:  # anything may happen in code that is run on a copy; the network itself then decides
        return f"it cannot be tried on two images: {error}"
    return None if name is None else f"{name} writes into a map that it is given"


def check_skippable(network: EarlyExitNet, image_shape: Sequence[int]) -> None:
    """Refuse a network whose later answers change where an exit is not run, because that exit writes in place.

    Harmless, and not refused, is what a stage writes, because exits read before it; what the last exit writes; and what
    changes no later logits. A network that cannot be tried is not refused. Nobody who listens to a module hears of it.

    Args:
        network: Tried in evaluation mode, on copies: nothing in it changes, and nobody's random numbers do.
        image_shape: `(channels, height, width)`.

    Raises:
        UsageError: Which exit writes, and who reads.
    """
    if anybody_hears([]):
        return
    found: tuple[int, str] | None = None
    parameter = next(network.parameters(), torch.empty(0))
    with contextlib.suppress(Exception), trial():  # as above
        like = torch.empty(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        writes = _who_writes(_Copy(network, answers=True), _noise(like))
        writers = [k for name, k in writes if name.startswith("exit") and k < network.num_exits - 1]
        readers = ((k, _reader(network, _noise(like), k)) for k in writers)
        found = next(((k, reader) for k, reader in readers if reader is not None), None)
    if found is not None:
        raise UsageError(
            f"Exit {found[0] + 1} writes into a map that {found[1]} reads (in place): where it is not run, later "
            "answers change. Make it not in place, such as nn.ReLU(inplace=False)."
        )


class _Copy:
    """Stages and exits of a network, to be run in turn without consequences.

    Args:
        network: Stays as it is.
        answers: Whether it is run to answer: in evaluation mode, and nobody who listens to a module hears of it.
    """

    def __init__(self, network: EarlyExitNet, *, answers: bool = False) -> None:
        self.stages, self.exits = copy.deepcopy((network.stages, network.exits))
        self.reads = network.reads
        for parts in (self.stages, self.exits) if answers else ():
            for module in parts.eval().modules():
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()

    def stage(self, k: int, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        """The carry after stage k."""
        return as_carry(self.stages[k](*carry))

    def exit(self, k: int, carry: tuple[Any, ...], *, on_a_copy: bool = False) -> Tensor:
        """The logits of exit k."""
        seen = carry[self.reads[k]]
        logits_BC: Tensor = self.exits[k](seen.clone() if on_a_copy else seen)
        return logits_BC


def _noise(images: Tensor) -> Tensor:
    return torch.randn((2, *images.shape[1:]), device=images.device).to(images.dtype)


def _who_writes(parts: _Copy, noise: Tensor) -> Iterator[tuple[str, int]]:
    """Parts that write into maps that they are given, by name and place (from 0), as they are run."""
    carry: tuple[Any, ...] = (noise,)
    for k in range(len(parts.stages)):
        before = _versions(carry)
        given = parts.stage(k, carry)
        if before != _versions(carry):
            yield f"stage {k + 1}", k
        carry, before = given, _versions(given)
        parts.exit(k, carry)
        if before != _versions(carry):
            yield f"exit {k + 1}", k


def _versions(maps: tuple[Any, ...]) -> list[int]:
    return [x._version for x in maps if isinstance(x, Tensor)]


def _reader(network: EarlyExitNet, noise: Tensor, writer: int) -> str | None:
    """The first part that makes something else of what exit `writer` writes, where later logits change with it.

    The network is run twice in step: once that exit writes into the map itself, once into a copy, as all others do.
    """
    noise[1] *= LOUD
    one, other = (_Copy(network, answers=True) for _ in range(2))
    with_it: tuple[Any, ...] = (noise,)
    without: tuple[Any, ...] = (noise.clone(),)
    reader = None
    for k in range(network.num_exits):
        passed_on = [id(x) for x in with_it]
        with drawing_apart():  # both draw the same
            with_it = one.stage(k, with_it)
        without = other.stage(k, without)
        made = [(x, y) for x, y in zip(with_it, without, strict=True) if id(x) not in passed_on]
        if k > writer and reader is None and _differ(made):
            reader = f"stage {k + 1}"
        with drawing_apart():
            logits_BC = one.exit(k, with_it, on_a_copy=k != writer)
        if _differ([(logits_BC, other.exit(k, without, on_a_copy=True))]) and k > writer:
            return reader or f"exit {k + 1}"
    return None


def _differ(pairs: list[tuple[Any, Any]]) -> bool:
    """Whether tensors differ in any image by more than rounding."""
    for x, y in pairs:
        if isinstance(x, Tensor):
            for row, same in zip(x.float().nan_to_num(), y.float().nan_to_num(), strict=True):
                if (row - same).abs().max() > ROUNDING * same.abs().max():
                    return True
    return False
