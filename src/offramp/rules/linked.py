"""Methods that are a link: values as ever, gradients cut or rescaled where a stage meets its exit.

K exits, B images.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from offramp.data import Batch
from offramp.network import Carry
from offramp.rules.base import Outcome
from offramp.rules.standard import Standard


class Linked(Standard):
    """Gradient descent on the objective, with `link` in the network while a step is taken and at no other time.

    What is cut or rescaled is the tensor that exit k reads: for its head, and for whatever reads it later. In MSDNet
    that is the coarsest map, whose only later reader is the next stage; the finer maps pass as they are. In RANet,
    for which none of these methods was published, it is the current map of the sub-network, and every later reader
    gets it so: the next block, and the fusion blocks of the next sub-network, which read its first channels. The maps
    that a RANet hands up from before a transition or a halving are other tensors of the carry, and pass as they are.
    """

    @abstractmethod
    def link(self, k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
        """What exit k (from 0; never the last) sees and what stage k + 1 gets: values unchanged."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        """The step of `Standard` on the network with the link; the network's own link is back afterwards."""
        with self._switched_on():
            return super().step(batch, progress)

    @contextmanager
    def _switched_on(self) -> Iterator[None]:
        network = self.bench.network
        before = network.link
        network.link = self.link
        try:
            yield
        finally:
            network.link = before


def exchanged(carry: Carry, reads: int, x: Tensor) -> Carry:
    """The carry with `x` in the place of the tensor that `reads` names."""
    i = reads % len(carry)
    return (*carry[:i], x, *carry[i + 1 :])
