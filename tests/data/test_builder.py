from pathlib import Path

import numpy as np
import pytest

from offramp import DataConfig, Spec
from offramp.data import Parts, arrays, builder
from offramp.errors import UsageError


@builder
def two_tone(
    root: Path | None = None, *, shade: int = 3, batch_size: int = 8, holdout: int | None = None, workers: int = 0
) -> Parts:
    images = np.full((20, 2, 2), shade, dtype=np.uint8)
    return arrays(images, np.arange(20) % 2, batch_size=batch_size, holdout=holdout)


@builder
def folder_like(path: str, *, shade: int = 3) -> Parts:
    return two_tone(shade=shade)


def test_every_part_gets_the_configuration_that_builds_it() -> None:
    parts = two_tone(Path("there"), shade=5, holdout=4, workers=2)
    expected = DataConfig(source=Spec("two-tone", {"shade": 5}), root="there", batch_size=8, holdout=4, workers=2)
    configs = [split.config for split in parts.splits()]
    assert len(configs) == 4
    assert configs[0] != DataConfig()
    assert all(config == configs[0] for config in configs)
    assert configs[0] == expected


def test_defaults_are_no_arguments() -> None:
    assert two_tone(shade=3).train.config.source == Spec("two-tone")  # type: ignore[union-attr]


def test_a_path_is_part_of_the_name_and_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_like("pets").train.config.source == Spec(f"folder-like:{tmp_path / 'pets'}")  # type: ignore[union-attr]


def test_settings_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="batch-size must be a whole number of at least 1, not 0"):
        two_tone(shade="never used", batch_size=0)  # type: ignore[arg-type]
