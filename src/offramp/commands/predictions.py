"""Predictions of image files, made as they are asked for.

K exits, B images of a batch.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from offramp.costs import cost
from offramp.data import Inputs
from offramp.data.inputs import MAX_MEGAPIXELS
from offramp.devices import with_threads
from offramp.errors import OfframpError
from offramp.policy import Policy
from offramp.results.prediction import Prediction
from offramp.runtime import Engine
from offramp.show.watch import Progress

_WINDOW = 8  # batches after which an image that is still under way is hurried on: answers come in the files' order


class Predictions(Iterator[Prediction]):
    """What `predict` returns: predictions in the order of the files, made as they are asked for.

    Attributes:
        policy: What is followed; None: the last exit answers every image. Read from `policy_file`, if that is not None.
        tuned: Whether the engine runs as the run's `bench.json` found fastest for this policy on this machine; then it
            may leave exits unasked: no image leaves there.
        differs: Why a tuning that is there for this policy is not used.
        asks: The exits that are asked, from 1, the last one included.
        exits_K: Images answered by each exit so far.
        operations_K: Operations spent on an image that leaves at each exit, as a share of the whole network's.
        unreadable: Files that could not be read so far.
        progress: Called now and then with `images`, files read and files in all.
    """

    def __init__(
        self,
        engine: Engine,
        inputs: Inputs,
        files: list[str],
        policy: Policy | None,
        policy_file: Path | None,
        batch_size: int,
        on_unreadable: Callable[[OfframpError], None] | None,
        *,
        tuned: bool = False,
        differs: tuple[str, ...] = (),
        max_megapixels: float = MAX_MEGAPIXELS,
        threads: int | None = None,
    ) -> None:
        self.files, self.policy, self.policy_file = files, policy, policy_file
        self.tuned, self.differs = tuned, differs
        self.asks = tuple(k + 1 for k in engine.asks(engine.stream_plan))
        self.exits_K = [0] * engine.num_exits
        whole = cost(engine.network, inputs.image_shape).exits[-1].operations
        spent_K = engine.operations(engine.stream_plan, inputs.image_shape)
        self.operations_K = [spent / max(whole, 1) for spent in spent_K]
        self.unreadable = 0
        self.progress: Progress | None = None
        self._inputs, self._batch_size, self._on_unreadable = inputs, batch_size, on_unreadable
        self._max_megapixels, self._threads = max_megapixels, threads
        self._under_way: deque[list[str]] = deque()  # the files of each batch that the engine has been given
        self._predictions = self._predict(engine)

    @property
    def mean_operations(self) -> float:
        """Mean of `operations` so far; NaN before the first image."""
        spent = sum(count * share for count, share in zip(self.exits_K, self.operations_K, strict=True))
        return spent / sum(self.exits_K) if any(self.exits_K) else math.nan

    def __next__(self) -> Prediction:
        with with_threads(self._threads):
            return next(self._predictions)

    def _predict(self, engine: Engine) -> Iterator[Prediction]:
        for answers in engine.stream(self._batches(), window=_WINDOW * self._batch_size):
            files = self._under_way.popleft()
            rows = zip(files, *(column_B.tolist() for column_B in answers), strict=True)
            for file, label, k, confidence in rows:
                if math.isnan(confidence):
                    raise OfframpError(
                        f"Exit {k + 1} gives logits that are not finite for {file}: its weights are not."
                    )
                self.exits_K[k] += 1
                name = self._inputs.class_names[label]
                yield Prediction(file, label, name, k + 1, confidence, self.operations_K[k])

    def _batches(self) -> Iterator[Tensor]:
        """The images that can be read, a batch at a time."""
        files: list[str] = []
        images: list[Tensor] = []
        for done, file in enumerate(self.files):
            if self.progress is not None and done % self._batch_size == 0:
                self.progress("images", done, len(self.files))
            try:
                image_CHW = self._inputs.read(file, max_megapixels=self._max_megapixels)
            except OfframpError as error:
                self.unreadable += 1
                if self._on_unreadable is None:
                    raise
                self._on_unreadable(error)
                continue
            files.append(file)
            images.append(image_CHW)
            if len(files) == self._batch_size:
                self._under_way.append(files)
                yield torch.stack(images)
                files, images = [], []
        if files:
            self._under_way.append(files)
            yield torch.stack(images)
