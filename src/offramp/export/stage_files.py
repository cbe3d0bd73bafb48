"""Stages and exits as separate ONNX files, with a small JSON that says how they connect.

For servers that queue images by depth, and for whatever runs stages itself. K exits, N classes.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import offramp
from offramp.data import Inputs
from offramp.errors import OfframpError, UsageError, first_line
from offramp.export.graph import Part, Parts
from offramp.export.int8 import Int8
from offramp.export.tracing import parts
from offramp.json_files import convert, read, write
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.storage import weights_hash, write_atomically

FORMAT = 1  # of the folder
FILE = "stages.json"
OWN = re.compile(r"(stage|exit)-\d+\.(onnx|pt2|aoti\.pt2)")  # names of a stage's and an exit's file


@dataclass(frozen=True)
class StageFile:
    """A stage: its file, and the names of its inputs and outputs.

    Inputs are `images` or outputs of the stage before, by name; outputs stand in the order of the carry.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ExitFile:
    """An exit: its file, which of its stage's outputs it reads (from 0), and the names of its own input and output."""

    file: str
    reads: int
    input: str = "map"
    output: str = "logits"


@dataclass(frozen=True)
class Stages:
    """A folder of stages and exits, as `stages` writes it.

    Attributes:
        damping: Whether the last output of each exit is the damping neuron.
        image_shape: `(C, H, W)` of the images that the first stage takes, normalised as in training.
        weights: Hash of the network's weights (`storage.weights_hash`), in float32 whatever the files are in.
        exits: Logits `[B, N]`, or `[B, N + 1]` with the damping neuron.
        offramp: The version that wrote it.
        classes: Names of the classes; None where they are not known.
        input: How an image becomes the input: `image_shape`, `mean`, `std`, `resizing` (see `data.Inputs`); or None.
        policy: Who leaves where, the fields of a `Policy`; or None.
        origin: Where the trunk's weights come from (`EarlyExitNet.origin`), under the `licence`; or None.
        int8: Of files in 8 bits what that costs, the fields of an `Int8`; None: they are in float32.
    """

    folder: Path
    num_classes: int
    damping: bool
    image_shape: tuple[int, int, int]
    weights: str
    stages: tuple[StageFile, ...]
    exits: tuple[ExitFile, ...]
    offramp: str = offramp.__version__
    classes: tuple[str, ...] | None = None
    input: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] | None = None
    licence: str | None = None
    int8: Mapping[str, Any] | None = None

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.stages)

    def write(self, contents: Iterable[bytes]) -> None:
        """Write stage 1, exit 1, stage 2 and so on, and `stages.json` last: with it the folder is whole.

        Files of stages and exits that an export of before left, and this one does not write, are removed.
        """
        if (self.folder / FILE).is_file():
            (self.folder / FILE).unlink()
        files = [file for one, other in zip(self.stages, self.exits, strict=True) for file in (one.file, other.file)]
        for left in self.folder.iterdir() if self.folder.is_dir() else ():
            if OWN.fullmatch(left.name) and left.name not in files:
                left.unlink()
        for file, content in zip(files, contents, strict=True):
            write_atomically(self.folder / file, content)
        described = {"format": FORMAT, **asdict(self)}
        del described["folder"]
        write(self.folder / FILE, described)

    @classmethod
    def load(cls, folder: str | Path) -> "Stages":
        """Read what `write` wrote, and check that files are there and connect.

        Raises:
            UsageError: No such folder, one of a newer offramp.
            OfframpError: Something that does not fit, or is missing.
        """
        path = Path(folder).expanduser()
        if not (path / FILE).is_file():
            raise UsageError(f"{path} has no {FILE}. `offramp export RUN --to onnx --stages DIR` makes such a folder.")
        content = read(path / FILE, dict[str, Any])
        loaded = convert({**content, "folder": path}, cls, path / FILE, newest=FORMAT)
        loaded._check()
        return loaded

    def parts(self) -> Parts:
        """The stages and exits themselves, where the files are ONNX."""
        import onnx
        from google.protobuf.message import DecodeError  # onnx brings it

        def part(file: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Part:
            try:
                return Part(onnx.load(self.folder / file), inputs, outputs)
            except (OSError, ValueError, DecodeError) as error:
                raise OfframpError(f"{self.folder / file} is damaged or no ONNX file: {first_line(error)}.") from error

        return Parts(
            tuple(part(stage.file, stage.inputs, stage.outputs) for stage in self.stages),
            tuple(part(one.file, (one.input,), (one.output,)) for one in self.exits),
            self.image_shape,
        )

    def _check(self) -> None:
        """Refuse what cannot be run."""
        source = self.folder / FILE
        if len(self.stages) != len(self.exits) or not self.stages or len(self.image_shape) != 3:
            raise OfframpError(f"{source} is damaged: it has {len(self.stages)} stages and {len(self.exits)} exits.")
        before: Sequence[str] = ("images",)
        for k, (stage, leaves) in enumerate(zip(self.stages, self.exits, strict=True), 1):
            unknown = [name for name in stage.inputs if name not in before]
            if unknown:
                raise OfframpError(
                    f"{source} is damaged: stage {k} wants {unknown[0]:.40}, which nothing before it gives."
                )
            if not -len(stage.outputs) <= leaves.reads < len(stage.outputs):
                raise OfframpError(
                    f"{source} is damaged: exit {k} reads output {leaves.reads} of {len(stage.outputs)}."
                )
            before = stage.outputs
        for file in (one.file for files in (self.stages, self.exits) for one in files):
            if not OWN.fullmatch(file):
                raise OfframpError(f"{source} is damaged: {file!r:.40} is no name of a stage's or an exit's file.")
            if not (self.folder / file).is_file():
                raise OfframpError(f"{self.folder} lacks {file}. Export it again.")


def stages(
    network: EarlyExitNet,
    folder: str | Path,
    *,
    policy: Policy | None = None,
    inputs: Inputs | None = None,
    image_shape: Sequence[int] | None = None,
    made: Parts | None = None,
    int8: Int8 | None = None,
) -> Stages:
    """Write each stage and each exit as an ONNX file, and `stages.json`; files that are there are replaced.

    All take any number of rows, also none, on their first axis. The network stays as it is.

    Args:
        policy: Who leaves where, for the server; `stages.json` carries it.
        inputs: How an image becomes the input, and the names of the classes, likewise.
        image_shape: `(C, H, W)`, where the network does not say it.
        made: The network's `parts`, where they are there already.
        int8: What was found of them, where they are `quantized`; `stages.json` carries it.

    Raises:
        UsageError: ONNX is not installed, a part that cannot be traced or uses an operator that ONNX lacks (named), no
            image shape, a policy for another network.
    """
    check_policy(network, policy)
    split = made or parts(network, image_shape)
    names = [(stage.inputs, stage.outputs) for stage in split.stages]
    described = describe(network, Path(folder), split.image_shape, names, "onnx", policy, inputs, int8)
    in_turn = itertools.chain.from_iterable(zip(split.stages, split.exits, strict=True))
    described.write([part.model.SerializeToString(deterministic=True) for part in in_turn])
    return described


def describe(
    network: EarlyExitNet,
    folder: Path,
    image_shape: Sequence[int],
    names: Sequence[tuple[tuple[str, ...], tuple[str, ...]]],
    ending: str,
    policy: Policy | None,
    inputs: Inputs | None,
    int8: Int8 | None = None,
) -> Stages:
    """What `stages.json` is to say of a network; nothing is written.

    `names` are the inputs and the outputs of each stage, `ending` that of the files.
    """
    channels, height, width = image_shape
    origin = network.origin
    return Stages(
        folder=folder.expanduser(),
        num_classes=network.num_classes,
        damping=network.damping,
        image_shape=(channels, height, width),
        weights=weights_hash(network.state_dict()),
        stages=tuple(StageFile(f"stage-{k}.{ending}", ins, outs) for k, (ins, outs) in enumerate(names, 1)),
        exits=tuple(
            ExitFile(f"exit-{k}.{ending}", reads % len(outs))
            for k, (reads, (_, outs)) in enumerate(zip(network.reads, names, strict=True), 1)
        ),
        classes=None if inputs is None else inputs.class_names,
        input=None if inputs is None else {key: value for key, value in asdict(inputs).items() if key != "class_names"},
        policy=None if policy is None else asdict(policy),
        origin=origin,
        licence=None if origin is None else origin.get("licence"),
        int8=None if int8 is None else asdict(int8),
    )


def check_policy(network: EarlyExitNet, policy: Policy | None) -> None:
    """Refuse a policy for another number of exits or other weights."""
    if policy is None:
        return
    if policy.num_exits != network.num_exits:
        raise UsageError(f"This policy is for {policy.num_exits} exits; the network has {network.num_exits}.")
    if policy.certified_form not in (None, "float32"):
        raise UsageError(
            f"The policy's certificate is of answers in {policy.certified_form}, and the file computes in float32: "
            "certify in float32 for it."
        )
    policy.check_network(weights_hash(network.state_dict()))
