import hashlib
import json

import numpy as np
import pytest

from offramp import data
from offramp.data import Parts
from offramp.data.partition import Cut, share_for_test
from offramp.data.randomness import Purpose, permutation
from offramp.errors import UsageError

IMAGES = np.arange(100 * 4, dtype=np.uint16).astype(np.uint8).reshape(100, 2, 2)
LABELS = np.arange(100) % 4
TEST = IMAGES[:8], LABELS[:8]


def parts(**options: int | None) -> Parts:
    return data.arrays(IMAGES, LABELS, *TEST, **options)  # type: ignore[arg-type]


def test_the_last_entries_of_the_permutation_are_held_out() -> None:
    train, val, test = parts(holdout=21, split_seed=3)
    order = permutation(100, Purpose.HELD_OUT, 3)
    assert np.array_equal(train.indices_S, np.sort(order[:79]))
    assert np.array_equal(val.search.indices_S, order[79:89])  # the first half
    assert np.array_equal(val.certify.indices_S, order[89:])
    assert len(test) == 8


def test_held_out_images_get_test_transforms_and_training_images_do_not() -> None:
    train, val, test = parts(holdout=20)
    assert train.training
    assert not val.search.training
    assert not val.certify.training
    assert not test.training


def test_the_split_depends_on_the_split_seed() -> None:
    assert np.array_equal(parts(holdout=20).train.indices_S, parts(holdout=20, split_seed=0).train.indices_S)
    assert not np.array_equal(parts(holdout=20).train.indices_S, parts(holdout=20, split_seed=1).train.indices_S)


def test_a_larger_holdout_contains_a_smaller() -> None:
    def held_out(holdout: int) -> set[int]:
        return {int(i) for split in parts(holdout=holdout).val.splits() for i in split.indices_S}

    assert held_out(10) < held_out(40)


def test_holdout_0_trains_on_everything() -> None:
    train, val, _ = parts(holdout=0)
    assert len(train) == 100
    assert not val
    with pytest.raises(UsageError, match="holdout=0"):
        _ = val.search


@pytest.mark.parametrize(
    ("usual", "num_images", "expected"),
    [(5000, 50000, 5000), (5000, 5000, 500), (50000, 1281167, 50000), (None, 15, 2)],
)
def test_the_usual_holdout_is_at_most_a_tenth(usual: int | None, num_images: int, expected: int) -> None:
    assert Cut(None, 0, None, usual).num_held_out(num_images) == expected


def test_the_limit_is_on_training_images_before_anything_is_held_out() -> None:
    train, val, test = parts(limit=30, holdout=10)
    kept = {int(i) for split in (train, *val.splits()) for i in split.indices_S}
    assert (len(train), len(val), len(test)) == (20, 10, 8)
    assert kept == {int(i) for i in permutation(100, Purpose.LIMIT)[:30]}
    assert kept < {int(i) for s in parts(limit=60, holdout=0, split_seed=5).splits()[:1] for i in s.indices_S}


def test_the_description_gives_every_part_back_without_this_program() -> None:
    train, val, test = everything = parts(limit=50, holdout=21, split_seed=3)
    saved = json.loads(json.dumps(everything.description()))
    assert (saved["training_images"], saved["limit"], saved["holdout"], saved["split_seed"]) == (100, 50, 21, 3)
    assert saved["search"] == val.search.indices_S.tolist()
    assert saved["certify"] == val.certify.indices_S.tolist()
    pool = np.sort(permutation(100, Purpose.LIMIT)[:50])
    order = pool[permutation(50, Purpose.HELD_OUT, 3)]
    assert saved["permutation_sha256"] == hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert saved["search"] + saved["certify"] == order[-21:].tolist()
    assert saved["parts"]["arrays/train"] == {"images": 29, "fingerprint": train.fingerprint()}
    assert saved["parts"]["arrays/test"] == {"images": 8, "fingerprint": test.fingerprint()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 100}, "holdout=100 leaves nothing to train on: there are 100 training images"),
        ({"holdout": 1}, "holdout=1 cannot be halved"),
        ({"holdout": -2}, "holdout must be a whole number of at least 0, not -2"),
        ({"limit": 101}, "limit=101 is more than the 100 training images"),
        ({"limit": 0}, "limit must be a whole number of at least 1, not 0"),
        ({"limit": "many"}, "limit must be a whole number of at least 1, not 'many'"),
        ({"limit": 2}, "holdout=2 leaves nothing"),
        ({"split_seed": -1}, "split_seed must be a whole number of at least 0"),
    ],
)
def test_impossible_divisions_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parts(**options)


def test_a_fifth_of_each_class_is_test() -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [50, 23, 4, 1, 2])
    np.random.default_rng(0).shuffle(labels)
    train, test = share_for_test(labels)
    assert sorted([*train, *test]) == list(range(80))
    assert np.bincount(labels[test], minlength=5).tolist() == [10, 4, 1, 0, 1]
    again = share_for_test(labels)
    assert np.array_equal(test, again[1])


def test_a_test_set_of_no_images_is_refused() -> None:
    with pytest.raises(UsageError, match="No image is left for a test set"):
        share_for_test(np.arange(40))
