"""Whether a network's stages and exits write into maps that they are given: then no part is run in a fast form.

In a network of modules whoever reads the map later sees what was written. In a fast form several maps lie in the same
memory, of which the same write would change others too, and autograd lets nobody write into what a plan gives.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from offramp.drawing import drawing_apart
from offramp.network import EarlyExitNet, as_carry


def why_as_it_is(network: EarlyExitNet, images: Tensor) -> str | None:
    """Why all stages and exits have to be run as they are, if so: tried on copies, with two images of noise.

    Args:
        network: In the mode in which it is to run. Nothing in it changes, and nobody's random numbers do.
        images: Of the shape, in the type and on the device of those to come.
    """
    shape, gpus = (2, *images.shape[1:]), range(torch.cuda.device_count())
    try:
        # Not in inference mode, even where the caller is: its tensors do not count how often they are written.
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(gpus), drawing_apart():
            stages, exits = copy.deepcopy((network.stages, network.exits))
            carry: tuple[Any, ...] = (torch.randn(shape, device=images.device).to(images.dtype),)
            for stage, head, reads in zip(stages, exits, network.reads, strict=True):
                given = _called(stage, carry)
                _called(head, (given[reads],))
                carry = given
    except Exception as error:  # anything may happen in code that is run on a copy; the network itself then decides
        return f"it cannot be tried on two images: {error}"
    return None


def _called(part: Any, maps: tuple[Any, ...]) -> tuple[Any, ...]:
    before = [x._version for x in maps if isinstance(x, Tensor)]
    given: tuple[Any, ...] = as_carry(part(*maps))
    if before != [x._version for x in maps if isinstance(x, Tensor)]:
        raise ValueError("a stage or an exit writes into a map that it is given")
    return given
