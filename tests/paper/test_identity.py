import dataclasses
import shlex

import pytest

from offramp.cli import parse
from offramp.commands.train import TrainOptions
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.paper import experiments
from offramp.paper.identity import command, in_form, run_hash, run_name
from offramp.paper.scales import PAPER, POCKET

RUN = Run(
    data=DataConfig(source=Spec("fashion-mnist", {"limit": 70}), holdout=0),
    objective=Spec("dynamic", {"strength": 0.01, "normalisation": "tanh"}),
    network=Spec("msdnet", {"growth_factors": [1, 2], "last_only": True}),
    training=TrainConfig(epochs=3, seed=4, deterministic=False, milestones=(0.2, 0.4), schedule="multistep"),
)


def test_a_name_says_data_network_method_and_seed() -> None:
    assert run_name(RUN) == f"fashion-mnist-msdnet-last-dynamic-0.01-seed4-{run_hash(RUN)}"


def test_the_hash_is_of_what_is_computed() -> None:
    moved = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, root="elsewhere", workers=3))
    assert run_hash(moved) == run_hash(RUN)
    assert run_name(in_form(RUN, "compiled")) == run_name(RUN)
    other = dataclasses.replace(RUN, training=dataclasses.replace(RUN.training, lr=0.2))
    assert run_hash(other) != run_hash(RUN)


def test_a_field_that_is_new_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests that were committed stay what they are when offramp learns something new."""
    before = run_hash(RUN)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(TrainConfig):
        sharpness: float = 0.0

    later = Later(**vars(RUN.training))
    monkeypatch.setattr("offramp.paper.identity.Run", lambda: dataclasses.replace(Run(), training=Later()))
    assert run_hash(dataclasses.replace(RUN, training=later)) == before


def trained_by(line: str) -> Run:
    """The configuration that `offramp train` would train."""
    options = parse(shlex.split(line)[1:])
    assert isinstance(options, TrainOptions)
    return options.run


def test_the_command_trains_the_run() -> None:
    assert trained_by(command(RUN, "x")) == RUN
    assert trained_by(command(in_form(RUN, "compiled"), "x")) == in_form(RUN, "compiled")


@pytest.mark.parametrize("scale", [PAPER, pytest.param(POCKET, marks=pytest.mark.slow)], ids=lambda scale: scale.name)
def test_the_command_of_every_run(scale) -> None:
    rows = {run_hash(row.run): row for experiment in experiments(["all"], scale) for row in experiment.rows}
    for row in rows.values():
        assert trained_by(command(row.with_seed(3), "x")) == row.with_seed(3)
