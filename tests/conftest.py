"""What all tests share: a fixed seed, one thread each (two processes on two cores), the check of interrupted runs."""

import contextlib
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from offramp.runs import RunFolder

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of runs made here stays here; and runs made by hand may name code of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("OFFRAMP_ALLOW_CODE", __name__.partition(".")[0])
        yield


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def operators_once() -> Iterator[None]:
    """torch.onnx makes its table of operators anew for every export, half of the time of a small one: here once."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):  # where it is, is torch's own affair
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def script() -> Callable[[Path], ModuleType]:
    """Loads a script that is in no package."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Checks that a run ends with the same bytes though its plug is pulled on the way and it is started again.

    `check(fit, of, method, at)`: `fit(out)` trains into the folder `tmp_path / out`; the plug is pulled at call number
    `at` of a method of the class `of`. With `checkpoint` the last checkpoints have to be equal too. Gives the folder of
    the run that was left in peace.
    """

    class PlugPulledError(Exception):
        pass

    def check(fit: Callable[[str], object], of: type, method: str, at: int, *, checkpoint: bool = False) -> RunFolder:
        fit("calm")
        calls, original = 0, getattr(of, method)

        def pulled(self: object, *args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise PlugPulledError
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(of, method, pulled)
            with pytest.raises(PlugPulledError):
                fit("resumed")
        fit("resumed")
        calm, resumed = (RunFolder(tmp_path / out) for out in ("calm", "resumed"))
        assert calm.weights.read_bytes() == resumed.weights.read_bytes()
        assert calm.metrics.read_bytes() == resumed.metrics.read_bytes()
        if checkpoint:
            last, again = (sorted(run.checkpoints.iterdir())[-1] for run in (calm, resumed))
            assert last.read_bytes() == again.read_bytes()
        return calm

    return check
