import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

import offramp
from offramp.data import HeldOut, as_parts, from_torch, held_out
from offramp.errors import UsageError
from offramp.training.loop import Loop


def images(num: int = 40) -> TensorDataset:
    """Two classes told apart by brightness."""
    labels = torch.arange(num) % 2
    pixels = torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(num))
    return TensorDataset(pixels + 2 * labels[:, None, None, None], labels)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Augments by the three generators that transforms draw from."""

    classes = ("dark", "bright")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = torch.rand(1).item(), random.random(), float(np.random.rand())
        return torch.tensor([index, *drawn, 0.0]).reshape(1, 1, 5), index % 2


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield torch.zeros(1, 8, 8), 0


class Rows(Dataset[Any]):
    def __init__(self, row: Any) -> None:
        self.row = row

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.row


def seen(split: Any, **more: int) -> Tensor:
    return torch.cat([batch.images_BCHW for batch in split.batches(**more)])


def network() -> offramp.EarlyExitNet:
    torch.manual_seed(0)
    stages = [nn.Conv2d(1, 4, 3, 2), nn.Conv2d(4, 4, 3)]
    exits = [nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(width, 2)) for width in (36, 4)]
    return offramp.EarlyExitNet(stages, exits)


@pytest.mark.parametrize("make", [lambda d: d, lambda d: DataLoader(d, 7), lambda d: DataLoader(d, 7, shuffle=True)])
def test_a_split_has_the_images_and_classes_of_what_it_is_made_of(make: Any) -> None:
    whole = images()
    split = from_torch(make(whole), "mine/test")
    assert torch.equal(seen(split), whole.tensors[0])
    assert torch.equal(split.labels_S, whole.tensors[1])
    assert (split.name, split.class_names, split.image_shape) == ("mine/test", ("0", "1"), (1, 8, 8))


def test_a_loader_says_the_size_of_batches_and_makes_pairs_of_anything() -> None:
    def collate(rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        return torch.stack([row["pixels"] for row in rows]), torch.tensor([row["label"] for row in rows])

    loader = DataLoader(Rows({"pixels": torch.ones(1, 8, 8), "label": 1}), 3, collate_fn=collate)
    assert [len(batch.targets_B) for batch in from_torch(loader, "mine/test").batches()] == [3, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_random_transforms_depend_on_seed_epoch_and_index_alone(workers: int) -> None:
    split = from_torch(DataLoader(Noisy(), 4, num_workers=workers), "mine/train", training=True)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again, rest = (seen(split, seed=3, epoch=1, start=start) for start in (0, 0, 2))
    assert (torch.equal(first, again), torch.equal(first[8:], rest)) == (True, True)
    other = seen(split, seed=3, epoch=2)
    order, others = first[:, 0, 0, 0].argsort(), other[:, 0, 0, 0].argsort()
    assert not torch.equal(order, others)  # shuffled
    assert (first[order][:, 0, 0, 1:4] != other[others][:, 0, 0, 1:4]).all()  # and drawn anew
    assert torch.equal(state[0], torch.get_rng_state())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    assert split.fingerprint() == from_torch(Noisy(), "mine/train").fingerprint()
    assert split.class_names == Noisy.classes


def test_fingerprints_tell_pixels_apart() -> None:
    pixels, labels = images().tensors
    changed = pixels.clone()
    changed[-1, 0, 0, 0] += 1
    assert from_torch(TensorDataset(changed, labels), "a").fingerprint() != from_torch(images(), "a").fingerprint()


def test_positions_of_a_subset_are_those_in_the_whole() -> None:
    whole = images()
    part = Subset(Subset(whole, range(10, 30)), [3, 1])
    assert from_torch(part, "mine/test").indices_S.tolist() == [13, 11]
    sampled = DataLoader(whole, sampler=SubsetRandomSampler([5, 2]))
    assert from_torch(sampled, "mine/test").indices_S.tolist() == [2, 5]
    assert torch.equal(seen(from_torch(part, "mine/test")), whole.tensors[0][[13, 11]])


def test_held_out_images_are_halved_or_given_as_two() -> None:
    whole = images()
    halves = held_out(DataLoader(whole, 8))
    search, certify = halves.search, halves.certify
    assert (search.name, certify.name) == ("torch/search", "torch/certify")
    assert sorted([*search.indices_S, *certify.indices_S]) == list(range(40))
    assert torch.equal(seen(certify), whole.tensors[0][certify.indices_S])
    assert certify.fingerprint() not in (search.fingerprint(), from_torch(whole, "x").fingerprint())
    one, two = random_split(whole, [15, 25])
    parts = held_out((one, two))
    assert parts.certify.indices_S.tolist() == list(two.indices)
    apart = held_out((images(), images(30)))  # two data sets: an image of one is none of the other
    assert not set(apart.search.indices_S) & set(apart.certify.indices_S)
    assert torch.equal(seen(apart.certify), images(30).tensors[0])
    assert (len(held_out(None)), held_out(halves)) == (0, halves)


def test_parts_are_what_they_were() -> None:
    parts = offramp.data.digits(limit=100)
    assert as_parts(parts) == parts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Stream(), r"stream \(Stream\).*TensorDataset"),
        (DataLoader(Stream()), "stream"),
        (
            DataLoader(images(), sampler=WeightedRandomSampler([1.0] * 40, 40)),
            "WeightedRandomSampler.*Pass",
        ),
        (DataLoader(images(), batch_size=None), "sampler of its own"),
        ([], "has no images"),
        (7, "a torch Dataset or a DataLoader, not of type int"),
        (Rows({"pixels": torch.zeros(1)}), "pairs.*found dict"),
        (Rows((object(), 1)), "pairs.*found tuple"),
        (Rows((torch.zeros(1, 8, 8, dtype=torch.uint8), 1)), r"uint8 \[1, 8, 8\]"),
        (Rows((torch.zeros(8, 8), 1)), r"float32 \[8, 8\]"),
        (Rows((torch.zeros(1, 8, 8), 0.5)), "float64"),
        (Rows((torch.zeros(1, 8, 8), 5)), "from 5 to 5.*0 to 2"),
        (TensorDataset(torch.zeros(4, 1, 8, 8)), "found list"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_a_split_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_torch(given, "mine/test", 3)


def test_images_of_two_shapes_are_refused() -> None:
    class Uneven(Rows):
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1, 8, 8 + index // 256), 0

    with pytest.raises(UsageError, match=r"\[1, 8, 8\] and \[1, 8, 9\]"):
        from_torch(Uneven(None), "mine/test")


def test_a_run_is_fit_recorded_and_evaluated_on_loaders(tmp_path: Path) -> None:
    train, val, test = (DataLoader(images(num), 16, shuffle=num == 80) for num in (80, 20, 30))
    quick = offramp.TrainConfig(epochs=15, lr=0.05)
    objective = offramp.objectives.CrossEntropy()
    trained = offramp.fit(network(), objective, train, val, quick, out=tmp_path / "run", test=test)
    assert offramp.evaluation.anytime(offramp.evaluation.record(trained, test)).exits[-1].top1 == 100
    again = offramp.fit(network(), objective, train, val, quick, out=tmp_path / "run")  # is recognised as finished
    assert torch.equal(again(test.dataset[0][0][None]), trained(test.dataset[0][0][None]))
    options = offramp.commands.EvaluateOptions(str(tmp_path / "run"))
    found = offramp.commands.evaluate(options, parts=(train, val, test), into=network(), page=False)
    assert found.test.exits[-1].top1 == 100
    with pytest.raises(UsageError, match="classes"):
        offramp.evaluation.record(trained, TensorDataset(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2])))


class Shaken(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 8, 8) + 2 * (index % 2), index % 2


def test_a_run_with_random_transforms_is_continued_to_the_same_bytes(interrupted: Any, tmp_path: Path) -> None:
    config = offramp.TrainConfig(epochs=3, lr=0.05, save_every_steps=1)

    def fit(out: str) -> object:
        loader = DataLoader(Shaken(), 8, shuffle=True)
        return offramp.fit(network(), offramp.objectives.CrossEntropy(), loader, None, config, out=tmp_path / out)

    interrupted(fit, Loop, "_one_step", 8)


def test_a_single_split_is_no_held_out_part() -> None:
    with pytest.raises(UsageError, match="pass val, or None"):
        held_out(offramp.data.digits(limit=100).test)
    assert isinstance(held_out((images(), images(30))), HeldOut)
