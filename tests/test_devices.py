import contextlib
import os

import pytest
import torch

from offramp.devices import PendingCopy, borrowed, describe_device, device_named, has_room, sent, with_kernels
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


def test_nothing_is_copied_where_everything_is_here() -> None:
    tensor, cpu = torch.randn(3), torch.device("cpu")
    assert sent(tensor, cpu) is tensor
    assert PendingCopy(tensor).read() is tensor
    assert has_room(cpu, 10**18)


def test_what_is_sent_to_a_gpu_is_pinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Told:
        def pin_memory(self) -> "Told":
            told.append("pinned")
            return self

        def to(self, *args: object, **kwargs: object) -> "Told":
            told.append((*args, kwargs))
            return self

    gpu = torch.device("cuda")
    sent(Told(), gpu)  # type: ignore[arg-type]
    assert told == ["pinned", (gpu, {"non_blocking": True})]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    assert has_room(gpu, 25)
    assert not has_room(gpu, 26)


def test_a_copy_out_of_pinned_memory_is_over_before_it_may_be_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Told:
        is_cuda = False

        def __init__(self, pinned: bool) -> None:
            self.pinned = pinned

        def is_pinned(self) -> bool:
            return self.pinned

        def to(self, device: torch.device, non_blocking: bool = False) -> "Told":
            told.append(("copy", non_blocking))
            return self

        def record_stream(self, stream: str) -> None:
            told.append(("read by", stream))

    class Beside:
        def synchronize(self) -> None:
            told.append("over")

    gpu = torch.device("cuda")
    monkeypatch.setattr("offramp.devices._beside", lambda device: Beside())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the engine")
    borrowed(Told(pinned=False), gpu)  # type: ignore[arg-type]
    assert told == [("copy", False)]
    borrowed(Told(pinned=True), gpu)  # type: ignore[arg-type]
    assert told[1:] == [("copy", True), "over", ("read by", "the engine")]
    tensor = torch.randn(3)
    assert borrowed(tensor, torch.device("cpu")) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_reading_waits_for_what_was_told_before_and_for_nothing_after() -> None:
    left = torch.randn(4096, 4096, device="cuda")
    flag = sent(torch.ones(3), left.device) * 2
    way = PendingCopy(flag)
    done = torch.cuda.Event()
    for _ in range(200):
        left = left @ left
    done.record()
    assert way.read().tolist() == [2, 2, 2]
    assert not done.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_of_a_gpu_are_deterministic_or_found_by_trying_and_then_as_before(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with with_kernels(torch.device("cuda"), deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled() is deterministic
        assert torch.backends.cudnn.benchmark is not deterministic
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark is deterministic
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_kernels_of_a_cpu_are_left_alone() -> None:
    with with_kernels(torch.device("cpu"), deterministic=True):
        assert not torch.are_deterministic_algorithms_enabled()
