"""Images that are there more than once, told by their logits: the same picture under two numbers has the same twice.

K exits, S images, N classes, P pairs. Rounding moves logits by the place of an image in its batch, so what is equal up
to rounding counts. That two pictures agree so far in all logits of all exits does not happen by chance, but a network
may give many pictures the same (black ones), so a caller has to be right either way.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from offramp.evaluation.promises import BoolArray
from offramp.evaluation.record import Record, pieces

SAME = 1e-4  # of an image's largest logit at an exit: what rounding may make of one image
AT_ONCE = 2**22  # logits compared together


@torch.no_grad()
def repeats(record: Record, before: Record) -> BoolArray:
    """Which images of `record` `[S]` are those of `before` once more, or of `record` itself further in front.

    Both are records of one network. What is compared are the logits of the classes, all exits together.
    """
    logits_KSN = torch.cat([each.logits_KSC[..., : record.num_classes] for each in (before, record)], 1)
    size_KS = logits_KSN.abs().amax(-1)
    repeated_S = torch.zeros(logits_KSN.shape[1], dtype=torch.bool)
    for one_P, other_P in _close(logits_KSN, size_KS):
        later_P, earlier_P = torch.maximum(one_P, other_P), torch.minimum(one_P, other_P)
        unknown_P = ~repeated_S[later_P]
        later_P, earlier_P = later_P[unknown_P], earlier_P[unknown_P]
        for here in pieces(len(later_P), logits_KSN[:, 0].numel(), AT_ONCE):
            apart_KP = (logits_KSN[:, later_P[here]] - logits_KSN[:, earlier_P[here]]).abs().amax(-1)
            same_P = (apart_KP <= SAME * size_KS[:, later_P[here]]).all(0)
            repeated_S[later_P[here][same_P]] = True
    return np.asarray(repeated_S[before.num_images :])


def _close(logits_KSN: Tensor, size_KS: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of images that may be the same: their logits, seen from two random directions, are.

    Sorted by the first, an image is compared with the next, the one after that, and so on as long as any is close.
    """
    typical_K = logits_KSN.square().mean((1, 2)).sqrt().clamp_min(torch.finfo().tiny)
    directions = torch.randn(2, *logits_KSN[:, 0].shape, generator=torch.Generator().manual_seed(0))
    directions /= typical_K[:, None] * directions[0].numel() ** 0.5
    seen_2S = torch.cat(
        [
            torch.einsum("dkn,ksn->ds", directions, logits_KSN[:, here])
            for here in pieces(logits_KSN.shape[1], logits_KSN[:, 0].numel(), AT_ONCE)
        ],
        1,
    )
    # Rounding that reaches SAME everywhere shows in a random direction as about that; four times as much is ample.
    reach_S = 4 * SAME * (size_KS / typical_K[:, None]).amax(0)
    order_S = seen_2S[0].argsort(stable=True)
    seen_2S, reach_S = seen_2S[:, order_S], reach_S[order_S]
    for step in range(1, len(order_S)):
        apart_2P = (seen_2S[:, step:] - seen_2S[:, :-step]).abs()
        close_2P = apart_2P <= torch.maximum(reach_S[step:], reach_S[:-step])
        if not close_2P[0].any():
            return
        places_P = close_2P.all(0).nonzero().squeeze(1)
        yield order_S[places_P], order_S[places_P + step]
