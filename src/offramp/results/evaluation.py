"""What was found out about a run, and its form in `evaluation.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import offramp
from offramp.costs import Cost
from offramp.evaluation import Anytime, ExitFigures
from offramp.evaluation.damping import EDGES
from offramp.files import Epoch, RunConfig, RunFolder, Start
from offramp.files.evaluation import FORMAT, EvaluationFile
from offramp.json_files import convert
from offramp.results.bench import Bench
from offramp.results.dynamic import Dynamic


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found out about a run.

    Attributes:
        starts: Of its training.
        test: Every exit on the test set.
        train: Every exit on training images with test transforms; None where they were not asked for.
        dynamic: What thresholds do; None where that cannot be said.
        no_dynamic: Why it cannot be said; None where it can.
        fingerprint: Hash of the test set.
        made_on: Device and version of torch that made the logits.
        bench: What `offramp bench` measured of the policy looked at; None where it did not.
        written: Files written: `evaluation.json`, the report, the plots.
    """

    run: RunFolder
    config: RunConfig
    starts: list[Start]
    metrics: list[Epoch]
    test: Anytime
    train: Anytime | None
    cost: Cost
    dynamic: Dynamic | None
    no_dynamic: str | None
    weights: str
    fingerprint: str
    made_on: str
    bench: Bench | None = None
    written: tuple[Path, ...] = ()

    @property
    def data_name(self) -> str:
        """The data set, as the run's configuration names it."""
        data = self.config.data
        return "data of your own" if data is None else str(data.source)

    def to_json(self) -> dict[str, Any]:
        """What `evaluation.json` holds and scripts may rely on. Accuracies in percent, likelihoods in nats."""
        test = self.test
        return {
            "format": FORMAT,
            "offramp": offramp.__version__,
            "made_on": self.made_on,
            "weights": self.weights,
            "data": self.data_name,
            "split": test.split,
            "images": test.num_images,
            "fingerprint": self.fingerprint,
            "train_images": None if self.train is None else self.train.num_images,
            "renormalised": test.renormalised,
            "exits": [self._exit_json(k) for k in range(len(test.exits))],
            "mean_top1": test.mean_top1,
            "mean_top1_se": test.mean_top1_se,
            "classes": [
                {"name": name, "images": images, "known_from_exit": None if k is None else k + 1}
                for name, images, k in zip(test.class_names, test.class_images, test.knows_from, strict=True)
            ],
            "deep_only": list(test.deep_only),
            "damping_edges": None if test.exits[0].damping is None else list(EDGES),
            "dynamic": None if self.dynamic is None else self.dynamic.to_json(),
            "no_dynamic": self.no_dynamic,
        }

    def summary(self) -> EvaluationFile:
        """What is read again of its file."""
        return convert(self.to_json(), EvaluationFile, self.run.evaluation)

    def _exit_json(self, k: int) -> dict[str, Any]:
        exit, count = self.test.exits[k], self.cost.exits[k]
        return {
            "exit": k + 1,
            "operations": count.operations,
            "multiply_adds": count.multiply_adds,
            "parameters": count.parameters,
            "path_operations": self.cost.path[k].operations,
            **_figures_json(exit),
            "train": None if self.train is None else _figures_json(self.train.exits[k]),
            "class_top1": list(exit.class_top1),
            "reliability": {name: list(values) for name, values in asdict(exit.reliability).items()},
            "damping_histogram": None if exit.damping is None else list(exit.damping.histogram),
        }


def _figures_json(exit: ExitFigures) -> dict[str, Any]:
    damping = exit.damping
    return {
        "top1": exit.top1,
        "top1_se": exit.top1_se,
        "top5": exit.top5,
        "nll": exit.nll,
        "ece": exit.ece,
        "damping": None if damping is None else damping.mean,
        "a": None if damping is None else damping.a,
        "damping_wins": None if damping is None else damping.wins,
    }
