"""Whether a network's exits write into maps that they are given, and whether later parts read these.

Later parts read what was written. Where an exit writes into a map that a later part reads, the later
answers hang on whether the exit was run: such a network trains, but exits that skip work, and files of its parts, are
refused.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.graphs.random_state import random_state_kept
from offramp.network import EarlyExitNet, as_carry

LOUD = 30.0  # times the other image's noise, for what cuts off large values alone, as ReLU6 does
ROUNDING = 1e-5  # of the largest value of an image; the same kernels are run twice


def check_skippable(network: EarlyExitNet, image_shape: Sequence[int]) -> None:
    """Refuse a network whose later answers change where an exit is not run, because that exit writes in place.

    Harmless, and not refused, is what a stage writes, because exits read before it; what the last exit writes; and what
    changes no later logits. A network that cannot be tried is not refused. It is tried in evaluation mode, on copies:
    no hook of a module is called, and nothing in it or of a random state changes.
    """
    if torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return
    conflict: tuple[int, str] | None = None
    parameter = next(network.parameters(), torch.empty(0))
    with contextlib.suppress(Exception), _trial():  # anything may happen in code that is run on a copy
        like = torch.empty(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        writers = _writers(_Copy(network), _noise(like))
        readers = ((k, _reader(network, _noise(like), k)) for k in writers)
        conflict = next(((k, reader) for k, reader in readers if reader is not None), None)
    if conflict is not None:
        raise UsageError(
            f"Exit {conflict[0] + 1} writes into a map that {conflict[1]} reads (in place): where it is not run, later "
            "answers change. Make it not in place, such as nn.ReLU(inplace=False)."
        )


class _Copy:
    """Stages and exits of a network in evaluation mode, to be run in turn without consequences: no hook is called."""

    def __init__(self, network: EarlyExitNet) -> None:
        self.stages, self.exits = copy.deepcopy((network.stages, network.exits))
        self.reads = network.reads
        for parts in (self.stages, self.exits):
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


@contextlib.contextmanager
def _trial() -> Iterator[None]:
    """A network is run on noise: without gradients, and the random numbers that it draws leave no trace."""
    # Not in inference mode, even where the caller is: its tensors do not count how often they are written.
    with torch.inference_mode(False), torch.no_grad(), random_state_kept():
        yield


def _noise(images: Tensor) -> Tensor:
    return torch.randn((2, *images.shape[1:]), device=images.device).to(images.dtype)


def _writers(parts: _Copy, noise: Tensor) -> list[int]:
    """The exits (from 0), but the last, that write into the map that they read."""
    carry: tuple[Any, ...] = (noise,)
    writers = []
    for k in range(len(parts.stages) - 1):
        carry = parts.stage(k, carry)
        before = _versions(carry)
        parts.exit(k, carry)
        if before != _versions(carry):
            writers.append(k)
    return writers


def _versions(maps: tuple[Any, ...]) -> list[int]:
    return [x._version for x in maps if isinstance(x, Tensor)]


def _reader(network: EarlyExitNet, noise: Tensor, writer: int) -> str | None:
    """The first part that makes something else of what exit `writer` writes, where later logits change with it.

    The network is run twice in step: once that exit writes into the map itself, once into a copy, as all others do.
    """
    noise[1] *= LOUD
    one, other = (_Copy(network) for _ in range(2))
    with_it: tuple[Any, ...] = (noise,)
    without: tuple[Any, ...] = (noise.clone(),)
    reader = None
    for k in range(network.num_exits):
        passed_on = [id(x) for x in with_it]
        with random_state_kept():  # both draw the same
            with_it = one.stage(k, with_it)
        without = other.stage(k, without)
        new = [(x, y) for x, y in zip(with_it, without, strict=True) if id(x) not in passed_on]
        if k > writer and reader is None and _differ(new):
            reader = f"stage {k + 1}"
        with random_state_kept():
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
