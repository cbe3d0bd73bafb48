"""A finished run, opened for a command: network, data, costs, records of logits, what a file has to become.

Everything is checked against what the run was trained on.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import replace

from offramp import data
from offramp.commands.options import OnDevice, RecordsLogits
from offramp.commands.sample import CALIBRATED_ON, pool
from offramp.costs import Cost, cost
from offramp.data import Inputs, Parts, PartsGiven, Split
from offramp.devices import device_named
from offramp.errors import UsageError
from offramp.evaluation import Record, recorded
from offramp.evaluation.record import Forward
from offramp.files import RunConfig, RunFolder, load
from offramp.network import EarlyExitNet
from offramp.runtime import calibrate
from offramp.runtime.backends import make_program
from offramp.runtime.program import Form, Program
from offramp.show.watch import Progress


class OpenRun:
    """A finished run: its folder, configuration, network and data; see `offramp.commands` for `parts` and `into`."""

    def __init__(self, options: OnDevice, parts: PartsGiven | None = None, into: EarlyExitNet | None = None) -> None:
        self.folder = RunFolder(options.run, options.allow_code)
        self.config = self.folder.read_config()
        network = load(self.folder.path, into, allow_code=options.allow_code)
        self.network = network.to(device_named(options.device))
        if not os.access(self.folder.path, os.W_OK):
            raise UsageError(f"{self.folder.path} is not writable; logits of its data are kept in records/ there.")
        as_splits = None if parts is None else data.as_parts(parts, network.num_classes)
        self.parts = parts_of(self.folder, self.config, options.root, as_splits)
        self._batch_size = options.batch_size if isinstance(options, RecordsLogits) else None

    @functools.cached_property
    def cost(self) -> Cost:
        """What the network costs on the run's images."""
        return cost(self.network, self.parts.test.image_shape)

    def no_thresholds(self) -> str | None:
        """Why nothing can be said of thresholds; None where something can."""
        if self.network.num_exits == 1:
            return "The network has one exit, so no image can leave early."
        if not self.parts.val.splits():
            return "Thresholds are found on held-out images, and with holdout=0 there are none: train with a holdout."
        return self._other_images("search")

    def check_thresholds(self) -> None:
        """Refuse a run of whose thresholds nothing can be said."""
        if (why := self.no_thresholds()) is not None:
            raise UsageError(why)

    def record(self, split: Split, name: str, progress: Progress | None, *, program: Program | None = None) -> Record:
        """Logits on a part, of a program or of the network as it is; kept in the run's folder by this name.

        They are used again as long as weights, images and the program's form and scales are the same.
        """
        forward, kept_as = None, name
        if program is not None:
            form = program.form
            forward = Forward(f"{form} {program.scales or ''}".strip(), program.logits)
            kept_as = f"{name}-{form.backend}-{form.precision}"
        return recorded(
            self.network,
            split,
            self.folder.record(kept_as),
            forward=forward,
            batch_size=self._batch_size,
            progress=named(progress, name),
        )

    def held_out(self, *names: str, progress: Progress | None, program: Program | None = None) -> list[Record]:
        """Records of `search` or `certify`; held-out images that are others than in training are refused."""
        self._check_held_out(*names)
        return [self.record(getattr(self.parts.val, name), name, progress, program=program) for name in names]

    def program(self, form: Form | None) -> Program | None:
        """What runs the network in a form; None: it is run as it is. Scales of int8 are found on `search`."""
        if form in (None, Form()):
            return None
        self._check_held_out("search", "certify")  # before files are made
        if form.precision == "int8":
            calibrate(self.network, pool(self.parts.val.search, CALIBRATED_ON).images_SCHW)
        return make_program(self.network, form)

    def _check_held_out(self, *names: str) -> None:
        if (why := self._other_images(*names)) is not None:
            raise UsageError(why)

    def _other_images(self, *names: str) -> str | None:
        """That the held-out halves of these names, or `search`, hold other images than in training; None: the same."""
        before = {"search": self.config.images.get("search"), **self.folder.read_split().fingerprints}
        if all(before.get(n) in (None, getattr(self.parts.val, n).fingerprint()) for n in {"search", *names}):
            return None
        return f"The images held out now are not those that were held out when {self.folder.path} was trained."


def parts_of(folder: RunFolder, config: RunConfig, root: str | None, parts: Parts | None = None) -> Parts:
    """The data that a run was trained on, built again unless `parts` are they; other training images are refused."""
    if parts is None:
        if config.data is None:
            raise UsageError(
                f"{folder.path} was trained on data made by hand, which its folder cannot bring back. From Python hand "
                f"them over: offramp.commands.evaluate(EvaluateOptions({str(folder.path)!r}), parts=...); others "
                "likewise."
            )
        with folder.naming(config):
            parts = data.load(config.data if root is None else replace(config.data, root=root))
    if config.images.get("train", parts.train.fingerprint()) != parts.train.fingerprint():
        raise UsageError(f"The training images found now are not those that {folder.path} was trained on.")
    return parts


def inputs_of(folder: RunFolder, config: RunConfig, root: str | None) -> Inputs:
    """How a file becomes the input of a run's network: what `input.json` says.

    A run from before there was such a file builds its data once, and gets one.
    """
    if folder.input.is_file():
        return Inputs.load(folder.input)
    call = f"offramp.commands.predict(PredictOptions({str(folder.path)!r}, ...), inputs=offramp.data.Inputs(...))."
    if config.data is None:
        raise UsageError(
            f"{folder.path} does not say how an image file becomes its network's input: it was trained on data made by "
            f"hand, and has no {folder.input.name}. From Python: {call}"
        )
    parts = parts_of(folder, config, root)
    inputs = parts.train.inputs()
    if inputs is None:
        raise UsageError(
            f"There is no known way from an image file to the input of {folder.path}: the images of {parts.train.name} "
            f"are not 8-bit pixels, grey or RGB, or their Split does not say `inputs`. From Python: {call}"
        )
    if os.access(folder.path, os.W_OK):
        inputs.save(folder.input)
    return inputs


def named(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """`progress` for the part of this name."""
    return None if progress is None else functools.partial(progress, name)
