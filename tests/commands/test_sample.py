import numpy as np
import pytest
import torch

from offramp import data
from offramp.commands.sample import Sample, pool


@pytest.fixture
def parts() -> data.Parts:
    images = torch.arange(90, dtype=torch.uint8)[:, None, None].expand(90, 4, 4).numpy()
    return data.arrays(images, np.repeat(np.arange(3), 30), batch_size=8, holdout=0, flip=True, padding=1)


def read(split: data.Split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batches = list(split.batches())
    return (
        torch.cat([b.images_BCHW for b in batches]),
        torch.cat([b.targets_B for b in batches]),
        torch.cat([b.indices_B for b in batches]),
    )


def test_images_are_spread_evenly_and_not_augmented(parts):
    images, targets, indices = read(parts.train.plain())
    sampled = read(Sample(parts.train, 9))
    chosen = [n * len(indices) // 9 for n in range(9)]
    assert torch.equal(sampled[0], images[chosen])
    assert sampled[1].tolist() == targets[chosen].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sampled[2].tolist() == indices[chosen].tolist()


def test_a_large_limit_gives_every_image_once(parts):
    sample = Sample(parts.train, 10**6)
    assert len(sample) == len(parts.train)
    assert torch.equal(read(sample)[2], read(parts.train.plain())[2])


def test_the_fingerprint_tells_samples_apart(parts):
    prints = {Sample(parts.train, limit).fingerprint() for limit in (9, 10)} | {parts.train.fingerprint()}
    assert len(prints) == 3
    assert Sample(parts.train, 9).fingerprint() == Sample(parts.train.plain(), 9).fingerprint()


def test_a_pool_is_mixed_and_knows_its_positions(tiny_parts):
    images_SCHW, positions_S = pool(tiny_parts.test, 100)
    assert sorted(positions_S.tolist()) == list(range(40))  # all there are, each once
    assert positions_S.tolist() != list(range(40))
    in_order_SCHW = torch.cat([batch.images_BCHW for batch in tiny_parts.test.batches()])
    assert torch.equal(images_SCHW, in_order_SCHW[positions_S])
    fewer_SCHW, fewer_S = pool(tiny_parts.test, 8)
    assert torch.equal(fewer_SCHW, in_order_SCHW[fewer_S])
    assert sorted(fewer_S.tolist()) == list(range(0, 40, 5))


def test_training_images_are_not_augmented(tiny_parts):
    plain_SCHW = torch.cat([batch.images_BCHW for batch in tiny_parts.train.plain().batches()])
    images_SCHW, positions_S = pool(tiny_parts.train, 100)
    assert torch.equal(images_SCHW, plain_SCHW[positions_S])
