"""What some training images did while a network was trained: how sure each exit was of them, and what it was pushed to.

E epochs, K exits, W watched images.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from offramp.errors import UsageError
from offramp.json_files import convert, parse
from offramp.storage import load_tensors, save_tensors

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Xray:
    """The record of a training's gradients; everything as the network stood at an image's step, on the image augmented.

    The derivative of an image's own loss by the logit of its true class is -w push: a push of 1 - F[y] is that of plain
    cross-entropy. Kept in float16: three digits down to 6e-5, then fewer, 0 below 3e-8; cut at 65,504.

    Attributes:
        indices_W: Position of each watched image in the official training set, ascending.
        targets_W: Its class.
        epochs_E: The recorded epochs, from 1.
        ce_EKW: -log F[y], in nats.
        push_EKW: How strongly the objective pushes the true class (`Objective.push`).
        right_EKW: Whether the exit answered rightly.
        gamma_EKW: The damping coefficient; None where the objective has none.
        weight_EKW: The weight w, that of the objective times that of the rule; None where there is neither.
    """

    indices_W: Tensor
    targets_W: Tensor
    epochs_E: Tensor
    ce_EKW: Tensor
    push_EKW: Tensor
    right_EKW: Tensor
    gamma_EKW: Tensor | None
    weight_EKW: Tensor | None
    class_names: tuple[str, ...]
    split: str

    NEEDED: ClassVar = 0.9  # of plain cross-entropy's push has to be left for a gradient to count as needed
    STATES: ClassVar = ("needed", "damped", "reversed")
    BANDS: ClassVar = (0.7, 0.8, 0.95)  # of F[y]: gradients between them help, add little, harm (paper, section 3.2)

    @property
    def num_exits(self) -> int:
        """K."""
        return self.ce_EKW.shape[1]

    def certainty(self) -> Tensor:
        """F[y], `[E, K, W]`."""
        return self.ce_EKW.float().neg().exp()

    def kept(self) -> Tensor:
        """What is left of plain cross-entropy's push `[E, K, W]`: 1 all, 0 nothing, below 0 it is reversed.

        0 also where there is nothing to push any more, F[y] being 1 in the numbers of the training. A negative weight,
        which rules may give, turns a push around.
        """
        missing_EKW = -self.ce_EKW.float().neg().expm1()
        push_EKW = self.push_EKW.float()
        if self.weight_EKW is not None:
            push_EKW = push_EKW * self.weight_EKW.sign()
        left_EKW = push_EKW / missing_EKW.masked_fill(missing_EKW == 0, 1.0)
        return torch.where((missing_EKW == 0) & (push_EKW > 0), 1.0, left_EKW)

    def shares(self) -> Tensor:
        """Shares of the watched images whose gradient is needed, damped and reversed, `[3, E, K]`; they add up to 1.

        Needed: `NEEDED` or more of plain cross-entropy's push is left. Damped: less than that, down to none. Reversed:
        the true class is pushed down.
        """
        kept_EKW = self.kept()
        states = kept_EKW >= self.NEEDED, (kept_EKW < self.NEEDED) & (kept_EKW >= 0), kept_EKW < 0
        return torch.stack([state_EKW.double().mean(-1) for state_EKW in states])

    def sources(self) -> Tensor:
        """Where each exit's push comes from: shares of images with F[y] in each band of `BANDS`, `[4, E, K]`.

        Of the sum of w push over the images whose true class is pushed up; all 0 where there is none.
        """
        force_EKW = self.push_EKW.double()
        if self.weight_EKW is not None:
            force_EKW = force_EKW * self.weight_EKW.double()
        force_EKW = force_EKW.clamp(min=0)
        band_EKW = torch.bucketize(self.certainty(), torch.tensor(self.BANDS), right=True)
        sums = torch.stack([(force_EKW * (band_EKW == band)).sum(-1) for band in range(len(self.BANDS) + 1)])
        return sums / force_EKW.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)

    def learned(self) -> Tensor:
        """Epoch from which on each exit is right about each image, at every later one too, `[K, W]`; 0 for never."""
        right_from_EKW = self.right_EKW.flip(0).int().cumprod(0).flip(0).bool()
        first_KW = right_from_EKW.int().argmax(0)
        return self.epochs_E[first_KW].where(self.right_EKW[-1], 0)

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all: 5 bytes an epoch, exit and image, 2 each for gamma and w."""
        about = {"format": FORMAT, "class_names": self.class_names, "split": self.split}
        tensors = {name: getattr(self, attribute) for name, attribute in _TENSORS.items()}
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_tensors(path, present, {"xray": json.dumps(about, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> "Xray":
        """Read what `save` wrote."""
        tensors, metadata = load_tensors(path)
        present = {attribute: tensors.get(name) for name, attribute in _TENSORS.items()}
        if "xray" not in metadata or any(present[name] is None for name in present.keys() - _MAY_BE_MISSING):
            raise UsageError(f"{path} is not a record of gradients.")
        header = convert(parse(metadata["xray"], path), _Header, path, newest=FORMAT)
        return cls(**present, class_names=header.class_names, split=header.split)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Header:
    class_names: tuple[str, ...]
    split: str


_MAY_BE_MISSING = {"gamma_EKW", "weight_EKW"}
_TENSORS = {
    "indices": "indices_W",
    "targets": "targets_W",
    "epochs": "epochs_E",
    "ce": "ce_EKW",
    "push": "push_EKW",
    "right": "right_EKW",
    "gamma": "gamma_EKW",
    "weight": "weight_EKW",
}
