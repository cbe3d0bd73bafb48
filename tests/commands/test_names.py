"""`offramp names`."""

import pytest

from offramp import registry
from offramp.backbones import PRESETS
from offramp.cli import main
from offramp.commands.names import arguments
from offramp.objectives import LabelSmoothing


def test_every_name_is_listed_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["names"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()}
    for names in (registry.DATA, registry.BACKBONES, PRESETS, registry.OBJECTIVES, registry.RULES):
        assert set(names) <= listed
    assert arguments(LabelSmoothing) == "smoothing=0.1"
