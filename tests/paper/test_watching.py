"""The test set watched while training: Table 3's best epoch."""

import dataclasses
from pathlib import Path

import pytest

from offramp import data
from offramp.commands.job import work
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.paper.manifest import BestEpoch
from offramp.paper.watching import on_test


def test_watched_data_are_the_same_data() -> None:
    """Trained on is what would be trained on without watching; watched is the test set, and nothing is certified."""
    parts, usual = on_test(source="digits", limit=200), data.digits(limit=200, holdout=0)
    assert parts.train.fingerprint() == usual.train.fingerprint()
    assert parts.val.search.fingerprint() == usual.test.fingerprint()
    assert parts.val.splits() == (parts.test,)
    with pytest.raises(UsageError, match="no `certify`"):
        _ = parts.val.certify


def test_watching_the_test_set_changes_nothing_that_is_trained(rows, tmp_path: Path) -> None:
    watched = rows("table3")["MSDNet last only (best epoch)"].with_seed(0)
    made = work(watched, tmp_path / "watched")
    plain = dataclasses.replace(
        watched, data=dataclasses.replace(watched.data, source=Spec("digits", {"limit": 200}), holdout=0)
    )
    other = work(plain, tmp_path / "plain")
    assert made.file.weights == other.file.weights
    (exit,) = made.file.exits
    assert made.file.best_epoch == BestEpoch(1, pytest.approx((exit.top1,)))  # of one epoch the last
    assert other.file.best_epoch is None
