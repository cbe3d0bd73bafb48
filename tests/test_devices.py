import pytest
import torch

from offramp.devices import describe_device, device_named
from offramp.errors import UsageError


def test_the_device_that_is_there_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == device_named("cpu") == torch.device("cpu")
    assert describe_device(device_named("auto")) == "cpu"
    with pytest.raises(UsageError, match="no CUDA GPU here"):
        device_named("cuda:1")
    with pytest.raises(UsageError, match="There is no device 'abacus'"):
        device_named("abacus")
    with pytest.raises(UsageError, match="'meta' is not supported"):
        device_named("meta")


def test_a_gpu_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("auto") == torch.device("cuda")
    assert device_named("cuda:1") == torch.device("cuda:1")
    assert device_named("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="sees 2 CUDA GPUs"):
        device_named("cuda:2")
