"""Statistics over the batch are over the global batch: two processes' shares against one process.

The file is also what each of the two processes runs: `python test_shares.py OUT`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offramp import processes
from offramp.config import Spec
from offramp.objectives import build

BATCHES = (8, 5, 1)  # equal shares, unequal ones, one of them empty
SPECS = [
    Spec("power-sqrt", {"root": "batch"}),
    Spec("power-sqrt", {"root": "batch", "weighting": {"over": "batch", "applied_to": "root"}}),
    *(Spec("dynamic", {"over": "batch", "normalisation": name}) for name in ("max", "min-max", "tanh")),
    Spec("dynamic", {"over": "batch", "normalisation": "centre-clipped"}),
    Spec("discard-threshold", {"threshold": 0.4, "mean": "kept"}),
]


def _loss_and_gradient(spec: Spec, size: int) -> tuple[Tensor, Tensor]:
    """This process's share of the global mean, and its gradient for the logits of this process's images."""
    torch.manual_seed(size)
    logits_KBC, targets_B = 3 * torch.randn(3, size, 5, dtype=torch.float64), torch.randint(4, (size,))
    share = processes.share_of(size)
    leaf = logits_KBC[:, share].clone().requires_grad_()
    loss = build(spec).terms(leaf, targets_B[share]).loss_KB.sum() / size
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def _everything() -> Iterator[tuple[Tensor, Tensor]]:
    return (_loss_and_gradient(spec, size) for spec in SPECS for size in BATCHES)


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory, together) -> list[list]:
    """What each of two processes found, for every objective and batch."""
    folder = tmp_path_factory.mktemp("processes")
    together(2, Path(__file__), folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_find_the_loss_and_the_gradient_of_one(shares: list[list]):
    whole = list(_everything())
    assert len(shares[0]) == len(shares[1]) == len(whole) == 21
    for (loss, gradient_KBC), *parts in zip(whole, *shares, strict=True):
        assert sum(part_loss for part_loss, _ in parts) == pytest.approx(loss.item(), rel=1e-12)
        joined = [[row for _, part in parts for row in part[k]] for k in range(3)]
        torch.testing.assert_close(torch.tensor(joined, dtype=torch.float64), gradient_KBC, rtol=1e-11, atol=1e-15)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.together("gloo"):
        found = [(loss.item(), gradient.tolist()) for loss, gradient in _everything()]
        Path(sys.argv[1], f"{processes.rank()}.json").write_text(json.dumps(found))
