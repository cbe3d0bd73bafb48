"""A run's network that knows how an image becomes its input."""

from collections.abc import Sequence
from pathlib import Path

from offramp import files
from offramp.data.inputs import Inputs
from offramp.network import EarlyExitNet


def load(run: str | Path, into: EarlyExitNet | None = None, *, allow_code: Sequence[str] = ()) -> EarlyExitNet:
    """The trained network of a finished run, in evaluation mode, on the CPU.

    Its `preprocess` makes images what it expects, where the run's `input.json` says how.

    Args:
        run: The run's folder. It may be a stranger's: of the code that it names only offramp's own networks are built.
        into: A network of the same make, for one that was built by hand and so has no recipe in the run.
        allow_code: Packages whose code the run may name and have called, such as `("mine",)`. Not needed for a run that
            was made here.
    """
    network = files.load(run, into, allow_code=allow_code)
    path = files.RunFolder(run).input
    if path.is_file():
        network.inputs = Inputs.load(path)
    return network
