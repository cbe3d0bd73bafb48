"""Watching the gradients of some training images, from what each step computes anyway.

E epochs, K exits, B images here, W watched images, R of them here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp import processes
from offramp.data import Batch, Split
from offramp.data.randomness import Purpose, permutation
from offramp.devices import sent
from offramp.files.xray import Xray
from offramp.objectives.base import log_softmax, pick
from offramp.rules import Outcome, Workbench

_LARGEST = torch.finfo(torch.float16).max


class GradientWatch:
    """Writes down F[y], push, answer, gamma and weight of the watched images as they come by; kept in checkpoints.

    Which images depends on their number alone, so that all runs on the same images watch the same. An epoch of which
    not every image was seen, because watching began on its way, is left out. All processes keep the same record.
    """

    def __init__(self, bench: Workbench, train: Split, number: int) -> None:
        self.bench, self.train = bench, train
        positions_W = permutation(len(train), Purpose.XRAY)[:number] if number else np.zeros(0, np.int64)
        self._watch(torch.from_numpy(positions_W))
        self.epochs: list[int] = []  # whole ones
        self.past: dict[str, list[Tensor]] = {}  # [K, W] of each whole epoch
        self.now: dict[str, Tensor] = {}  # float32 [K, W] of this epoch, 0 where not `seen`

    def _watch(self, positions_W: Tensor) -> None:
        """Watch the images at these positions of the split."""
        self.indices_W, order_W = torch.from_numpy(self.train.indices_S)[positions_W].sort()
        self.positions_W = positions_W[order_W]

    def __len__(self) -> int:
        return len(self.positions_W)

    @torch.no_grad()
    def add(self, outcome: Outcome, batch: Batch, progress: float) -> None:
        """Write down this process's share of a step. No waiting for the device, and no pass through the network."""
        if not len(self):
            return
        slots_B = torch.searchsorted(self.indices_W, batch.indices_B).clamp(max=len(self) - 1)
        rows_R = (self.indices_W[slots_B] == batch.indices_B).nonzero().flatten()
        if not len(rows_R) and not processes.active():
            return
        values = self._values(outcome, batch.targets_B, progress)
        here = self.bench.broken.device
        rows, slots = sent(rows_R, here), sent(slots_B[rows_R], here)
        step_FKB = torch.stack([values_KB.float() for values_KB in values.values()])
        step_FKW = step_FKB.new_zeros(*step_FKB.shape[:2], len(self))
        step_FKW = processes.sum_over_all(step_FKW.index_copy(2, slots, step_FKB.index_select(2, rows)))
        # An image comes by once an epoch, so these sums add up nothing and are exact.
        for name, step_KW in zip(values, step_FKW, strict=True):
            self.now[name] = self.now[name] + step_KW if name in self.now else step_KW

    def _values(self, outcome: Outcome, targets_B: Tensor, progress: float) -> dict[str, Tensor]:
        logits_KBC, stats_KB = outcome.logits_KBC, outcome.stats_KB
        ce_KB = -pick(log_softmax(logits_KBC), targets_B)
        right_KB = logits_KBC[..., : self.bench.network.num_classes].argmax(-1) == targets_B
        return {
            "seen": torch.ones_like(ce_KB),
            "ce": ce_KB,
            "push": self.bench.objective.push(logits_KBC, targets_B, stats_KB, progress=progress),
            "right": right_KB,
            **{name: stats_KB[name] for name in ("gamma", "weight") if name in stats_KB},
        }

    def end_epoch(self, epoch: int) -> None:
        """The epoch of this number (from 1) is over."""
        now, self.now = self.now, {}
        if "seen" not in now or not now.pop("seen").all():
            return
        self.epochs.append(epoch)
        for name, values_KW in now.items():
            kept_KW = values_KW.bool() if name == "right" else values_KW.clamp(-_LARGEST, _LARGEST).half()
            self.past.setdefault(name, []).append(kept_KW.cpu())

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        if not len(self):
            return {}
        past = {f"past.{name}": torch.stack(rows) for name, rows in self.past.items()}
        now = {f"now.{name}": values_KW for name, values_KW in self.now.items()}
        return {"positions": self.positions_W, "epochs": self._whole_epochs(), **past, **now}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Where nothing was watched so far, watching begins now."""
        if not state:
            return
        self._watch(state["positions"])
        self.epochs = [int(epoch) for epoch in state["epochs"]]
        for name, values in state.items():
            part, _, field = name.partition(".")
            if part == "past":
                self.past[field] = list(values)
            elif part == "now":
                self.now[field] = values.to(self.bench.broken.device)

    def _whole_epochs(self) -> Tensor:
        return torch.tensor(self.epochs, dtype=torch.int64)

    def save(self, path: Path) -> None:
        """Write the whole epochs to a file, if there are any."""
        if not self.epochs:
            return
        fields: dict[str, Any] = {name: torch.stack(rows) for name, rows in self.past.items()}
        Xray(
            indices_W=self.indices_W,
            targets_W=self.train.labels_S[self.positions_W],
            epochs_E=self._whole_epochs(),
            ce_EKW=fields["ce"],
            push_EKW=fields["push"],
            right_EKW=fields["right"],
            gamma_EKW=fields.get("gamma"),
            weight_EKW=fields.get("weight"),
            class_names=self.train.class_names,
            split=self.train.name,
        ).save(path)
