"""Sums and shares over processes. The file is also what each process runs: `python test_processes.py OUT`."""

import json
import sys
from pathlib import Path

import pytest
import torch

from offramp import processes
from offramp.errors import UsageError

TWO = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def test_alone_nothing_happens():
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (processes.active(), processes.rank(), processes.world_size()) == (False, 0, 1)
    assert processes.sum_over_all(values) is values
    assert processes.max_over_all(values) is values
    assert processes.share_of(7) == slice(0, 7)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("num_items", [0, 1, 2, 6, 64, 65])
def test_shares_are_contiguous_cover_everything_once_and_differ_by_one_at_most(
    num_items: int, world: int, monkeypatch: pytest.MonkeyPatch
):
    shares = []
    for rank in range(world):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "world_size", lambda: world)
        shares.append(list(range(num_items))[processes.share_of(num_items)])
    assert [item for share in shares for item in share] == list(range(num_items))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, together) -> list[dict]:
    """What each of two real processes saw."""
    folder = tmp_path_factory.mktemp("processes")
    together(2, Path(__file__), folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_together_each_process_knows_its_number_and_its_share(reports: list[dict]):
    assert [report["who"] for report in reports] == [[True, 0, 2], [True, 1, 2]]
    assert [report["share"] for report in reports] == [[0, 2], [2, 5]]


def test_together_sums_and_maxima_are_the_same_everywhere(reports: list[dict]):
    assert [report["sum"] for report in reports] == [[3.0, -3.0]] * 2
    assert [report["max"] for report in reports] == [[2.0, -1.0]] * 2


def test_the_tensor_given_stays_as_it_is_and_no_gradient_flows_back(reports: list[dict]):
    assert [report["given"] for report in reports] == [[1.0, -1.0], [2.0, -2.0]]
    assert [report["requires_grad"] for report in reports] == [[False, False]] * 2


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE must be a whole number of at least 1, not 'x'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE must be"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be"),
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT not set"),
        (
            {**TWO, "RANK": "x"},
            "RANK must be a whole number",
        ),
        (
            {**TWO, "RANK": "2"},
            "RANK is 2, and WORLD_SIZE 2",
        ),
        ({**TWO, "MASTER_PORT": "y"}, "MASTER_PORT must be"),
    ],
)
def test_an_environment_that_is_none_of_torchruns_is_named(variables, words, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words), processes.together("gloo"):
        pass


def main(folder: Path) -> None:
    values = torch.tensor([1.0, -1.0]).mul(processes.rank() + 1).requires_grad_()
    total, largest = processes.sum_over_all(values), processes.max_over_all(values)
    share = processes.share_of(5)
    report = {
        "who": [processes.active(), processes.rank(), processes.world_size()],
        "share": [share.start, share.stop],
        "sum": total.tolist(),
        "max": largest.tolist(),
        "given": values.tolist(),
        "requires_grad": [total.requires_grad, largest.requires_grad],
    }
    (folder / f"{processes.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    with processes.together("gloo"):
        main(Path(sys.argv[1]))
