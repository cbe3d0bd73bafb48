import sys
from types import ModuleType

import numpy as np
import pytest

from offramp import DataConfig, Spec, data
from offramp.data import Parts
from offramp.errors import UsageError


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    def halves(*, batch_size: int = 64, holdout: int = 10, shade: int = 3) -> Parts:
        images = np.full((60, 4, 4), shade, dtype=np.uint8)
        return data.arrays(images, np.arange(60) % 2, batch_size=batch_size, holdout=holdout)

    module = ModuleType("own_data")
    module.halves = halves  # type: ignore[attr-defined]
    module.nothing = lambda: 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_data", module)
    return module


def test_the_default_is_digits() -> None:
    parts = data.load(DataConfig())
    assert parts.train.name == "digits/train"
    assert parts.train.config == DataConfig()


def test_settings_and_arguments_reach_the_builder() -> None:
    config = DataConfig(source=Spec("digits", {"image_size": 24, "split_seed": 3}), batch_size=32, holdout=100)
    train, val, _ = data.load(config)
    assert (train.image_shape, train.batch_size, len(val)) == ((1, 24, 24), 32, 100)
    assert train.config == config


def test_arguments_equal_to_the_defaults_leave_no_trace() -> None:
    assert data.load(DataConfig(source=Spec("digits", {"image_size": 16}))).train.config == DataConfig()


@pytest.mark.usefixtures("own_module")
def test_a_data_set_of_ones_own() -> None:
    config = DataConfig(source=Spec("own_data:halves", {"shade": 5}), batch_size=16)
    train, val, test = parts = data.load(config)
    assert (len(train), len(val), len(test), train.batch_size) == (38, 10, 12, 16)
    assert all(split.config == config for split in parts.splits())
    assert not data.load(DataConfig(source=Spec("own_data:halves"), holdout=0)).val


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(source=Spec("cifar11")), "Unknown data set 'cifar11'. Did you mean cifar10.*folder:PATH"),
        (DataConfig(source=Spec("folder")), "folder needs to know which: folder:PATH"),
        (DataConfig(source=Spec("folder:")), "folder needs to know which: folder:PATH"),
        (DataConfig(source=Spec("folder:/no/where")), "There is no folder /no/where"),
        (DataConfig(source=Spec("digits", {"size": 3})), "has no argument 'size'"),
        (DataConfig(workers=2), "data set 'digits' has no use for workers=2; leave it out"),
        (DataConfig(root="there"), "data set 'digits' has no use for root=there"),
        (DataConfig(source=Spec("own_data:halves"), workers=2), "has no use for workers=2"),
        (DataConfig(source=Spec("own_data:nothing"), batch_size=3), "has no use for batch-size=3"),
        (DataConfig(source=Spec("own_data:nothing")), "gives a int, not an offramp.data.base.Parts"),
        (DataConfig(source=Spec("own_data:halfs")), "module 'own_data' has no 'halfs'"),
    ],
)
def test_what_cannot_be_loaded_says_why(config: DataConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        data.load(config)
