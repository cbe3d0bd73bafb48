"""What several commands are asked."""

import pytest
import torch

from offramp.cli import COMMANDS, main
from offramp.commands.options import Computes
from offramp.network import EarlyExitNet

COMPUTING = ["audit", "bench", "certify", "compare", "cost", "evaluate", "export", "layers", "policy", "predict"]


@pytest.mark.parametrize("command", [*COMPUTING, "verdict", "xray"])
def test_every_command_that_computes_takes_threads(command) -> None:
    assert issubclass(COMMANDS[command], Computes)


@pytest.mark.parametrize("words", [["evaluate"], ["policy", "--max-drop", "5"], ["certify", "--risk", "0.2"]])
def test_so_many_threads_compute_and_afterwards_as_before(words, make_trained, monkeypatch) -> None:
    command, *more = words
    threads, stage = [], EarlyExitNet.run_stage

    def watched(*arguments):
        threads.append(torch.get_num_threads())
        return stage(*arguments)

    monkeypatch.setattr(EarlyExitNet, "run_stage", watched)
    assert main([command, make_trained(), *more, "--threads", "3"]) == 0
    assert set(threads) == {3}
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", ["0", "-1", "99999999"])
def test_numbers_of_threads_that_cannot_be(threads, capsys) -> None:
    assert main(["evaluate", "nowhere", "--threads", threads]) == 2
    assert "threads must be" in capsys.readouterr().err
