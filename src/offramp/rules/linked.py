"""Methods that are a link: values as ever, gradients cut or rescaled where a stage meets its exit.

What is cut or rescaled is the tensor that exit k reads: for its head, and for whatever reads it later. In MSDNet that
is the coarsest map, whose only later reader is the next stage; the finer maps pass as they are. In RANet, for which
none of these methods was published, it is the current map of the sub-network, and every later reader gets it so: the
next block, and the fusion blocks of the next sub-network, which read its first channels. The maps that a RANet hands up
from before a transition or a halving are other tensors of the carry, and pass as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from offramp.network import Carry, EarlyExitNet, Link


@contextmanager
def linked(network: EarlyExitNet, link: Link | None) -> Iterator[None]:
    """While entered, `link` stands between stages and exits; None leaves the network's own."""
    before = network.link
    network.link = link or before
    try:
        yield
    finally:
        network.link = before


def exchanged(carry: Carry, reads: int, x: Tensor) -> Carry:
    """The carry with `x` in the place of the tensor that `reads` names."""
    i = reads % len(carry)
    return (*carry[:i], x, *carry[i + 1 :])
