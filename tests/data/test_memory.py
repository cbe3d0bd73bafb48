from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from offramp import data
from offramp.data import Batch
from offramp.data.memory import Look, MemorySplit, statistics

LOOK = Look((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), padding=2, flip=True)


def make(num_images: int = 150, training: bool = True) -> MemorySplit:
    pixels = torch.randint(0, 256, (num_images, 3, 8, 8), dtype=torch.uint8)
    return MemorySplit(
        pixels,
        np.arange(num_images) % 2,
        "made/train",
        np.arange(num_images),
        training,
        look=LOOK,
        class_names=["even", "odd"],
        batch_size=32,
    )


def test_the_test_transform_is_normalisation_alone() -> None:
    split = make().plain()
    images = torch.cat([batch.images_BCHW for batch in split.batches()])
    mean, std = torch.tensor(LOOK.mean).view(3, 1, 1), torch.tensor(LOOK.std).view(3, 1, 1)
    assert torch.equal(images, (split.pixels_SCHW / 255 - mean) / std)
    assert images.dtype == torch.float32


def test_training_images_are_shifted_and_mirrored_copies_of_themselves() -> None:
    split = make()
    mean, std = torch.tensor(LOOK.mean).view(3, 1, 1), torch.tensor(LOOK.std).view(3, 1, 1)
    kinds = set()
    for batch in split.batches(seed=1):
        padded = torch.nn.functional.pad(split.pixels_SCHW[batch.indices_B], (2, 2, 2, 2))
        for image, source in zip(batch.images_BCHW, padded, strict=True):
            seen = {
                (top, left, mirrored)
                for top in range(5)
                for left in range(5)
                for mirrored in (False, True)
                for crop in [source[:, top : top + 8, left : left + 8]]
                if torch.equal(image, ((crop.flip(-1) if mirrored else crop) / 255 - mean) / std)
            }
            assert len(seen) == 1
            kinds |= seen
    assert len(kinds) > 40  # of 50


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("start", [0, 2])
def test_batches_are_the_same_for_any_number_of_processes_and_any_start(
    world: int, start: int, same: Callable[..., bool], joined: Callable[..., list[Batch]]
) -> None:
    split = make()
    assert same(joined(split, world, seed=5, epoch=3, start=start), list(split.batches(seed=5, epoch=3))[start:])


def test_no_split_copies_the_pixels() -> None:
    images = np.zeros((1000, 3, 8, 8), dtype=np.uint8)
    parts = data.arrays(images, np.arange(1000) % 2, holdout=100)
    splits = [*parts.splits(), parts.train.plain()]
    assert len(splits) == 5
    assert all(isinstance(split, MemorySplit) for split in splits)
    assert {split.pixels_SCHW.data_ptr() for split in splits} == {images.ctypes.data}  # type: ignore[attr-defined]


NOWHERE = torch.device("meta")  # whatever leaves it for the CPU fails
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
)


class _NeverMixed(TorchDispatchMode):
    """Indices on the CPU are allowed for pixels anywhere; a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        assert len(devices) < 2, func
        return func(*args, **kwargs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_on_a_device_images_are_made_there(training: bool, dtype: torch.dtype) -> None:
    split = make(training=training)
    split = MemorySplit(
        split.pixels_SCHW.to(dtype),
        split.labels_S.numpy(),
        split.name,
        split.indices_S,
        training,
        look=LOOK,
        class_names=split.class_names,
        batch_size=32,
    )
    there = split.on(NOWHERE)
    with _NeverMixed():
        made = list(there.batches(seed=1))
    for batch, ours in zip(split.batches(seed=1), made, strict=True):
        assert ours.images_BCHW.device == NOWHERE
        assert ours.images_BCHW.shape == batch.images_BCHW.shape
        assert ours.images_BCHW.dtype == torch.float32
        assert torch.equal(ours.indices_B, batch.indices_B)
        assert torch.equal(ours.targets_B, batch.targets_B)
    assert there.plain().device == NOWHERE
    assert there.fingerprint() == split.fingerprint()
    assert split.device.type == "cpu"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_images_are_the_same_bits_on_every_device(device: str, training: bool, same: Callable[..., bool]) -> None:
    split = make(training=training)
    there = [batch._replace(images_BCHW=batch.images_BCHW.cpu()) for batch in split.on(torch.device(device)).batches()]
    assert same(there, list(split.batches()))


def test_pixels_that_would_fill_a_device_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    split = make()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * split.pixels_SCHW.nbytes - 1, 0))
    there = split.on(torch.device("cuda"))
    assert there.device.type == next(there.batches()).images_BCHW.device.type == "cpu"


def test_batches_do_not_touch_the_pixels() -> None:
    split = make()
    before = split.pixels_SCHW.clone()
    for batch in split.plain().batches():
        batch.images_BCHW.zero_()
    assert torch.equal(split.pixels_SCHW, before)


def test_statistics_equal_a_plain_computation() -> None:
    pixels = torch.randint(0, 256, (3000, 3, 4, 4), dtype=torch.uint8)
    indices = np.arange(0, 3000, 2)
    mean, std = statistics(pixels, indices)
    chosen = pixels[::2].double() / 255
    np.testing.assert_allclose(mean, chosen.mean((0, 2, 3)))
    np.testing.assert_allclose(std, chosen.std((0, 2, 3), correction=0))


def test_a_channel_that_does_not_vary_is_only_shifted() -> None:
    mean, std = statistics(torch.full((5, 1, 2, 2), 3.0), np.arange(5))
    assert (mean, std) == ((3.0,), (1.0,))
