"""Several processes on one job, started by torchrun: who am I, and sums over all. With one process, nothing happens."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from offramp.errors import UsageError


@contextmanager
def together(backend: str) -> Iterator[None]:
    """Within it, the processes that torchrun started know each other. With one, or where they do, nothing happens.

    After a restart they do not meet by the addresses of the life before, which the store still has.
    """
    if from_environment("WORLD_SIZE", 1, least=1) == 1 or dist.is_initialized():
        yield
        return
    _check_environment()
    # Imported before, because it defines defaults such as `group=WORLD`: imported later, as a fused optimiser does, it
    # would keep the group beyond its end, and the group's threads abort Python's exit now and then.
    importlib.import_module("torch._dynamo")
    store, number, size = next(rendezvous("env://"))
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(backend, store=PrefixStore(f"offramp/life-{life}", store), rank=number, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_environment(name: str, default: int, *, least: int = 0) -> int:
    """The whole number that torchrun puts into a variable of the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UsageError(
            f"The environment variable {name} must be a whole number of at least {least}, not {text!r}. torchrun sets "
            "it; without torchrun, unset it."
        )
    return int(text)


def _check_environment() -> None:
    """Refuse variables by which several processes cannot meet."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} not set in the environment. Start "
            "several processes with torchrun; for one, unset WORLD_SIZE."
        )
    rank, size = from_environment("RANK", 0), from_environment("WORLD_SIZE", 1)
    if rank >= size:
        raise UsageError(f"The environment variable RANK is {rank}, and WORLD_SIZE {size}: ranks are counted from 0.")
    from_environment("MASTER_PORT", 0)


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
    """The sum of `tensor` over all processes: a new tensor through which no gradient flows back.

    With one process it is `tensor` itself, and its gradient flows.
    """
    return _reduced(tensor, dist.ReduceOp.SUM)


def max_over_all(tensor: Tensor) -> Tensor:
    """The largest of each entry over all processes; the rest as of `sum_over_all`."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if not active():
        return tensor
    reduced = tensor.detach().clone()
    dist.all_reduce(reduced, operation)
    return reduced


def wait_for_all() -> None:
    """Return when every process has come here."""
    if active():
        dist.barrier()


def share_of(num_items: int) -> slice:
    """This process's contiguous share of `num_items`; shares differ by at most one and may be empty."""
    here, world = rank(), world_size()
    return slice(num_items * here // world, num_items * (here + 1) // world)
