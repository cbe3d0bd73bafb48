"""Contenders of a verdict made ready and timed, on a tiny network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp import data
from offramp.backbones.prefix import shortened
from offramp.costs import cost
from offramp.engine import Engine, Form
from offramp.evaluation import record
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.reports.verdict_timing import Early, Single, feeds_of, timed
from offramp.runs import load


@pytest.fixture
def network(make_run: Callable[..., Path]) -> EarlyExitNet:
    return load(make_run())


def cut(network: EarlyExitNet, exit: int) -> Single:
    return Single(f"the network cut at exit {exit}", "cut", exit, [shortened(network, exit)], [], [])


def test_a_network_that_does_not_say_its_images_is_counted_for_those_of_the_test_set(
    network: EarlyExitNet, tiny_parts: data.Parts
) -> None:
    costs, network.image_shape = cost(network), None
    test = record(network, tiny_parts.test)
    feeds = feeds_of(tiny_parts.test, 2, 4, 5)
    short = shortened(network, 2)
    alone = record(short, tiny_parts.test)
    single = Single("cut", "cut", 2, [short], [alone], [alone])
    ways = [(single, single.fastest(feeds[0], [Form()], Engine(network, NOBODIES).program.device))]
    (engine, smaller), wrong = timed([Early("e", Engine(network, NOBODIES))], ways, feeds, 5, test, test)
    assert engine.operations == costs.path[-1].operations
    assert smaller.operations == costs.path[1].operations
    assert wrong == 0


NOBODIES = Policy((NOBODY, NOBODY, EVERYBODY))
