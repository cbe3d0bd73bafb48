"""What every registered data set promises: parts that fit together, or a line that says what is missing."""

from pathlib import Path

import pytest
import torch

from offramp import data
from offramp.config import DataConfig, Spec
from offramp.errors import OfframpError, UsageError


def no_network(*_args: object, **_more: object) -> None:
    raise OSError("no network")


@pytest.mark.parametrize("name", data.REGISTRY)
def test_a_registered_data_set_gives_parts_or_says_what_is_missing(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    monkeypatch.setattr("offramp.data.fashion.DEBIAN", tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    config = DataConfig(
        source=Spec(name.replace("PATH", str(tmp_path))), batch_size=32, holdout=None if name == "garments" else 20
    )
    try:
        parts = data.load(config)
    except (UsageError, OfframpError) as error:
        message = str(error)
    else:
        check(parts, config)
        return
    assert len(message.splitlines()) == 1
    assert str(tmp_path) in message


def check(parts: data.Parts, config: DataConfig) -> None:
    assert len(parts.train) > 0
    assert len(parts.val) == (config.holdout or len(parts.val.search) + len(parts.val.certify)) > 0
    assert (parts.train.config, parts.test.config) == (config, config)
    for split in parts.splits():
        for batch in split.plain().batches():
            assert batch.images_BCHW.shape[1:] == split.image_shape
            assert batch.images_BCHW.dtype == torch.float32
            assert 0 <= batch.targets_B.min() <= batch.targets_B.max() < split.num_classes
