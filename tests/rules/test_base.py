from pathlib import Path

import pytest
import torch
from torch import nn

from offramp.data import Batch
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.rules import Standard, Workbench
from offramp.storage import load_tensors


def bench_of(optimizer: str = "sgd") -> Workbench:
    network = EarlyExitNet([nn.Linear(4, 4), nn.Linear(4, 4)], [nn.Linear(4, 3), nn.Linear(4, 3)])
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    return Workbench(
        network=network,
        forward=network,
        objective=CrossEntropy(),
        optimizer=make(network.parameters(), lr=0.1, weight_decay=0.1, fused=True),
    )


def step(bench: Workbench, images: torch.Tensor) -> None:
    rule = Standard()
    rule.prepare(bench)
    rule.step(Batch(images, torch.zeros(len(images), dtype=torch.long), torch.arange(len(images)), len(images)), 0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_the_weights(optimizer: str, poison: float) -> None:
    bench = bench_of(optimizer)
    step(bench, torch.randn(5, 4))
    assert not bench.broken
    before = {name: value.clone() for name, value in bench.network.state_dict().items()}
    step(bench, torch.tensor([[1.0, poison, 0.0, 0.0]]))
    assert bench.broken
    step(bench, torch.randn(5, 4))  # the gate stays shut: what is read a step late finds the weights as they were
    assert all(torch.equal(value, before[name]) for name, value in bench.network.state_dict().items())


@pytest.mark.parametrize("first", ["network", "own"])
def test_all_optimisers_of_a_bench_stop_at_one_gate(first: str) -> None:
    """Whichever met what is not finite: nothing reaches the network's weights, or a rule's own, from then on."""
    bench = bench_of()
    own = nn.Parameter(torch.ones(3))
    adam = torch.optim.Adam([own], lr=0.1, fused=True)

    def update(of: str, gradient: float) -> None:
        for parameter in bench.parameters if of == "network" else [own]:
            parameter.grad = torch.full_like(parameter, gradient)
        bench.update(torch.tensor(1.0), adam if of == "own" else None)

    update("own", 1.0)
    torch.testing.assert_close(own.detach(), torch.full((3,), 0.9))
    update(first, float("inf"))
    before = [weight.detach().clone() for weight in (own, *bench.parameters)]
    for of in ("own", "network"):
        update(of, 1.0)
    assert bench.broken
    assert all(torch.equal(weight, kept) for weight, kept in zip((own, *bench.parameters), before, strict=True))


def test_an_optimiser_that_would_step_through_the_gate_is_refused() -> None:
    bench, own = bench_of(), nn.Parameter(torch.ones(3))
    own.grad = torch.ones(3)
    with pytest.raises(UsageError, match="Adam cannot skip a step on the device; make it with fused=True"):
        bench.update(torch.tensor(1.0), torch.optim.Adam([own]))
    assert own.eq(1).all()


def test_a_step_moves_the_weights_against_the_gradient() -> None:
    bench = bench_of()
    images = torch.randn(6, 4)
    weights = {name: p.detach().clone() for name, p in bench.network.named_parameters()}
    bench.objective(bench.network(images), torch.zeros(6, dtype=torch.long)).backward()
    wanted = {
        name: weights[name] - 0.1 * (p.grad + 0.1 * weights[name]) for name, p in bench.network.named_parameters()
    }
    step(bench, images)
    for name, parameter in bench.network.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name])


RULES = ["standard", "dfs head=rest", "gradient-equilibrium", "pcgrad", "cagrad", "cgt gate=hard", "cgt"]
FIRST = "stages.0.parts.0.scales.0.conv.weight"


@pytest.mark.parametrize(
    ("objective", "layout"),
    [
        ("dynamic over=batch", "channels_last"),
        pytest.param("cross-entropy", "contiguous_format", marks=pytest.mark.slow),
    ],
)
def test_two_processes_take_the_steps_of_one(tmp_path: Path, objective: str, layout: str, together) -> None:
    """Unequal and empty shares, batch-wide statistics, an exit without gradient (which must not hang), both layouts."""
    for number in (1, 2):
        together(number, Path(__file__).with_name("some_steps.py"), tmp_path / str(number), objective, layout, *RULES)
    one, two = ({rule: load_tensors(tmp_path / number / rule)[0] for rule in RULES} for number in "12")
    for rule in RULES:
        assert rule == RULES[0] or not torch.equal(one[rule][FIRST], one[RULES[0]][FIRST])
        torch.testing.assert_close(two[rule], one[rule], rtol=1e-10, atol=1e-12)
