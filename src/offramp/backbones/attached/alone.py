"""Whether a model's answer for an image depends on which others are in the batch: with exits, images leave a batch."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.graphs.random_state import RandomState, random_state_kept
from offramp.network import Carry, as_carry

DOUBLE = 1e-5  # of the largest number: far above rounding in double precision, which parts may leave for a while
NUM_IMAGES = 3  # two may be handed on in a circle, or stand apart by chance


@torch.no_grad()
def check_alone(model: nn.Module, parts: Sequence[nn.Module], images_BCHW: Tensor) -> None:
    """Refuse parts that give an image something else alone than among others, in evaluation mode.

    Compared is what each part hands on, in double precision where they run in it. Parts that draw random numbers in
    evaluation mode are not looked at: they give something else each time.
    """
    try:
        apart = _furthest(nn.ModuleList(parts), images_BCHW, torch.float64)
        most = DOUBLE
    except Exception:  # some part is written for one precision: then rounding is larger
        apart = _furthest(nn.ModuleList(parts), images_BCHW, images_BCHW.dtype)
        most = max(1e-3, 16 * torch.finfo(images_BCHW.dtype).eps)
    if not apart <= most:
        raise UsageError(
            f"{type(model).__name__} mixes the images of a batch, or looks at their number: alone an image gives other "
            f"numbers than among {NUM_IMAGES} (by {apart:.2g} of the largest). With exits, images leave a batch, and "
            "the answers for those that stay would change. Let it treat each image by itself, as batch norm does with "
            "running statistics."
        )


def _furthest(parts: nn.ModuleList, images_BCHW: Tensor, dtype: torch.dtype) -> float:
    """How far what an image gives alone is from what it gives among all, at most, as a share of the largest number."""
    twins = copy.deepcopy(parts).eval().to(dtype)
    with random_state_kept():
        drawn = RandomState()
        together = _handed_on(twins, images_BCHW.to(dtype))
        if not drawn.is_unchanged():
            return 0.0
        apart = [0.0]
        for i in range(len(images_BCHW)):
            alone = _handed_on(twins, images_BCHW[i : i + 1].to(dtype))
            for all_B, one_B in zip(together, alone, strict=True):
                size = all_B.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
                apart.append(float((all_B[i] - one_B[0]).abs().max() / size) if one_B.numel() else 0.0)
    return max(apart)


def _handed_on(parts: nn.ModuleList, images_BCHW: Tensor) -> list[Tensor]:
    """All tensors that the parts give, in turn, as numbers; a later part may write into them."""
    carry: Carry = (images_BCHW.clone(),)
    tensors: list[Tensor] = []
    for part in parts:
        carry = as_carry(part(*carry))
        tensors += [tensor.to(torch.float64, copy=True) for tensor in carry]
    return tensors
