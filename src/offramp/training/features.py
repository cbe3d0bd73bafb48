"""What the exits of a frozen trunk read, computed once and kept: then heads alone are run in every epoch.

B images of a batch, S images of a split, K exits, F numbers kept of each image: of all exits, side by side.
"""

import math
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from offramp import processes
from offramp.data import Split
from offramp.errors import OfframpError, UsageError
from offramp.graphs.exit_writes import check_skippable
from offramp.graphs.head_prefix import split_head
from offramp.network import Carry, EarlyExitNet, has_hooks
from offramp.rules import RULES
from offramp.training.job import Job
from offramp.training.monitor import Placement
from offramp.training.splits import Kept, is_augmented
from offramp.training.trunk import Frozen

IN_MEMORY = 2**31  # bytes, at most; beyond that in a file, where it was asked for
Context = Callable[[], AbstractContextManager[None]]


def planned(job: Job) -> tuple["Features | None", str | None]:
    """How the features of a frozen trunk are kept; where they are not, None and why, in words that follow a colon."""
    wanted = job.config.keep_features
    if not job.config.freeze_trunk or wanted == "no":
        return None, None
    why_not = _why_not(job)
    if why_not is None:
        features = Features(job.network, job.train.image_shape)
        size = features.size_of(job.train) + (features.size_of(job.val.search) if job.val else 0)
        if size <= IN_MEMORY or wanted == "yes":
            return features, None
        why_not = f"kept they would take {describe_size(size)}, too much for memory (--keep-features yes takes a file)"
    if wanted == "yes":
        raise UsageError(f"The trunk's features cannot be kept: {why_not}.")
    return None, why_not


def _why_not(job: Job) -> str | None:
    kind, rule = type(job.network), type(job.rule)
    if is_augmented(job.train):
        return "the training images are augmented, so they are others in every epoch (--no-augment leaves them alone)"
    if job.rule.needs_images or (job.config.keep_features == "auto" and rule not in RULES.values()):
        return f"{rule.__name__} may look at the images themselves"
    is_usual = kind.forward is EarlyExitNet.forward and kind.exit_logits is EarlyExitNet.exit_logits
    if not is_usual or has_hooks(job.network):
        return f"the {kind.__name__} has a forward pass or hooks of its own, which may do more than stages and exits"
    try:
        check_skippable(job.network, job.train.image_shape)
    except UsageError as error:  # kept maps are made without the exits
        return f"an exit changes what later ones read: {error}".removesuffix(".")
    return None


class Features:
    """What the exits of a network read of each image, and the network that has its place.

    Kept is what a head makes of its map before anything in it is trained: a pooled map is a small part of a map.
    `heads` maps `[B, F]` to logits `[K, B, C]`: the network's own heads, without their prefixes, under their own names.
    """

    def __init__(self, network: EarlyExitNet, image_shape: tuple[int, int, int]) -> None:
        self.network, self.image_shape = network, image_shape
        cuts = [split_head(head) for head in network.exits]
        self._prefixes = [prefix for prefix, _ in cuts]
        parameter = next(network.parameters())
        maps = self._maps(torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device))
        sizes = [x.shape[1:] for x in maps]
        self.width = sum(math.prod(size) for size in sizes)
        self._itemsize = max(x.dtype.itemsize for x in maps)
        stages, first = [], 0
        for size in sizes:
            stages.append(_Piece(first, size))
            first += math.prod(size)
        self.heads = EarlyExitNet(
            stages, [rest for _, rest in cuts], num_classes=network.num_classes, damping=network.damping, reads=0
        )
        self.heads.stages = Frozen(self.heads.stages)
        self.heads.link = network.link
        self.heads.train()

    def size_of(self, split: Split) -> int:
        """Bytes that the features of a split take, at most."""
        return len(split) * self.width * self._itemsize

    @torch.no_grad()
    def keep(self, split: Split, place: Placement, autocast: Context, folder: Path) -> Kept:
        """Compute the features of a split's images with test transforms, each process a share of them.

        A file in `folder`, where one is needed, has no name and is gone with the process.
        """
        with autocast():
            blank, _ = place(torch.zeros(1, *self.image_shape), torch.zeros(1))
            kinds = [x.dtype for x in self._maps(blank)]
        dtype = kinds[0]
        for kind in kinds:
            dtype = torch.promote_types(dtype, kind)
        rows_SF = _room(len(split), self.width, dtype, folder)
        first = 0
        for batch in split.plain().on(place.device).batches():
            rows_BF = torch.zeros(batch.size, self.width, dtype=dtype, device=place.device)
            if len(batch.targets_B):
                images_BCHW, _ = place(batch.images_BCHW, batch.targets_B)
                with autocast():
                    flat = [x.flatten(1).to(dtype) for x in self._maps(images_BCHW)]
                rows_BF[processes.share_of(batch.size)] = torch.cat(flat, dim=1)
            rows_BF = processes.sum_over_all(rows_BF)
            self._check(rows_BF, split, first)
            rows_SF[first : first + batch.size] = rows_BF
            first += batch.size
        return Kept(split, rows_SF)

    def _maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """What each head reads, after its prefix, in the order in which the network runs."""
        carry: Carry = (images_BCHW,)
        maps = []
        with torch.no_grad():
            for k, prefix in enumerate(self._prefixes):
                carry = self.network.run_stage(k, carry)
                maps.append(prefix(carry[self.network.reads[k]]))
        return maps

    def _check(self, rows_BF: Tensor, split: Split, first: int) -> None:
        broken = (~rows_BF.isfinite().all(1)).nonzero().flatten()
        if len(broken):
            index = split.indices_S[first + int(broken[0])]
            raise OfframpError(
                f"The frozen trunk makes of image {index} of {split.name} numbers that are not finite; other weights, "
                "or float32, may help."
            )


class _Piece(nn.Module):
    """In the place of a stage: what the exit after it reads, cut out of the rows, which go on."""

    def __init__(self, first: int, size: torch.Size) -> None:
        super().__init__()
        self.first, self.size = first, size  # where it begins in a row, and its shape for one image

    def forward(self, *carry: Tensor) -> Carry:
        """What the exit reads, and the rows."""
        rows_BF = carry[-1]
        numbers = rows_BF[:, self.first : self.first + math.prod(self.size)]
        return numbers.reshape(len(rows_BF), *self.size).contiguous(), rows_BF


def _room(num: int, width: int, dtype: torch.dtype, folder: Path) -> Tensor:
    """Memory for `[num, width]` numbers: beyond `IN_MEMORY` that of a file, which the system reads and writes."""
    size = num * width * dtype.itemsize
    if size <= IN_MEMORY:
        return torch.empty(num, width, dtype=dtype)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".features.", suffix=".part")
    try:
        os.posix_fallocate(handle, 0, size)  # or a full disk would end the process in the middle of a write
        return torch.from_file(name, shared=True, size=num * width, dtype=dtype).view(num, width)
    except OSError as error:
        raise OfframpError(
            f"There is no room in {folder} for a file of {describe_size(size)} with the trunk's features: "
            f"{error.strerror or error}. Make room, or use --keep-features no."
        ) from error
    finally:
        os.close(handle)
        os.unlink(name)  # the memory stays until it is freed, and no kill leaves a file


def describe_size(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
