"""What a training step cannot be faster than on an H100: arithmetic from specifications, nothing measured.

    python benchmarks/floors.py [--quick] [--out FILE]

The operators of a step (forward, dynamic power-sqrt, backward, update; channels last) are counted on the CPU: how many
there are, and the bytes that they read and write, each tensor once an operator, as if no cache held what the operator
before has written. Both are counted for two small batches; bytes grow in a straight line from there.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import rows
import torch
from gpu import CASES, SMALL, Case, bench_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from offramp.costs import cost
from offramp.data import Batch
from offramp.rules import Standard

# NVIDIA's data sheet, H100 SXM, without sparsity.
PEAK = {"float32": 495e12, "bf16": 989e12}  # operations a second; float32 in TF32
BANDWIDTH = 3.35e12  # bytes a second
LAUNCH = 5e-6  # seconds from Python to the kernel, of one operator: a rule of thumb, no specification


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that compute, and the bytes of what they are given and give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        before, after = (
            [x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs or {}), given)
        )
        memory = {x.untyped_storage().data_ptr() for x in before}
        is_view = not func._schema.is_mutable and all(x.untyped_storage().data_ptr() in memory for x in after)
        if not is_view and "empty" not in func.overloadpacket.__name__:
            self.operators += 1
            self.bytes += sum(x.nbytes for x in (*before, *after))
        return given


def counted(case: Case, precision: str, size: int) -> Counted:
    """A step on so many images."""
    device = torch.device("cpu")
    rule = Standard()
    rule.prepare(bench_of(case, "plain", precision, device, "dynamic"))
    images_BCHW = torch.randn(size, *case.image_shape).to(memory_format=torch.channels_last)
    batch = Batch(images_BCHW, torch.randint(case.num_classes, (size,)), torch.arange(size), size)
    rule.step(batch, 0.0)  # the optimiser's memory is made here
    seen = Counted()
    with seen:
        rule.step(batch, 0.0)
    return seen


def floors(case: Case, precision: str) -> dict[str, Any]:
    """Operators, and milliseconds of a step on a whole batch."""
    small = 2
    one, other = counted(case, precision, small), counted(case, precision, 2 * small)
    an_image = (other.bytes - one.bytes) / small
    moved = one.bytes + an_image * (case.batch - small)
    network = bench_of(case, "plain", precision, torch.device("cpu"), "dynamic").network
    operations = 6 * cost(network).exits[-1].multiply_adds * case.batch  # forward, and two such products backward
    seconds = {
        "arithmetic": operations / PEAK[precision],
        "memory": moved / BANDWIDTH,
        "launches one by one": other.operators * LAUNCH,
    }
    return {
        "batch": case.batch,
        "operators": other.operators,
        "gigabytes": round(moved / 1e9, 2),
        "trillion operations": round(operations / 1e12, 4),
        "milliseconds": {name: round(1000 * s, 2) for name, s in seconds.items()},
        "images a second": {name: round(case.batch / s) for name, s in seconds.items()},
    }


def arithmetic(options: argparse.Namespace) -> dict[str, Any]:
    """See the top of this file."""
    torch.set_num_threads(options.threads)
    cases = SMALL if options.quick else CASES
    details = {f"{name}, {p}": floors(case, p) for name, case in cases.items() for p in PEAK}
    return {"what": "floors of a training step on an H100, from specifications", "rows": [], "details": details}


if __name__ == "__main__":
    rows.main(rows.parser(__doc__, rounds=5, threads=1).parse_args(), arithmetic)
