"""Who is trained on, who is held out: the division of the official training images, drawn once for all seeds."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from offramp.checks import check_whole
from offramp.data.base import HeldOut, Parts, Split
from offramp.data.randomness import IntArray, Purpose, hashes, permutation
from offramp.errors import UsageError

TEST_SHARE = 5  # one image in five, where a data set has no official test set
HOLDOUT_SHARE = 10  # by default at most one training image in ten is held out

MakeSplit = Callable[[str, IntArray, bool], Split]  # (name, positions, training) -> split


@dataclass(frozen=True)
class Cut:
    """How many training images there are to be and which are held out.

    Attributes:
        holdout: Images held out; 0 for none. None: `usual_holdout`, but at most a tenth, and at least two.
        limit: Keep only so many training images, the first of a fixed permutation, before anything is held out.
        usual_holdout: What is usual for the data set; None: a tenth.
    """

    holdout: int | None
    split_seed: int
    limit: int | None
    usual_holdout: int | None = None

    def __post_init__(self) -> None:
        check_whole("split_seed", self.split_seed, 0)
        if self.limit is not None:
            check_whole("limit", self.limit, 1)
        if self.holdout is not None:
            check_whole("holdout", self.holdout, 0)
        if self.holdout == 1:
            raise UsageError("holdout=1 cannot be halved into `search` and `certify`; hold out 2 images or more, or 0.")

    def pool(self, official_S: IntArray) -> IntArray:
        """The training images left by `limit`."""
        if self.limit is None:
            return official_S
        if self.limit > len(official_S):
            raise UsageError(f"limit={self.limit} is more than the {len(official_S)} training images there are.")
        return np.sort(official_S[permutation(len(official_S), Purpose.LIMIT)[: self.limit]])

    def num_held_out(self, num_images: int) -> int:
        """Images held out of `num_images`."""
        tenth = num_images // HOLDOUT_SHARE
        usual = tenth if self.usual_holdout is None else min(self.usual_holdout, tenth)
        holdout = max(2, usual) if self.holdout is None else self.holdout
        if holdout >= num_images:
            raise UsageError(
                f"holdout={holdout} leaves nothing to train on: there are {num_images} training images. "
                f"Hold out fewer, or 0 for none."
            )
        return holdout


def cut_up(official_S: IntArray, cut: Cut) -> tuple[IntArray, IntArray, IntArray]:
    """Positions of train, search and certify out of those of the official training images, in the permutation's order.

    It depends on their number and the cut alone.
    """
    pool_S = cut.pool(official_S)
    holdout = cut.num_held_out(len(pool_S))
    order_S = pool_S[permutation(len(pool_S), Purpose.HELD_OUT, cut.split_seed)]
    train_S, search_S, certify_S = np.split(order_S, [len(order_S) - holdout, len(order_S) - holdout + holdout // 2])
    return train_S, search_S, certify_S


def training_part(official_S: IntArray, cut: Cut) -> IntArray:
    """Positions of the images that are trained on, ascending: all that a data set may take its own numbers from."""
    return np.sort(cut_up(official_S, cut)[0])


def divide(name: str, official_S: IntArray, make: MakeSplit, test: Split, cut: Cut) -> Parts:
    """Train, search and certify out of the official training images, and the given test split.

    The last entries of a random permutation are held out, as the originals do; the first half of them is `search`, the
    second `certify`. The permutation depends on `split_seed` alone, not on a run's seed, so all seeds of an experiment
    share the split.

    Args:
        name: Of the data set; its parts are called `name/train` and so on.
        official_S: Positions of the official training images, ascending.
    """
    train_S, search_S, certify_S = cut_up(official_S, cut)
    order_S, holdout = np.concatenate([train_S, search_S, certify_S]), len(search_S) + len(certify_S)
    division = {
        "training_images": len(official_S),
        "limit": cut.limit,
        "holdout": holdout,
        "split_seed": cut.split_seed,
        "permutation_sha256": hashlib.sha256(order_S.astype("<i8").tobytes()).hexdigest(),
    }
    train = make(f"{name}/train", np.sort(train_S), True)
    if holdout == 0:
        return Parts(train, HeldOut(division=division), test)
    search, certify = make(f"{name}/search", search_S, False), make(f"{name}/certify", certify_S, False)
    return Parts(train, HeldOut(search, certify, division), test)


def share_for_test(labels_S: npt.NDArray[np.integer]) -> tuple[IntArray, IntArray]:
    """Positions for training and for test where there is no official test set.

    A fifth of each class (rounded down, but at least one image of two or more) is test, chosen by a fixed hash of the
    position: the same for everyone, whatever the seeds.
    """
    order_S = np.lexsort((hashes(Purpose.TEST_SHARE, np.arange(len(labels_S))), labels_S))
    classes = np.split(order_S, np.flatnonzero(np.diff(labels_S[order_S])) + 1)
    test = [members[: max(len(members) // TEST_SHARE, min(len(members) - 1, 1))] for members in classes]
    if not any(len(members) for members in test):
        raise UsageError(
            "No image is left for a test set: a fifth of each class is test, and each class has one image."
        )
    is_test_S = np.zeros(len(labels_S), dtype=bool)
    is_test_S[np.concatenate(test)] = True
    return np.flatnonzero(~is_test_S), np.flatnonzero(is_test_S)
