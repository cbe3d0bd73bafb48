"""Deep Feature Surgery (Gong et al., ECCV 2024): each exit and what lies deeper share a map, and divide its gradients.

K exits, B images, C channels of a map.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from offramp.batch import Batch
from offramp.checks import SHARE, check_fields, number
from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet, last_linear
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.linked import exchanged


@dataclass(eq=False)
class DFS(TrainingRule):
    """Feature partition and referencing: both sides see all channels of a map, not both send gradients to all of them.

    Of the C channels of the map that exit k reads, deeper exits send gradients to the first `round(ratio * C)` only.
    To which the exit's own head does, the authors' program and their paper tell differently; see `head`. The last
    exit's map is whole. (The variant without referencing puts zeros in the place of the other side's channels, which
    makes another network; it is not here.)

    Not repeated here: the authors' program normalises CIFAR-100 with the statistics of CIFAR-10, by mistake, pads crops
    with grey (128), and keeps the epoch whose last exit is best on test.

    Args:
        ratio: Share of the channels that deeper exits may change (beta), in [0, 1]. At 0 no gradient comes from deeper
            exits, at 1 none from the head, whatever `head` says, as in the authors' program.
        head: The head sends gradients to `all` channels (the program) or to the `rest`, those that deeper exits leave
            alone (the paper).
        dropout: Share of the features that are dropped before the last Linear of every exit while training. The
            published runs have 0.5, which is no part of the method.
    """

    ratio: Annotated[float, SHARE] = 0.5
    head: Literal["all", "rest"] = "all"
    dropout: Annotated[float, number("of at least 0 and below 1", lambda share: 0 <= share < 1)] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, network: EarlyExitNet) -> None:
        """Refuse dropout where an exit has no Linear."""
        missing = [k for k, head in enumerate(network.exits, 1) if last_linear(head) is None]
        if self.dropout and missing:
            raise UsageError(
                f"dropout={self.dropout} goes before the last Linear of every exit, and exit {missing[0]} has none; "
                "use dropout=0, or put dropout into the network."
            )

    def step(self, batch: Batch, progress: float) -> Outcome:
        """A step under the link, with dropout."""
        with self._dropping():
            return self.bench.descend(batch, progress, link=self.link)

    def link(self, k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
        """The map with gradients cut, on the way to the head and on the way on."""
        x = carry[reads]
        if self.ratio >= 1:
            return x.detach(), carry
        if self.ratio <= 0:
            return x, exchanged(carry, reads, x.detach())
        num = round(self.ratio * x.shape[1])
        first, rest = x[:, :num], x[:, num:]
        onward = torch.cat([first, rest.detach()], dim=1)
        seen = x if self.head == "all" else torch.cat([first.detach(), rest], dim=1)
        return seen, exchanged(carry, reads, onward)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        with ExitStack() as hooks:
            if self.dropout:
                linears = [last_linear(head) for head in self.bench.network.exits]
                for linear in dict.fromkeys(linear for linear in linears if linear is not None):
                    hooks.enter_context(linear.register_forward_pre_hook(self._drop))
            yield

    def _drop(self, linear: nn.Module, args: tuple[Tensor]) -> Tensor:
        return dropout(args[0], self.dropout, training=linear.training)
