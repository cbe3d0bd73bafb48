"""Searched thresholds against geometric shares, on networks whose exits cost unevenly and evenly, over seeds.

    python benchmarks/thresholds.py --out DIR [--seeds 3]

Trains small networks of five exits on Fashion-MNIST (18,500 images, 7 epochs; some two minutes each on one core; a
finished one in DIR is used again), finds thresholds on `search` (2,500 images) and prints, for each budget, the test
accuracy gained at equal operations in percentage points, with its 95 % interval over the 10,000 test images.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import offramp
from offramp.evaluation import budgeted, curve, gains, geometric_policies, policy_for, recorded, search_thresholds
from offramp.evaluation.search import FAMILY
from offramp.policy import EVERYBODY, Policy

WIDTHS = {"uneven": (8, 16, 32, 64, 64), "even": (16,) * 5}
BUDGETS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


def unit(before: int, after: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def network(kind: str) -> offramp.EarlyExitNet:
    if kind == "uneven":
        last = nn.Sequential(unit(64, 64), unit(64, 64))
        stages = [unit(1, 8, 2), unit(8, 16), unit(16, 32, 2), unit(32, 64), last]
    else:
        stages = [unit(1, 16, 2), unit(16, 16), unit(16, 16), nn.Sequential(unit(16, 16)), unit(16, 16)]
    exits = [nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * width, 10)) for width in WIDTHS[kind]]
    return offramp.EarlyExitNet(stages, exits)


def compare(kind: str, seed: int, out: Path) -> None:
    torch.manual_seed(seed)
    net = network(kind)
    train, val, test = offramp.data.fashion_mnist(holdout=5000, limit=21000, batch_size=64)
    folder = out / f"{kind}{seed}"
    offramp.fit(
        net, offramp.objectives.CrossEntropy(), train, val, offramp.TrainConfig(epochs=7, seed=seed), out=folder
    )
    net = offramp.load(folder, into=network(kind))
    search, reported = (
        recorded(net, part, folder / "records" / name) for part, name in ((val.search, "s"), (test, "t"))
    )
    cost = offramp.cost(net, test.image_shape)
    whole = cost.exits[-1].operations
    print(f"{kind}, seed {seed}: exits cost {[round(exit.operations / whole, 3) for exit in cost.exits]}")
    published = budgeted(search, reported, cost).points[::6]
    print("  published  " + "  ".join(f"{point.operations / whole:.3f}: {point.accuracy:.2f}" for point in published))
    ends = [Policy((EVERYBODY,) * 5), Policy.to_the_end(5)]
    rivals = [*geometric_policies(search, cost, FAMILY), *ends]
    for caution in (0.0, 1.0):
        found = search_thresholds(search, cost, BUDGETS, caution=caution)
        print(f"  caution {caution:g}")
        for budget, policy, gain in zip(BUDGETS, found, gains(found, rivals, reported, cost), strict=True):
            print(
                f"    {budget:4.2f}  spent {gain.operations / whole:.3f}  {gain.accuracy:.2f}  "
                f"{gain.difference:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]  {policy.found['procedure']}"
            )
    last = curve(ends[1:], reported, cost).points[0].accuracy
    for max_drop in (0, 0.5, 1, 2):
        point = curve([policy_for(search, cost, max_drop=max_drop)], reported, cost).points[0]
        print(f"  max_drop {max_drop}: lost {last - point.accuracy:.2f}, spent {point.operations / whole:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for kind in WIDTHS:
        for seed in range(arguments.seeds):
            compare(kind, seed, arguments.out)


if __name__ == "__main__":
    main()
