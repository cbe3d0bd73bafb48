from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp import data
from offramp.data import Batch, HeldOut, Parts, Split
from offramp.data.randomness import Draw, IntArray
from offramp.errors import UsageError


class Counted(Split):
    """A split of one's own: each image is one pixel, its position; the augmentation adds a random number to it."""

    closed = False

    def __init__(self, num_images: int, batch_size: int = 64, training: bool = True, offset: int = 0) -> None:
        super().__init__(
            "counted/train",
            np.arange(num_images) % 10,
            np.arange(num_images) + offset,
            class_names=[str(n) for n in range(10)],
            image_shape=(1, 1, 1),
            batch_size=batch_size,
            training=training,
        )

    def read(self, shares: Iterable[IntArray], draw: Draw | None) -> Generator[Tensor]:
        try:
            for indices in shares:
                noise = draw.uniforms(indices, 1)[:, 0] if draw else np.zeros(len(indices))
                yield torch.from_numpy(indices + noise).float().view(-1, 1, 1, 1)
        finally:
            self.closed = True

    def content(self) -> Iterator[bytes]:
        yield self.indices_S.tobytes()


@pytest.mark.parametrize(
    ("num_images", "batch_size", "num_batches", "last"),
    [(50000, 64, 782, 16), (45000, 64, 704, 8), (1281167, 256, 5005, 143), (1231167, 256, 4810, 63)],
)
def test_the_last_incomplete_batch_is_kept(num_images: int, batch_size: int, num_batches: int, last: int) -> None:
    split = Counted(num_images, batch_size)
    assert split.num_batches == num_batches
    (batch,) = split.batches(start=num_batches - 1)
    assert (batch.size, len(batch.targets_B)) == (last, last)


def test_an_epoch_has_every_image_once_with_its_label() -> None:
    batches = list(Counted(1000).batches(seed=1, epoch=2))
    indices = torch.cat([batch.indices_B for batch in batches])
    assert sorted(indices.tolist()) == list(range(1000))
    assert indices.tolist() != list(range(1000))
    assert torch.equal(torch.cat([batch.targets_B for batch in batches]), indices % 10)
    assert torch.equal(torch.cat([batch.images_BCHW for batch in batches]).flatten().floor().long(), indices)


def test_order_and_augmentation_change_with_seed_and_epoch_only(same: Callable[..., bool]) -> None:
    split = Counted(200)
    first = list(split.batches(seed=1, epoch=2))
    assert same(first, list(split.batches(seed=1, epoch=2)))
    assert not same(first, list(split.batches(seed=1, epoch=3)))
    assert not same(first, list(split.batches(seed=2, epoch=2)))


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_a_pass_continues_anywhere(start: int, same: Callable[..., bool]) -> None:
    split = Counted(200)
    assert same(list(split.batches(seed=1, epoch=2, start=start)), list(split.batches(seed=1, epoch=2))[start:])


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_each_batch(world: int, same: Callable[..., bool], joined: Callable[..., list[Batch]]) -> None:
    split = Counted(130)
    assert same(joined(split, world, seed=3, epoch=1), list(split.batches(seed=3, epoch=1)))


def test_a_share_may_be_empty(as_process: Callable[[int, int], None]) -> None:
    as_process(0, 3)
    batches = list(Counted(65).batches())
    assert [(len(batch.images_BCHW), batch.size) for batch in batches] == [(21, 64), (0, 1)]
    assert batches[1].targets_B.dtype == batches[1].indices_B.dtype == torch.int64


def test_an_image_is_augmented_by_its_position_in_the_official_set() -> None:
    def image(split: Split, index: int) -> Tensor:
        pixels = {int(i): x for b in split.batches(epoch=1) for i, x in zip(b.indices_B, b.images_BCHW, strict=True)}
        return pixels[index]

    assert torch.equal(image(Counted(100, offset=50), 120), image(Counted(300, batch_size=7), 120))


def test_plain_goes_in_order_and_does_not_augment() -> None:
    split = Counted(100)
    plain = split.plain()
    batches = list(plain.batches(seed=4, epoch=4))
    assert torch.cat([batch.images_BCHW for batch in batches]).flatten().tolist() == list(range(100))
    assert torch.cat([batch.indices_B for batch in batches]).tolist() == list(range(100))
    assert split.training
    assert plain.fingerprint() == split.fingerprint()


def test_the_reader_is_closed_when_a_pass_is_abandoned() -> None:
    split = Counted(1000)
    batches = split.batches()
    next(batches)
    del batches
    assert split.closed


def test_a_start_outside_the_pass_is_refused_at_once() -> None:
    for start in (-1, 3, 1.0):
        with pytest.raises(UsageError, match="start"):
            Counted(100).batches(start=start)  # type: ignore[arg-type]


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="batch-size must be a whole number of at least 1, not 0"):
        Counted(100, batch_size=0)


def test_fingerprints_tell_images_labels_and_names_apart() -> None:
    images = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2)
    labels = np.arange(20) % 2

    def fingerprint(images: np.ndarray, labels: np.ndarray, names: list[str]) -> str:
        return data.arrays(images, labels, class_names=names, holdout=0).train.fingerprint()

    brighter, swapped = images.copy(), labels.copy()
    brighter[11, 1, 1] += 1
    swapped[[10, 11]] = labels[[11, 10]]
    prints = [
        fingerprint(images, labels, ["a", "b"]),
        fingerprint(brighter, labels, ["a", "b"]),
        fingerprint(images, swapped, ["a", "b"]),
        fingerprint(images, labels, ["b", "a"]),
        fingerprint(images.reshape(20, 1, 4), labels, ["a", "b"]),
    ]
    assert len(set(prints)) == 5
    assert all(len(text) == 64 for text in prints)
    assert fingerprint(images.copy(), labels.copy(), ["a", "b"]) == prints[0]


def test_without_held_out_images_asking_for_them_says_why() -> None:
    nothing = HeldOut()
    assert not nothing
    assert len(nothing) == 0
    with pytest.raises(UsageError, match="no `search`: with holdout=0"):
        _ = nothing.search
    with pytest.raises(UsageError, match="no `certify`: with holdout=0"):
        _ = nothing.certify
    with pytest.raises(UsageError, match="together"):
        HeldOut(search=Counted(3))


def test_held_out_images_are_counted_together() -> None:
    held_out = HeldOut(Counted(3), Counted(4))
    assert held_out
    assert len(held_out) == 7
    assert (len(held_out.search), len(held_out.certify)) == (3, 4)


def test_parts_describe_themselves() -> None:
    parts = Parts(Counted(5), HeldOut(Counted(2), Counted(3, offset=7), {"holdout": 5}), Counted(1))
    description = parts.description()
    assert description["holdout"] == 5
    assert description["search"] == [0, 1]
    assert description["certify"] == [7, 8, 9]
    assert description["parts"]["counted/train"]["fingerprint"] == parts.test.fingerprint()
