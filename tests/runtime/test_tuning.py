"""A tuning as a value: kept, adopted, refused."""

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Measure, Policy
from offramp.runtime import Engine, Form, Tuning
from offramp.runtime.timing import kernels_kept


@pytest.fixture(scope="module")
def tuned() -> tuple[Engine, Tuning]:
    """An engine and how it was tuned."""
    torch.manual_seed(0)
    net = EarlyExitNet([nn.Flatten(), nn.ReLU(), nn.ReLU()], [nn.Linear(16, 5) for _ in range(3)]).eval()
    engine = Engine(net, Policy((0.4, 0.4, EVERYBODY)))
    return engine, engine.tune(torch.randn(32, 1, 4, 4), batch_sizes=(1, 8), forms=[Form()], seconds=0.05)


def test_a_tuning_is_kept_and_adopted(tuned) -> None:
    first, found = tuned
    second = Engine(first.network, first.policy)
    again = Tuning.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert second.adopt(again) == ()
    assert second.plans == first.plans
    assert second.program.form == first.program.form
    assert second.stream_plan == first.stream_plan
    assert [second.straight(n).chunk for n in (1, 8)] == [first.straight(n).chunk for n in (1, 8)]
    elsewhere = dataclasses.replace(
        found, conditions={**found.conditions, "threads": 64, "torch": "1.0", "kernels_kept": 9}
    )
    threads = torch.get_num_threads()
    assert second.adopt(elsewhere) == (
        f"threads: tuned for 64, here {threads}",
        f"torch: tuned for 1.0, here {torch.__version__}",
        f"kernels_kept: tuned for 9, here {kernels_kept(torch.device('cpu'))}",
    )


def test_a_tuning_for_something_else_is_refused(tuned) -> None:
    first, found = tuned
    net, given = copy.deepcopy(first.network), first.policy
    with torch.no_grad():
        net.exits[0].bias += 1
    engine = Engine(net, given)
    form = engine.program
    with pytest.raises(UsageError, match="is for the network with weights"):
        engine.adopt(found)
    assert engine.program is form
    for changed, what in (
        (dataclasses.replace(given, thresholds=(0.9, 0.9, EVERYBODY)), "thresholds"),
        (dataclasses.replace(given, measure=Measure("margin")), "measure"),
        (dataclasses.replace(given, found={"certificate": {}}), "certified"),
    ):
        with pytest.raises(UsageError, match=f"another policy: {what} differ"):
            Engine(first.network, changed).adopt(found)


@pytest.mark.parametrize("content", [{}, [], {"format": 1}, {"form": {"folded": 1}}, None], ids=str)
def test_what_is_no_tuning_is_refused(content) -> None:
    with pytest.raises(UsageError, match="not a tuning"):
        Tuning.from_json(content)


@pytest.mark.parametrize("change", [{"plans": {}}, {"plans": {"0": {}}}, {"chunks": {}}], ids=str)
def test_a_tuning_without_what_an_engine_needs_is_refused(change, tuned) -> None:
    content = tuned[1].to_json()
    with pytest.raises(UsageError, match="not a tuning"):
        Tuning.from_json({**content, **change})


def test_a_newer_tuning_is_refused() -> None:
    with pytest.raises(UsageError, match="newer offramp"):
        Tuning.from_json({"format": 3})


def test_a_tuning_of_an_older_make_is_refused(tuned) -> None:
    """Format 1 had forms of torch by layout, folding and packing."""
    _, found = tuned
    content = json.loads(json.dumps(found.to_json()))
    content["form"] = {"fold": True, "channels_last": True, "bf16": False, "compiled": False, "packed": True}
    with pytest.raises(UsageError, match="Tune the engine anew"):
        Tuning.from_json({**content, "format": 1})
