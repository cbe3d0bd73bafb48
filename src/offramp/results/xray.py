"""What the gradients of a run did, from the record that its training left.

E epochs, K exits, W watched images.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.evaluation.error_detection import ErrorDetection
from offramp.files import RunConfig, RunFolder
from offramp.files.xray import Xray

SHOWN = 10  # images a row


@dataclass(frozen=True)
class Watched:
    """A training image to look at.

    Attributes:
        index: Its position in the official training set.
        learned: Epoch from which on each exit was right about it; 0 for never.
    """

    index: int
    target: int
    learned: tuple[int, ...]


@dataclass(frozen=True)
class ExitXray:
    """One exit in the last epoch.

    Attributes:
        shares: Of images whose gradient is needed, damped, reversed; they add up to 1.
        true: Mean of F[y].
        gamma: Its median, as `weight` is the mean of w; None where the objective has none.
        learned: Share of images it is right about.
        learned_by: Median epoch from which on it was right about these; None where there are none.
    """

    shares: tuple[float, ...]
    true: float
    gamma: float | None
    weight: float | None
    learned: float
    learned_by: int | None


@dataclass(frozen=True)
class XrayReport:
    """What the record says.

    Attributes:
        exits: Every exit in the last epoch.
        shallow_first: Images that the exits of the first half learned earlier than those of the second, largest
            difference of the mean epochs first; never counts as one after the last.
        deep_first: The other way round.
        last: Images that all exits together learned last, or never.
        error_detection: The damping value against the answers on test; None where that cannot be said.
        no_error_detection: Why not; None where it can.
        written: The page, if matplotlib is installed.
    """

    run: RunFolder
    config: RunConfig
    record: Xray
    exits: tuple[ExitXray, ...]
    shallow_first: tuple[Watched, ...]
    deep_first: tuple[Watched, ...]
    last: tuple[Watched, ...]
    error_detection: tuple[ErrorDetection, ...] | None
    no_error_detection: str | None
    written: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls,
        record: Xray,
        run: RunFolder,
        config: RunConfig,
        error_detection: tuple[ErrorDetection, ...] | None,
        no_error_detection: str | None,
    ) -> "XrayReport":
        """What a record says."""
        shallow_first, deep_first, last = _picked(record)
        return cls(
            run=run,
            config=config,
            record=record,
            exits=_exits(record),
            shallow_first=shallow_first,
            deep_first=deep_first,
            last=last,
            error_detection=error_detection,
            no_error_detection=no_error_detection,
        )

    @property
    def epoch(self) -> int:
        """The last one recorded."""
        return int(self.record.epochs_E[-1])

    def to_json(self) -> dict[str, Any]:
        """For scripts: each exit over time and at the end."""
        shares_3EK = self.record.shares()
        return {
            "images": len(self.record.indices_W),
            "split": self.record.split,
            "epochs": self.record.epochs_E.tolist(),
            "shares": {name: shares_EK.tolist() for name, shares_EK in zip(Xray.STATES, shares_3EK, strict=True)},
            "exits": [dataclasses.asdict(exit) for exit in self.exits],
            "telling": self.error_detection and [dataclasses.asdict(exit) for exit in self.error_detection],
            "no_telling": self.no_error_detection,
        }


def _exits(record: Xray) -> tuple[ExitXray, ...]:
    shares_3K, learned_KW = record.shares()[:, -1], record.learned()
    true_KW, gamma_EKW, weight_EKW = record.certainty()[-1], record.gamma_EKW, record.weight_EKW
    exits = []
    for k, learned_W in enumerate(learned_KW):
        known = learned_W[learned_W > 0]
        exits.append(
            ExitXray(
                shares=tuple(shares_3K[:, k].tolist()),
                true=true_KW[k].mean().item(),
                gamma=None if gamma_EKW is None else gamma_EKW[-1, k].float().quantile(0.5).item(),
                weight=None if weight_EKW is None else weight_EKW[-1, k].float().mean().item(),
                learned=len(known) / len(learned_W),
                learned_by=int(known.median()) if len(known) else None,
            )
        )
    return tuple(exits)


def _picked(record: Xray) -> tuple[tuple[Watched, ...], ...]:
    """Images that shallow exits learned long before deep ones, those of the other kind, and the last ones."""
    learned_KW, half = record.learned(), record.num_exits // 2
    epoch_KW = learned_KW.double().masked_fill(learned_KW == 0, float(record.epochs_E[-1]) + 1)
    if not half:
        return (), (), _largest(record, epoch_KW[0])
    lead_W = epoch_KW[-half:].mean(0) - epoch_KW[:half].mean(0)
    return _largest(record, lead_W), _largest(record, -lead_W), _largest(record, epoch_KW.mean(0))


def _largest(record: Xray, values_W: Tensor) -> tuple[Watched, ...]:
    """The images with the largest values above 0; of equal ones those that come first."""
    order = values_W.argsort(descending=True, stable=True)[:SHOWN]
    learned_WK = record.learned().T
    return tuple(
        Watched(int(record.indices_W[w]), int(record.targets_W[w]), tuple(learned_WK[w].tolist()))
        for w in order.tolist()
        if values_W[w] > 0
    )
