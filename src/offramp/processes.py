"""Several processes on one job, started by torchrun: who am I, and sums over all. With one process, nothing happens."""

import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether more than one process works on this job."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def sum_over_all(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes (a new tensor; no gradient flows back)."""
    if not active():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def max_over_all(tensor: Tensor) -> Tensor:
    """The largest of each entry over all processes (a new tensor; no gradient flows back)."""
    if not active():
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def wait_for_all() -> None:
    """Return when every process has come here."""
    if active():
        dist.barrier()


def share_of(num_items: int) -> slice:
    """This process's contiguous share of `num_items`; shares differ by at most one and may be empty."""
    here, world = rank(), world_size()
    return slice(num_items * here // world, num_items * (here + 1) // world)
