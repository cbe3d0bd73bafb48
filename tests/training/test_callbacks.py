import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import offramp
from offramp.config import TrainConfig
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder
from offramp.objectives import Damping
from offramp.training import Callback, MLflow, TensorBoard, WandB
from offramp.training.callbacks import scalars
from offramp.training.loop import Loop

QUICK = TrainConfig(epochs=2, lr=0.05)


def network() -> offramp.EarlyExitNet:
    torch.manual_seed(0)
    exits = [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)]
    return offramp.EarlyExitNet([nn.ReLU(), nn.ReLU()], exits, damping=True)


def fit(out: Path | None, *callbacks: Callback, config: TrainConfig = QUICK) -> offramp.EarlyExitNet:
    images = TensorDataset(torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 2)
    return offramp.fit(network(), Damping(), images, images, config, out=out, callbacks=callbacks)


class Told(Callback):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def begin(self, run: Any) -> None:
        self.calls.append(("begin", run["training"]["epochs"]))

    def epoch(self, metrics: Any) -> None:
        self.calls.append(metrics)

    def end(self, finished: bool) -> None:
        self.calls.append(("end", finished))


def test_a_callback_is_told_of_start_epochs_and_end(tmp_path: Path) -> None:
    told = Told()
    fit(tmp_path / "run", told, Callback())
    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert told.calls == [("begin", 2), *lines, ("end", True)]
    fit(tmp_path / "run", told)  # finished: nothing to watch
    assert len(told.calls) == 4


def test_an_error_ends_those_that_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Callback):
        def begin(self, run: Any) -> None:
            raise OfframpError("no server")

    told = Told()
    with pytest.raises(OfframpError, match="no server"):
        fit(tmp_path / "run", told, Broken())
    assert told.calls == [("begin", 2), ("end", False)]
    monkeypatch.setattr(Loop, "_one_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(None, told)
    assert told.calls[2:] == [("begin", 2), ("end", False)]


def test_numbers_have_names_for_every_exit() -> None:
    line = {"epoch": 1, "loss": 2.0, "search_top1": [50.0, 60.0], "search_nll": None, "stats": {"a": [None, 0.5]}}
    assert scalars(line) == {
        "epoch": 1,
        "loss": 2.0,
        "search_top1/exit1": 50.0,
        "search_top1/exit2": 60.0,
        "a/exit2": 0.5,
    }


def test_tensorboard_has_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(None, TensorBoard(tmp_path / "curves"))
    read = EventAccumulator(str(tmp_path / "curves"))
    read.Reload()
    assert [event.step for event in read.Scalars("train_top1/exit2")] == [1, 2]


def test_mlflow_has_every_epoch_in_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    fit(None, MLflow(store, "mine", "first"))
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "search_top1/exit1")] == [1, 2]
    assert "Damping" in run.data.params["objective"]
    with pytest.raises(OfframpError, match="MLflow: "):
        fit(None, MLflow("nonsense://x"))


def test_wandb_has_every_epoch_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    fit(None, WandB(project="mine", mode="offline", dir=str(tmp_path)))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"search_top1/exit2" in file.read_bytes()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_missing_is_said_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"offramp\[{name}\]"):
        fit(tmp_path / "run", config=TrainConfig(**{name: True}))
    assert not (tmp_path / "run").exists()


def test_without_a_folder_the_same_is_learned_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    trained = fit(None)
    said = capsys.readouterr().err
    assert said.count("cannot be continued") == 1
    assert str(tmp_path) not in said
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "state").exists()
    kept = fit(tmp_path / "run")
    for mine, theirs in zip(trained.state_dict().values(), kept.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("setting", [{"keep_best": True}, {"tensorboard": True}, {"xray": 4}])
def test_what_needs_a_folder_is_refused_without(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="pass out=FOLDER"):
        fit(None, config=TrainConfig(**setting))
