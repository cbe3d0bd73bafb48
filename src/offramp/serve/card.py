"""What `GET /v1/model` and `/v1/samples` say of a run, beside what the scheduler knows of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from offramp.certificate import Certificate
from offramp.data.headers import size_of
from offramp.data.inputs import Inputs
from offramp.files import RunConfig, RunFolder
from offramp.json_files import read
from offramp.serve.contract import Served
from offramp.serve.messages import Model, Rung, threshold_of
from offramp.serve.samples import samples

_SAMPLE_BYTES, _SAMPLE_PIXELS = 2**20, 10**7


@dataclass(frozen=True, eq=False)
class Card:
    """Of one run.

    Attributes:
        inputs: How an image becomes the network's input.
        accuracies: Per cent of test images, of each exit.
        data: What it was trained on.
        samples: Content and class, from 0, of image files that came with it.
    """

    inputs: Inputs
    accuracies: tuple[float, ...] | None = None
    data: str | None = None
    samples: tuple[tuple[bytes, int | None], ...] = ()

    @classmethod
    def of(cls, folder: RunFolder, config: RunConfig, inputs: Inputs, weights: str) -> "Card":
        """What is in a run's folder. What `evaluate` found of other weights is left out."""
        accuracies, data = None, None if config.data is None else config.data.source.name
        if folder.evaluation.is_file():
            evaluation = read(folder.evaluation, Evaluated)
            if evaluation.weights == weights:
                accuracies, data = tuple(exit.top1 for exit in evaluation.exits), evaluation.data
        contents = [(_content(sample.path), sample.label) for sample in samples(folder.path, inputs.class_names)]
        shown = tuple((content, label) for content, label in contents if content is not None)
        return cls(inputs, accuracies, data, shown)

    def model(self, served: Served) -> Model:
        """The card as it is sent."""
        certificates = [Certificate.of(policy) for policy in served.ladder]
        return Model(
            name=served.name,
            fingerprint=served.fingerprint,
            class_names=list(served.class_names),
            exits=len(served.operations_K),
            image_shape=list(served.image_shape),
            measure=served.ladder[0].measure.name,
            operations=list(served.operations_K),
            ladder=[
                Rung(
                    number,
                    [*map(threshold_of, policy.thresholds[:-1]), None],
                    promise,
                    None if certificate is None else certificate.promise.risk,
                )
                for number, policy, promise, certificate in zip(
                    range(1, len(served.ladder) + 1), served.ladder, served.promises, certificates, strict=True
                )
            ],
            accuracies=None if self.accuracies is None else list(self.accuracies),
            data=self.data,
            certificate=served.promises[0],
        )


@dataclass(frozen=True)
class EvaluatedExit:
    """What is read of an exit in `evaluation.json`."""

    top1: float


@dataclass(frozen=True)
class Evaluated:
    """What is read of `evaluation.json`."""

    weights: str
    data: str
    exits: tuple[EvaluatedExit, ...]


def _content(path: Path) -> bytes | None:
    """A small image file; None for any other: what a name in the folder leads to need not be one."""
    if path.stat().st_size > _SAMPLE_BYTES:
        return None
    content = path.read_bytes()
    size = size_of(content)
    return content if size is not None and math.prod(size) <= _SAMPLE_PIXELS else None


def media_type(content: bytes) -> str:
    """Of an image file, by its content."""
    return "image/png" if content[:1] == b"\x89" else "image/webp" if content[:4] == b"RIFF" else "image/jpeg"
