"""After how many images the drift guard speaks: the shipped Fashion-MNIST network on real images that change.

Certifies a ladder on the garments that come with offramp, then takes the 10,000 test images of Fashion-MNIST (such as
Debian's package dataset-fashion-mnist): as they are, noisy, blurred, and with some classes more often. For each rung
streams of images that leave early are drawn at random: a quiet time of images as they are, then drift. Prints a table
in Markdown; --out writes JSON as well. Counts, no times: it may run beside anything.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from offramp import load, shipped
from offramp.commands import CertifyOptions, certify_ladder
from offramp.commands.sample import pool
from offramp.data import fashion_mnist
from offramp.data.fashion import CLASS_NAMES, LOOK
from offramp.evaluation import Record
from offramp.evaluation.bounds import FloatArray, IntArray
from offramp.policy import Policy
from offramp.serve.guard import ODDS, Guard, bet, guards, wealth

UPPER = ("T-shirt/top", "Pullover", "Coat", "Shirt")  # which are taken for each other
MOST = 5_000  # images looked at in a stream, after which it counts as not found


@dataclass(frozen=True)
class Drift:
    """What the images become: their pixels in [0, 1], and how often each class is drawn."""

    name: str
    pixels: Callable[[Tensor], Tensor] = torch.clone
    weights: Callable[[Tensor], Tensor] = torch.ones_like


def _noise(strength: float) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda pixels: (pixels + strength * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def _classes(names: tuple[str, ...], times: float) -> Callable[[Tensor], Tensor]:
    wanted = torch.tensor([CLASS_NAMES.index(name) for name in names])
    return lambda targets: 1.0 + (times - 1) * torch.isin(targets, wanted)


DRIFTS = (
    Drift("as they are"),
    Drift("noise, 0.05", _noise(0.05)),
    Drift("noise, 0.1", _noise(0.1)),
    Drift("noise, 0.2", _noise(0.2)),
    Drift("blur, 0.6 pixels", lambda pixels: gaussian_blur(pixels, [7, 7], [0.6, 0.6])),
    Drift("blur, 1 pixel", lambda pixels: gaussian_blur(pixels, [7, 7], [1.0, 1.0])),
    Drift("blur, 2 pixels", lambda pixels: gaussian_blur(pixels, [7, 7], [2.0, 2.0])),
    Drift("tops 5 times as often", weights=_classes(UPPER, 5)),
    Drift("shirts alone", weights=_classes(("Shirt",), 1e9)),
    Drift("other than tops 5 times as often", weights=_classes(tuple(set(CLASS_NAMES) - set(UPPER)), 5)),
)


@dataclass(frozen=True)
class Effect:
    """What a rung does to drifted images, weighted: shares of all, and among those that leave early."""

    leave: float
    differ: float
    regret: float
    accuracy_lost: float


def effect(policy: Policy, seen: Record, weights_S: Tensor) -> Effect:
    """The true shares on these images."""
    choice = policy.choose(seen.logits_KSC, seen.num_classes)
    last_S = policy.log_probs(-1, seen.logits_KSC[-1], seen.num_classes).argmax(-1)
    early_S = choice.exits_S < policy.num_exits - 1
    right_S, full_S = choice.labels_S == seen.targets_S, last_S == seen.targets_S

    def share(mask_S: Tensor) -> float:
        return float((weights_S * mask_S).sum() / weights_S.sum())

    leave = share(early_S)
    differ = share(early_S & (choice.labels_S != last_S)) / leave
    return Effect(leave, differ, share(full_S & ~right_S), share(full_S) - share(right_S))


def delays(guard: Guard, quiet: float, drifted: float, options: argparse.Namespace) -> tuple[IntArray, int]:
    """Images looked at from the drift to the alarm, of each stream in which it came after it (MOST: never came).

    Also the number of streams with an alarm before. Images drawn with replacement differ or not, independently.
    """
    rng = np.random.default_rng(options.seed)
    bets_TB: FloatArray = np.zeros((options.streams, len(ODDS)))
    found_T = np.full(options.streams, options.quiet + MOST)
    for before in range(options.quiet + MOST):
        differs_T = rng.random(options.streams) < (quiet if before < options.quiet else drifted)
        bets_TB = bet(bets_TB, differs_T, before, guard.allowed)
        is_new_T = (found_T > before) & (wealth(bets_TB, before + 1) >= 1 / guard.level)
        found_T[is_new_T] = before + 1
        if (found_T <= before + 1).all():
            break
    after_T = found_T[found_T > options.quiet] - options.quiet
    return after_T, int((found_T <= options.quiet).sum())


HEAD = """| images | rung | leave early | differ (may) | regret | accuracy lost | images looked at until the alarm |
|---|---|---|---|---|---|---|"""


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    until = "-"
    if "quartiles" in row:
        low, middle, high = (f"{count:,}" if count < MOST else "more" for count in row["quartiles"])
        late = f"; {row['never'] / row['streams']:.0%} not within {MOST:,}" if row["never"] else ""
        until = f"{middle} ({low} to {high}){late}" if row["quartiles"][1] < MOST else late.removeprefix("; ")
    shares = f"{row['leave']:.0%} | {row['differ']:.2%} ({row['limit']:.2%}) | {row['regret']:.2%}"
    return f"| {row['drift']} | {row['rung']} | {shares} | {100 * row['accuracy_lost']:+.2f} | {until} |"


def delays_of_all(options: argparse.Namespace) -> dict[str, Any]:
    """All rungs and drifts."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "clothes")
        shipped.copy("fashion-mnist", run)
        ladder = certify_ladder(CertifyOptions(run, ladder=options.ladder)).ladder
        network = load(run)
    mean, deviation = LOOK.mean[0], LOOK.std[0]
    test = fashion_mnist(options.root).test
    images_SCHW, positions_S = pool(test, options.images)
    targets_S = test.labels_S[positions_S]
    rows: list[dict[str, Any]] = []
    print(HEAD)
    records: dict[object, Record] = {}
    for drift in DRIFTS:
        if drift.pixels not in records:
            drifted_SCHW = (drift.pixels((images_SCHW * deviation + mean).clamp(0, 1)) - mean) / deviation
            with torch.inference_mode():
                logits_KSC = torch.cat([network(part) for part in torch.split(drifted_SCHW, 64)], 1)
            records[drift.pixels] = Record.of(logits_KSC, targets_S, network)
        seen = records[drift.pixels]
        for n, (policy, guard) in enumerate(zip(ladder.rungs, guards(ladder.rungs, options.level), strict=True), 1):
            assert guard is not None  # every rung of a ladder that was certified now has its limit
            found = effect(policy, seen, drift.weights(targets_S))
            if drift is DRIFTS[0]:
                rows.append({"rung": n, "drift": drift.name, "limit": guard.allowed, **vars(found)})
                print(line(rows[-1]), flush=True)
                continue
            quiet = next(row["differ"] for row in rows if row["rung"] == n)
            after_T, before = delays(guard, quiet, found.differ, options)
            quartiles = np.quantile(after_T, [0.25, 0.5, 0.75]).round().astype(int).tolist()
            late = int((after_T >= MOST).sum())
            more = {"quartiles": quartiles, "never": late, "false": before, "streams": options.streams}
            rows.append({"rung": n, "drift": drift.name, "limit": guard.allowed, **vars(found), **more})
            print(line(rows[-1]), flush=True)
    return {"what": "delay of the drift guard", "options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}


def main() -> None:
    """See the module."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ladder", default="0.5,1,2,5", help="risks in percent (default 0.5,1,2,5)")
    made.add_argument("--level", type=float, default=0.01, help="of false alarms, all rungs together (default 0.01)")
    made.add_argument("--quiet", type=int, default=2000, help="images looked at before the drift (default 2,000)")
    made.add_argument("--streams", type=int, default=1000, help="streams of each kind (default 1,000)")
    made.add_argument("--images", type=int, default=10_000, help="test images (default all 10,000)")
    made.add_argument("--seed", type=int, default=0, help="of the streams (default 0)")
    made.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    made.add_argument("--root", help="folder of Fashion-MNIST, if it is not Debian's")
    made.add_argument("--out", type=Path, help="where JSON goes as well")
    options = made.parse_args()
    found = delays_of_all(options)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
