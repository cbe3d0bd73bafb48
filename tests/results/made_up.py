"""What `offramp bench` and `offramp verdict` might have measured, made up."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from offramp.policy import EVERYBODY, Policy
from offramp.results.bench import Account, Accuracy, Bench, Conditions, CutAccuracy, CutSpeed, Mode, Speed, TestImages
from offramp.results.verdict.comparison import at_equal_time, frontier
from offramp.results.verdict.conclusion import conclude
from offramp.results.verdict.values import Contender, JudgedComparison, Verdict, VerdictImages
from offramp.runtime import Agreement, Form, Plan, Tuning
from offramp.runtime.choice import TimeTable
from offramp.runtime.timing import conditions
from offramp.runtime.tuning import Speedup, Trial, described

THREE = Policy((0.9, 0.9, EVERYBODY))
POLICY = Accuracy(90.0, 0.1, -0.1, 0.3)
CONDITIONS = Conditions("a box", 2, 2, 16384, 0.25, "2.0", None, None, "3.11")


def tuning(policy: Policy, weights: str) -> Tuning:
    """Of this machine, for batches of 1 and streams."""
    two = ((1.0, 2.0), (1.0, 2.0))
    return Tuning(
        form=Form(),
        plans={1: Plan()},
        stream=Plan(),
        gains={"1": Speedup(1.5, 1.2), "stream": Speedup(1.0, None)},
        chunks={"1": None, "stream": 64},
        exit_ms={"1": (1.0, 2.0), "stream": (1.0, 2.0)},
        table=TimeTable((1, 2), (0.0, 0.0), two, two, two, (0.0, 0.0), (0.0, 0.0), (1, 1)),
        forms=(Trial(Form(), True, 0, 0, {"1": 1.0}),),
        conditions=conditions(torch.device("cpu")),
        weights=weights,
        policy=described(policy),
    )


def mode(name: str, exit_ms: Sequence[float] = (0.4, 1.5, 1.9), **changes: Any) -> Mode:
    """Three times as fast as straight on, promised four; `exit_ms` are those of the engine and of the cut network."""
    made_up: dict[str, Any] = {
        "images": 256,
        "asks": (1, len(exit_ms)),
        "accuracy": POLICY,
        "operations": 100.0,
        "promised": 4.0,
        "engine": Speed(0.5, 3.0, 2.8, 3.4),
        "exits": (*[CutSpeed(ms, 2.0, 1.0, 9.0, chunk=32) for ms in exit_ms[:-1]], CutSpeed(1.5, 1.0, 1.0, 1.0)),
        "straight_form": "folded",
        "account": Account(0.75, -0.05, 0.1, 0.2, 0.08),
        "agreement": Agreement(256, 1, 0, 1e-4),
    }
    return Mode(name, exit_ms=tuple(exit_ms), **{**made_up, **changes})


def bench(policy: Policy = THREE, weights: str = "0" * 64, *modes: Mode, **changes: Any) -> Bench:
    """Of a network with as many exits as the policy."""
    exits = range(policy.num_exits)
    made_up: dict[str, Any] = {
        "conditions": CONDITIONS,
        "data": TestImages("made-up/test", "1" * 64, 1000),
        "tuned_on": "made-up/search",
        "policy_file": "run/policy.json",
        "accuracy": POLICY,
        "operations": 100.0,
        "asks": (1, policy.num_exits),
        "exits": tuple(CutAccuracy(80.0 + 5 * k, 10.0 - 5 * k, 8.0, 12.0, operations=100 * (k + 1)) for k in exits),
        "agreement": Agreement(1000, 3, 0, 1e-4),
        "tuning": tuning(policy, weights),
    }
    of = modes or (mode("1", [1.0 + k for k in exits]), mode("stream", [1.0 + k for k in exits]))
    return Bench(weights, policy=policy, modes={one.name: one for one in of}, **{**made_up, **changes})


def _contenders(answer: str) -> Iterator[Contender]:
    numbers = torch.Generator().manual_seed(0)

    def one(name: str, kind: Any, exit: int | None, top1: float, ms: float, **more: Any) -> Contender:
        right_S = (torch.rand(3000, generator=numbers) < top1 / 100).double()
        return Contender(name, kind, exit, right_S, right_S, [ms * (1 + r / 100) for r in range(7)], 1e6 * ms, **more)

    for exit, top1 in ((1, 80), (2, 85)):
        yield one(f"the network cut at exit {exit}", "cut", exit, top1, exit)
        yield one(f"exit {exit} trained alone", "alone", exit, top1 + 0.5, exit)
    yield one("early exits, given", "engine", None, {"yes": 90, "no": 75, "open": 83.2}[answer], 1.5)
    yield one("early exits for the time of exit 2", "engine", None, 85, 2.0, straight=True)


def verdict(answer: str = "yes") -> Verdict:
    """With this answer."""
    contenders = tuple(_contenders(answer))
    engines, rivals = contenders[4:], contenders[:4]
    comparisons = at_equal_time(engines, rivals)
    return Verdict(
        **vars(conclude(comparisons, rivals, 3000)),
        weights="",
        least_gain=0.0,
        batch_size=32,
        comparisons=tuple(JudgedComparison(**vars(each), answer=each.answer_for(0.0)) for each in comparisons),
        contenders=tuple(one.figures() for one in contenders),
        frontier=tuple(one.name for one in frontier(rivals)),
        missing=(),
        data=VerdictImages("made/up", "", 3000, 3000, 64),
        conditions=CONDITIONS,
        form="folded",
        trained=("So they were trained.",),
        wrong=2,
    )
