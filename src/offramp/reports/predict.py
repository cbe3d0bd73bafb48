"""A finished run, used: the class of any image file, from as early an exit as the policy lets it leave.

K exits, B images of a batch.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from offramp.costs import cost
from offramp.data import Inputs
from offramp.data.inputs import MAX_MEGAPIXELS, check_megapixels
from offramp.devices import device_named
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.reports.image_files import find_images
from offramp.reports.loading import Progress, given_policy, inputs_of
from offramp.runs import RunFolder, load, read_json
from offramp.runtime import Engine, Tuning
from offramp.runtime.program import check_form
from offramp.runtime.tuning import adopt

_WINDOW = 8  # batches after which an image that is still under way is hurried on: answers come in the files' order


@dataclass(frozen=True)
class Prediction:
    """What a network answers for one file.

    Attributes:
        file: Its path.
        label: The class, from 0.
        class_name: The class's name.
        exit: The exit that answered, from 1.
        confidence: Its confidence, in the units of the policy's measure.
        operations: Operations spent, in units of those it takes to run straight to the last exit and ask no other.
    """

    file: str
    label: int
    class_name: str
    exit: int
    confidence: float
    operations: float


class Predictions(Iterator[Prediction]):
    """What `predict` returns: predictions in the order of the files, made as they are asked for.

    Attributes:
        files: The files, all of them.
        policy: What is followed, but for exits that a tuning leaves unasked; None: the last exit answers every image.
        policy_file: Where it was read, if it was.
        tuned: Whether the engine runs as was found to be fastest for this policy on this machine, by the run's
            `bench.json`. It may then leave exits unasked: such an exit takes nobody.
        asks: The exits that are asked, from 1, the last one included.
        differs: Why a tuning that is there for this policy is not used: what is other here than where it was made; or
            that it is in bf16 and the policy has a certificate.
        exits_K: Images answered by each exit so far.
        operations_K: Operations spent on an image that leaves at each exit, in units of running straight to the last
            exit and asking no other; the heads asked on the way may take the last one above 1.
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
        progress: Progress | None,
        tuned: bool = False,
        differs: tuple[str, ...] = (),
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> None:
        self.files, self.policy, self.policy_file = files, policy, policy_file
        self.tuned, self.differs = tuned, differs
        self.asks = tuple(k + 1 for k in engine.asks(engine.stream_plan))
        self.exits_K = [0] * engine.num_exits
        straight = cost(engine.network, inputs.image_shape).path[-1].operations
        spent_K = engine.operations(engine.stream_plan, inputs.image_shape)
        self.operations_K = [spent / max(straight, 1) for spent in spent_K]
        self.unreadable, self.progress = 0, progress
        self._inputs, self._batch_size, self._on_unreadable = inputs, batch_size, on_unreadable
        self._max_megapixels = max_megapixels
        self._under_way: deque[list[str]] = deque()  # the files of each batch that the engine has been given
        self._predictions = self._predict(engine)

    @property
    def mean_operations(self) -> float:
        """Mean of `operations` so far; NaN before the first image."""
        spent = sum(count * share for count, share in zip(self.exits_K, self.operations_K, strict=True))
        return spent / sum(self.exits_K) if any(self.exits_K) else math.nan

    def __next__(self) -> Prediction:
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


def predict(
    run: str | Path,
    images: Iterable[str | Path],
    *,
    policy: Policy | str | Path | None = None,
    inputs: Inputs | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    device: str = "auto",
    batch_size: int = 64,
    max_megapixels: float = MAX_MEGAPIXELS,
    on_unreadable: Callable[[OfframpError], None] | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """The class of each image file, by a finished run's network that lets images leave early.

    Everything is checked and loaded before this returns; images are read, a batch at a time, as predictions are asked
    for. Where `bench` tuned an engine for this policy on this machine, the engine runs so.

    Args:
        run: The run's folder.
        images: Files, and folders, which are searched recursively; see `find_images`.
        policy: Who leaves where: a policy or its file. Default: `policy.json` in the run's folder, and without one the
            last exit answers every image.
        inputs: How a file becomes the network's input, for a run that does not say it.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files; used only for a run that has no `input.json`.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        batch_size: Images read before the network goes on.
        max_megapixels: An image of more million pixels, by its header, cannot be read.
        on_unreadable: Called with the error of each file that cannot be read, which is then passed over. Without it the
            error is raised.
        progress: Called now and then with `images`, files read and files in all.

    Raises:
        UsageError: No run, an unfinished one, a path that is not there, a policy for other weights, a run whose input
            no file can become.
        OfframpError: A file that cannot be read, logits that are not finite; both while predictions are made.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
    check_megapixels(max_megapixels)
    files = find_images(images)
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    network = load(folder.path, into, allow_code=allow_code)
    inputs = inputs or inputs_of(folder, config, root)
    _check_fits(inputs, network, folder)
    ready, policy_file = given_policy(policy, folder)
    full = Policy((*[NOBODY] * (network.num_exits - 1), EVERYBODY))
    engine = Engine(network, ready or full, device=device_named(device))
    tuned, differs = _tuned(engine, folder)
    return Predictions(
        engine,
        inputs,
        files,
        ready,
        policy_file,
        batch_size,
        on_unreadable,
        progress,
        tuned,
        differs,
        max_megapixels,
    )


def _tuned(engine: Engine, folder: RunFolder) -> tuple[bool, tuple[str, ...]]:
    """Whether the engine now runs as the run's `bench.json` says, and what differs where that was for another machine.

    What was measured for other weights or another policy, or is damaged, is as good as nothing. What was tuned in
    one form before the policy was certified in another is named.
    """
    try:
        content = read_json(folder.bench)
        tuning = Tuning.from_json(content["tuning"] if isinstance(content, dict) else content)
        try:
            check_form(tuning.form, engine.policy)
        except UsageError:
            return False, (f"{tuning.form}: the certificate is of answers in {engine.policy.certified_form}",)
        differs = adopt(engine, tuning, only_here=True)
    except (UsageError, OfframpError, OSError, KeyError):
        return False, ()
    return not differs, differs


def _check_fits(inputs: Inputs, network: EarlyExitNet, folder: RunFolder) -> None:
    if len(inputs.class_names) != network.num_classes:
        raise UsageError(
            f"{folder.path}: there are {len(inputs.class_names)} class names for {network.num_classes} classes."
        )
    if network.image_shape is not None and tuple(network.image_shape) != tuple(inputs.image_shape):
        raise UsageError(
            f"{folder.path}: the network was made for images of shape {tuple(network.image_shape)}, not "
            f"{tuple(inputs.image_shape)} (channels, height, width)."
        )
