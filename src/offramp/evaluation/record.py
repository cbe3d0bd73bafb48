"""One pass over a data set, kept: the logits of every exit. Whatever is asked afterwards is arithmetic on them.

K exits, B images of a batch, S images of a data set, N classes, C outputs of an exit (N, or N + 1 with the damping
neuron).
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from offramp import data
from offramp.checks import check_whole
from offramp.devices import describe_device
from offramp.errors import OfframpError, UsageError
from offramp.json_files import convert, parse
from offramp.network import EarlyExitNet
from offramp.policy import Measure
from offramp.processes import active
from offramp.storage import DamagedFileError, load_tensors, save_tensors, weights_hash

FORMAT = 1  # of the file
PIECE = 2**17  # logits looked at together: what is made of them stays in the processor's cache
_FIRST = {"search": 2**31, "certify": 2**32}  # of numbers for images whose positions are not known
Progress = Callable[[int, int], None]  # called with images done and images in all


class BatchLike(Protocol):
    """What is read of a batch (`offramp.data.Batch`)."""

    @property
    def images_BCHW(self) -> Tensor: ...  # noqa: D102, N802
    @property
    def targets_B(self) -> Tensor: ...  # noqa: D102, N802
    @property
    def indices_B(self) -> Tensor: ...  # noqa: D102, N802


@runtime_checkable
class SplitLike(Protocol):
    """What is read of a part of a data set (`offramp.data.Split`)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def num_classes(self) -> int: ...  # noqa: D102
    @property
    def class_names(self) -> Sequence[str]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def fingerprint(self) -> str: ...  # noqa: D102
    def batches(self, *, seed: int = 0, epoch: int = 0, start: int = 0) -> Iterator[BatchLike]: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Record:
    """The logits of a network's exits on a data set, and where they came from.

    Attributes:
        logits_KSC: float32, on the CPU.
        targets_S: The true classes, in [0, N).
        indices_S: Positions of the images in the official training or test set.
        class_names: N names.
        split: Name of the part of the data set, such as `digits/test`.
        fingerprint: Hash of what that part holds.
        weights: Hash of the network's weights (`storage.weights_hash`).
        total: Images the part holds; more than S where the record was limited.
        made_on: Device and version of torch, in words.

    Raises:
        UsageError: Shapes that do not fit each other, no images, targets outside [0, N).
        OfframpError: Logits that are not finite.
    """

    logits_KSC: Tensor
    targets_S: Tensor
    indices_S: Tensor
    class_names: tuple[str, ...]
    split: str
    fingerprint: str
    weights: str
    total: int
    made_on: str
    _read: dict[Measure, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.logits_KSC.dim() != 3:
            raise UsageError(f"A record's logits are [K, S, C]; found shape {list(self.logits_KSC.shape)}.")
        num_images, num_outputs = self.logits_KSC.shape[1:]
        if num_images == 0:
            raise UsageError(f"{self.split} holds no images, so there is nothing to evaluate.")
        if self.targets_S.shape != (num_images,) or self.indices_S.shape != (num_images,):
            raise UsageError(
                f"{self.split}: logits of {num_images} images, but {len(self.targets_S)} targets and "
                f"{len(self.indices_S)} indices."
            )
        if num_outputs not in (self.num_classes, self.num_classes + 1):
            raise UsageError(
                f"{self.split} has {self.num_classes} classes, so exits have {self.num_classes} outputs, or one more "
                f"with the damping neuron; found {num_outputs}."
            )
        if not 0 <= int(self.targets_S.min()) <= int(self.targets_S.max()) < self.num_classes:
            raise UsageError(
                f"{self.split}: classes lie between {int(self.targets_S.min())} and {int(self.targets_S.max())}, "
                f"outside [0, {self.num_classes})."
            )
        _refuse_not_finite(self.logits_KSC, self.indices_S, self.split)

    @property
    def num_classes(self) -> int:
        """N."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """S."""
        return len(self.targets_S)

    @property
    def damping(self) -> bool:
        """Whether the last output is the damping neuron."""
        return self.logits_KSC.shape[2] > self.num_classes

    def read(self, measure: Measure) -> tuple[Tensor, Tensor]:
        """Confidences `[K, S]` and answers `[K, S]` (`Measure.over`). Kept: all figures of policies need them."""
        if measure not in self._read:
            parts = (self.logits_KSC[:, here] for here in pieces(self.num_images, self.logits_KSC.shape[2]))
            confidences, labels = zip(*(measure.over(part, self.num_classes) for part in parts), strict=True)
            self._read[measure] = torch.cat(confidences, 1), torch.cat(labels, 1)
        return self._read[measure]

    @classmethod
    def of(
        cls,
        logits: Tensor | Sequence[Tensor],
        targets: Tensor,
        network: EarlyExitNet | None = None,
        *,
        split: str = "mine/test",
        class_names: Sequence[str] | None = None,
        indices: Tensor | None = None,
    ) -> "Record":
        """A record of logits that are there: `[K, S, C]`, or `[S, C]` of each exit.

        Args:
            logits: Of S images.
            targets: Their classes, `[S]`.
            network: What gave the logits: says its classes, and policies found here are for it.
            split: Data set and part; `mine/search` for thresholds, `mine/certify` for certificates.
            class_names: N names. Default: numbers, as many as the network has classes, else C.
            indices: Positions of the images in their data set. Default: numbers, others for each part.
        """
        logits_KSC = (logits if isinstance(logits, Tensor) else torch.stack(tuple(logits))).detach().float().cpu()
        targets_S = targets.detach().long().cpu()
        names = class_names or [str(n) for n in range(network.num_classes if network else logits_KSC.shape[-1])]
        first = _FIRST.get(split.rpartition("/")[2], 0)
        sha = hashlib.sha256(targets_S.numpy().tobytes() + logits_KSC.contiguous().numpy().tobytes())
        return cls(
            logits_KSC=logits_KSC,
            targets_S=targets_S,
            indices_S=torch.arange(first, first + len(targets_S)) if indices is None else indices.long().cpu(),
            class_names=tuple(names),
            split=split,
            fingerprint=sha.hexdigest(),
            weights="" if network is None else weights_hash(network.state_dict()),
            total=len(targets_S),
            made_on="",
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        about = asdict(_Header(*(getattr(self, field.name) for field in fields(_Header)[:-1])))
        tensors = {"logits": self.logits_KSC, "targets": self.targets_S, "indices": self.indices_S}
        save_tensors(Path(path), tensors, {"record": json.dumps(about, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path) -> "Record":
        """Read what `save` wrote."""
        tensors, metadata = load_tensors(Path(path))
        if "record" not in metadata or tensors.keys() != {"logits", "targets", "indices"}:
            raise UsageError(f"{path} is not a record of logits.")
        header = convert(parse(metadata["record"], path), _Header, path, newest=FORMAT)
        about = {field.name: getattr(header, field.name) for field in fields(_Header)[:-1]}
        return cls(tensors["logits"], tensors["targets"], tensors["indices"], **about)


@dataclass(frozen=True)
class _Header:
    """What a record's file says of it beside its tensors: see `Record`."""

    class_names: tuple[str, ...]
    split: str
    fingerprint: str
    weights: str
    total: int
    made_on: str
    format: int = FORMAT


def pieces(num_images: int, num_outputs: int, most: int | None = None) -> Iterator[slice]:
    """Images, some `most` logits at a time; by default `PIECE`, of an exit."""
    size = max(1, (most or PIECE) // num_outputs)
    return (slice(first, min(first + size, num_images)) for first in range(0, num_images, size))


class Forward(NamedTuple):
    """What gives a network's logits in its place: a backend."""

    name: str
    logits: Callable[[Tensor], Tensor]
    """From images `[B, channels, height, width]` to `[K, B, C]`."""


def record(
    network: EarlyExitNet,
    split: SplitLike | data.Given,
    *,
    forward: Forward | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Record:
    """One pass over `split` in evaluation mode; the network is left as it was.

    Args:
        network: Its logits on a batch must be `[K, B, C]`.
        split: A part of a data set, read in its own order; `train.plain()` gives training images test transforms. A
            torch `Dataset` or `DataLoader` is test images; `offramp.data.held_out` makes the others of it.
        forward: Runs the network; by default torch does, as it is.
        device: Where to compute; the network's own device if None.
        batch_size: Largest number of images in one forward pass, below the split's own.
        limit: Only the first so many images.
        progress: Called after each forward pass with images done and images in all.

    Raises:
        UsageError: A split without images, or with other classes than the network's.
        OfframpError: Logits that are not finite, with the exit and the image.
    """
    if active():
        raise UsageError("record reads a whole data set in one process; call it outside torchrun.")
    split = _checked(network, split, limit, batch_size)
    if split.num_classes != network.num_classes:
        raise UsageError(f"{split.name} has {split.num_classes} classes, the network {network.num_classes}.")
    num_images = len(split) if limit is None else min(limit, len(split))
    # Made once at full size: a list of batches, stacked at the end, would need the memory twice.
    logits_KSC = torch.empty(network.num_exits, num_images, network.num_outputs)
    targets_S, indices_S = (torch.empty(num_images, dtype=torch.int64) for _ in range(2))
    home, dtype = _home_of(network)
    device = home if device is None else torch.device(device)
    done = 0
    with _evaluating(network, home, device):
        for images_BCHW, targets_B, indices_B in _chunks(split, num_images, batch_size):
            here = slice(done, done + len(targets_B))
            run = network if forward is None else forward.logits
            logits_KSC[:, here] = _logits(run, network, images_BCHW.to(device, dtype), indices_B, split.name)
            targets_S[here], indices_S[here] = targets_B, indices_B
            done = here.stop
            if progress is not None:
                progress(done, num_images)
    if done != num_images:
        raise OfframpError(f"{split.name} should hold {num_images} images, but its batches ended after {done}.")
    return Record(
        logits_KSC=logits_KSC,
        targets_S=targets_S,
        indices_S=indices_S,
        class_names=tuple(split.class_names),
        split=split.name,
        fingerprint=split.fingerprint(),
        weights=weights_hash(network.state_dict()),
        total=len(split),
        made_on=f"{describe_device(device)}, torch {torch.__version__}" + (f", {forward.name}" if forward else ""),
    )


@contextlib.contextmanager
def _evaluating(network: EarlyExitNet, home: torch.device, device: torch.device) -> Iterator[None]:
    """Within it the network is in evaluation mode on a device; afterwards as and where it was."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        if device != home:  # to where it is takes as long as several images
            network.to(device)
        network.eval()
        yield
    finally:
        if device != home:
            network.to(home)
        for module, mode in modes:
            module.training = mode


def recorded(
    network: EarlyExitNet,
    split: SplitLike | data.Given,
    path: str | Path,
    *,
    forward: Forward | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Record:
    """The record kept at `path` if it is of these weights, images and `forward`; else one made now and kept there.

    Arguments as for `record`. A damaged record is made again.
    """
    split = _checked(network, split, limit, batch_size)
    num_images = len(split) if limit is None else min(limit, len(split))
    wanted = (weights_hash(network.state_dict()), split.fingerprint(), num_images)
    if Path(path).is_file():
        try:
            kept = Record.load(path)
        except DamagedFileError:
            kept = None  # nothing is lost: it is made again below, from the same weights and images
        is_of_it = forward is None or (kept is not None and kept.made_on.endswith(f", {forward.name}"))
        if kept is not None and is_of_it and (kept.weights, kept.fingerprint, kept.num_images) == wanted:
            return kept
    fresh = record(
        network, split, forward=forward, device=device, batch_size=batch_size, limit=limit, progress=progress
    )
    fresh.save(path)
    return fresh


def _checked(
    network: EarlyExitNet, split: SplitLike | data.Given, limit: int | None, batch_size: int | None
) -> SplitLike:
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None:
            check_whole(name, value, 1)
    if isinstance(split, SplitLike):
        return split
    return data.from_torch(split, "torch/test", network.num_classes)


def _home_of(network: EarlyExitNet) -> tuple[torch.device, torch.dtype | None]:
    """Where its parameters are, and of which type the images have to be; None: as they are."""
    parameter = next(network.parameters(), None)
    if parameter is None:
        return torch.device("cpu"), None
    return parameter.device, parameter.dtype if parameter.is_floating_point() else None


def _chunks(split: SplitLike, num_images: int, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, targets and indices, `batch_size` at most at a time, `num_images` in all."""
    left = num_images
    for batch in split.batches():
        size = batch_size or max(1, len(batch.targets_B))
        tensors = (batch.images_BCHW[:left], batch.targets_B[:left], batch.indices_B[:left])
        yield from zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
        left -= len(batch.targets_B)
        if left <= 0:
            return


@torch.inference_mode()
def _logits(
    run: Callable[[Tensor], Tensor], network: EarlyExitNet, images_BCHW: Tensor, indices_B: Tensor, split: str
) -> Tensor:
    logits_KBC: Tensor = run(images_BCHW).float().cpu()
    expected = (network.num_exits, len(indices_B), network.num_outputs)
    if logits_KBC.shape != expected:
        raise UsageError(
            f"The network's logits are {list(logits_KBC.shape)}; it should give {list(expected)} [K, B, C]."
        )
    _refuse_not_finite(logits_KBC, indices_B, split)
    return logits_KBC


def _refuse_not_finite(logits_KSC: Tensor, indices_S: Tensor, split: str) -> None:
    for k, logits_SC in enumerate(logits_KSC):
        if logits_SC.sum(-1).isfinite().all():  # one reading; a sum of finite logits may still overflow
            continue
        finite_S = logits_SC.isfinite().all(-1)
        if not finite_S.all():
            index = int(indices_S[~finite_S][0])
            raise OfframpError(
                f"Exit {k + 1} gives logits that are not finite for image {index} of {split} "
                f"({int((~finite_S).sum())} images in all): its weights, or the image's pixels, are not finite."
            )
