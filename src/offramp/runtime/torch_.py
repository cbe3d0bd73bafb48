"""A network run by torch, on any device: batch norm folded, channels innermost.

B images, C outputs of an exit.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from offramp.graphs.exit_writes import check_skippable
from offramp.graphs.folding import fold
from offramp.network import Carry, EarlyExitNet, as_carry
from offramp.runtime.program import Form, Program


class TorchProgram(Program):
    """A network as modules of torch.

    Args:
        as_it_is: Run it without folding and in its own layout: what the other forms are compared with.

    Raises:
        UsageError: An exit that writes into a map that a later part reads: see `graphs.exit_writes`. Where the network
            does not say which images it is for, that is known once images have come, and `enter` raises it.
    """

    def __init__(
        self, network: EarlyExitNet, form: Form, device: torch.device | None = None, *, as_it_is: bool = False
    ) -> None:
        super().__init__(network, form, device)
        self._layout = torch.contiguous_format if as_it_is else torch.channels_last
        self._folds = not as_it_is
        self._twin = copy.deepcopy(network).eval().requires_grad_(False)
        self._is_ready = False
        if self.image_shape is not None:
            self._prepare(self.image_shape)

    def _prepare(self, image_shape: torch.Size | tuple[int, ...]) -> None:
        """Check that exits may be skipped, then fold: what is checked is the network as it was given."""
        twin = self._twin
        self._in_own_precision(check_skippable, twin, image_shape)
        if self._folds:
            for part in (*twin.stages, *twin.exits):
                fold(part)
        twin.to(self.device, self.dtype)
        for weight in twin.parameters():
            if weight.dim() == 4:  # maps in space and time have five axes
                weight.data = weight.data.contiguous(memory_format=self._layout)
        self._is_ready = True

    def _enter(self, images_BCHW: Tensor) -> Carry:
        if not self._is_ready:
            with torch.inference_mode(False), torch.no_grad():  # else its weights would be that mode's
                self._prepare(images_BCHW.shape[1:])
        images_BCHW = images_BCHW.to(self.dtype)
        return (images_BCHW.contiguous(memory_format=self._layout) if images_BCHW.dim() == 4 else images_BCHW,)

    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        """See `Program.segment`."""
        for k in range(first, last + 1):
            carry = as_carry(self._in_own_precision(self._twin.stages[k], *carry))
        return (self._head(last, carry) if head else None), carry

    def straight(self, images_BCHW: Tensor, exit: int) -> Tensor:
        """See `Program.straight`."""
        _, carry = self.segment(0, exit, self.enter(images_BCHW), head=False)
        return self._head(exit, carry)

    def _head(self, k: int, carry: Carry) -> Tensor:
        logits_BC: Tensor = self._in_own_precision(self._twin.exits[k], carry[self._twin.reads[k]])
        return logits_BC

    def _in_own_precision(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """What is run in the form's precision, whatever autocast there is around."""
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return run(*arguments)
        with torch.autocast(kind, enabled=False):
            return run(*arguments)
