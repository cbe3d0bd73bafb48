"""Contenders of a verdict made ready and timed, on a tiny network."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp import data
from offramp.backbones.prefix import shortened
from offramp.commands.bench import timing as bench_timing
from offramp.commands.verdict.timing import Single, feeds_of, left_out, timed
from offramp.costs import cost
from offramp.errors import UsageError
from offramp.evaluation import record
from offramp.files import load
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.runtime import Engine, Form, Program
from offramp.runtime.backends import make_program
from offramp.runtime.tuning import Trial

runner = importlib.import_module("offramp.runtime.runner")
CPU = torch.device("cpu")
FORMS = [Form(), Form(precision="bf16")]
NOBODIES = Policy((NOBODY, NOBODY, EVERYBODY))


@pytest.fixture
def network(make_run: Callable[..., Path]) -> EarlyExitNet:
    return load(make_run())


def test_a_network_that_does_not_say_its_images_is_counted_for_those_of_the_test_set(
    network: EarlyExitNet, tiny_parts: data.Parts
) -> None:
    costs, network.image_shape = cost(network), None
    test = record(network, tiny_parts.test)
    feeds = feeds_of(tiny_parts.test, 2, 4, 5)
    short = shortened(network, 2)
    alone = record(short, tiny_parts.test)
    single = Single("cut", "cut", 2, [short], [alone], [alone])
    ways = [(single, single.fastest(feeds[0], [Form()], CPU).straight)]
    (engine, smaller), wrong = timed({"e": Engine(network, NOBODIES)}, ways, feeds, 5, test, test)
    assert engine.operations == costs.path[-1].operations
    assert smaller.operations == costs.path[1].operations
    assert wrong == 0


@pytest.mark.parametrize(("refused", "runs_in"), [(FORMS[:1], FORMS[1:]), (FORMS[1:], FORMS[:1])], ids=str)
@pytest.mark.parametrize("at_first_call", [False, True])
def test_a_form_that_a_smaller_network_cannot_be_run_in_is_left_out(
    refused: list[Form],
    runs_in: list[Form],
    at_first_call: bool,
    network: EarlyExitNet,
    tiny_parts: data.Parts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it is refused when it is made or when it is first run; others are run in it all the same."""

    def refuse(*_: Any) -> None:
        raise UsageError("There is no such operator.\nMore of it.")

    def made(network: EarlyExitNet, form: Form, device: torch.device | None = None) -> Program:
        if form in refused and not at_first_call:
            refuse()
        ready = make_program(network, form, device)
        if form in refused:
            monkeypatch.setattr(ready, "straight", refuse)
            monkeypatch.setattr(ready, "segment", refuse)
        return ready

    for module in (runner, bench_timing):
        monkeypatch.setattr(module, "make_program", made)
    single = Single("the network cut at exit 1", "cut", 1, [shortened(network, 1)], [], [])
    other = dataclasses.replace(single, name="exit 1 trained alone")
    feed = feeds_of(tiny_parts.test, 2, 4, 1)[0]
    way = single.fastest(feed, FORMS, CPU)
    assert way.straight.program.form in runs_in
    assert set(way.refused) == set(refused)
    said = left_out([], [(single, way), (other, way)])
    assert said == tuple(
        f"Not run in the form {form}, although the engine's network can be: the network cut at exit 1, exit 1 trained "
        "alone (There is no such operator)."
        for form in refused
    )


def test_forms_that_nothing_is_run_in_are_named() -> None:
    trials = [
        Trial(FORMS[0], True, 0, 0, {"1": 1.0}),
        Trial(FORMS[1], False, 2, 3, {}),
        Trial(Form("onnxruntime"), False, 0, 0, {}, reason="It is not installed.\nMore of it."),
    ]
    assert left_out(trials, []) == (
        "Nothing was run in the form torch, bf16: of the engine's answers 3 were wrong and 2 flipped.",
        "Nothing was run in the form onnxruntime, float32: It is not installed.",
    )
