"""Which tensor, which exit, which images: the account of numbers that are not finite; of a step, by replaying it.

K exits, B images here.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from offramp.data import Batch
from offramp.rules import Workbench

_SHOWN = 10  # images named in the message


def diagnose(bench: Workbench, batch: Batch, progress: float) -> str:
    """What is not finite when `batch` is computed again, with the weights it met; part of a sentence."""
    broken_images_B = ~batch.images_BCHW.flatten(1).isfinite().all(1)
    if broken_images_B.any():
        return f"the pixels of images {_names(batch, broken_images_B)} are not finite"
    network = bench.network
    network.zero_grad()
    with bench.autocast():
        logits_KBC = network(batch.images_BCHW)  # as it is: some forms go backward but once
    loss_KB = bench.objective.terms(logits_KBC, batch.targets_B, progress=progress).loss_KB
    for k, loss_B in enumerate(loss_KB):
        broken_B = ~(loss_B.isfinite() & logits_KBC[k].isfinite().all(-1))
        if broken_B.any():
            return f"exit {k + 1}, images {_names(batch, broken_B)}: the loss is not finite"
    for k, loss_B in enumerate(loss_KB):
        gradients = torch.autograd.grad(
            loss_B.sum() / batch.size, bench.parameters, retain_graph=True, allow_unused=True
        )
        if not all(g.isfinite().all() for g in gradients if g is not None):
            return f"exit {k + 1}: the loss is finite, its gradient is not (images {_names(batch, loss_B.isfinite())})"
    return "the loss and gradients of every exit are finite one by one; their sum, or a statistic of the rule, is not"


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None where there is none.

    One reduction over all of them, and one wait for the device.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floats or torch.nn.utils.get_total_norm(list(floats.values()), norm_type=math.inf).isfinite():
        return None
    return next(name for name, tensor in floats.items() if not tensor.isfinite().all())


def _names(batch: Batch, chosen_B: Tensor) -> str:
    indices = batch.indices_B[chosen_B.cpu()].tolist()
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return ", ".join(str(index) for index in indices[:_SHOWN]) + more
