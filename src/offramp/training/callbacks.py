"""What watches a training: `Callback`, and three that write into other tools, each an extra of its own."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp.config import TrainConfig
from offramp.errors import OfframpError, first_line, needs
from offramp.files import RunFolder


class Callback:
    """Watches a training, in its first process; a subclass writes what it needs of these. It cannot change it."""

    def begin(self, run: Mapping[str, Any]) -> None:
        """Before the first step of every start. `run` is what `config.json` holds."""

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """After each epoch, with its line of `metrics.jsonl`."""

    def end(self, finished: bool) -> None:
        """At the end of every start; not `finished` after a signal or an error."""


@contextmanager
def called(callbacks: Sequence[Callback], run: Mapping[str, Any]) -> Iterator[None]:
    """`begin` before and `end` after, of all that began."""
    begun: list[Callback] = []
    finished = False
    try:
        for callback in callbacks:
            callback.begin(run)
            begun.append(callback)
        yield
        finished = True
    finally:
        for callback in begun:
            callback.end(finished)


def of_settings(config: TrainConfig, folder: RunFolder) -> list[Callback]:
    """What `--tensorboard`, `--wandb` and `--mlflow` ask for."""
    name = folder.path.resolve().name
    callbacks: list[Callback] = []
    if config.tensorboard:
        callbacks.append(TensorBoard(folder.tensorboard))
    if config.wandb:
        callbacks.append(WandB(project="offramp", name=name))
    if config.mlflow:
        callbacks.append(MLflow(run_name=name))
    return callbacks


class TensorBoard(Callback):
    """Curves for TensorBoard (extra `tensorboard`) in the folder `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        with needs("TensorBoard", "tensorboard"):
            self.library = importlib.import_module("torch.utils.tensorboard")

    def begin(self, run: Mapping[str, Any]) -> None:
        self.writer = self.library.SummaryWriter(str(self.path))

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        for name, value in scalars(metrics).items():
            self.writer.add_scalar(name, value, metrics["epoch"])

    def end(self, finished: bool) -> None:
        self.writer.close()


class WandB(Callback):
    """A run of Weights & Biases (extra `wandb`); `settings` are those of `wandb.init`, such as `mode="offline"`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        with needs("Weights & Biases", "wandb"):
            self.library = importlib.import_module("wandb")

    def begin(self, run: Mapping[str, Any]) -> None:
        self.run = self.library.init(**{"config": dict(run), **self.settings})

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self.run.log(scalars(metrics), step=metrics["epoch"])

    def end(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


_LONGEST = 500  # characters of a parameter that every store of MLflow takes


class MLflow(Callback):
    """A run of MLflow (extra `mlflow`), where `MLFLOW_TRACKING_URI` or `tracking_uri` (`sqlite:///mlflow.db`) says."""

    def __init__(
        self, tracking_uri: str | None = None, experiment: str = "offramp", run_name: str | None = None
    ) -> None:
        self.tracking_uri, self.experiment, self.run_name = tracking_uri, experiment, run_name
        with needs("MLflow", "mlflow"):
            self.library = importlib.import_module("mlflow")

    def begin(self, run: Mapping[str, Any]) -> None:
        try:
            self.client = self.library.MlflowClient(self.tracking_uri)
            known = self.client.get_experiment_by_name(self.experiment)
        except self.library.exceptions.MlflowException as error:
            raise OfframpError(f"MLflow: {first_line(error)}") from error
        experiment = known.experiment_id if known else self.client.create_experiment(self.experiment)
        self.run = self.client.create_run(experiment, run_name=self.run_name).info.run_id
        for part in ("data", "network", "objective", "rule", "training"):
            self.client.log_param(self.run, part, str(run[part])[:_LONGEST])

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        for name, value in scalars(metrics).items():
            self.client.log_metric(self.run, name, value, step=metrics["epoch"])

    def end(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch by name: `loss`, `search_top1/exit2`, statistics of the objective likewise."""
    found: dict[str, float] = {}
    for name, value in {**metrics, **metrics["stats"]}.items():
        values = (
            {f"{name}/exit{k}": item for k, item in enumerate(value, 1)} if isinstance(value, list) else {name: value}
        )
        found |= {key: item for key, item in values.items() if isinstance(item, (int, float))}
    return found
