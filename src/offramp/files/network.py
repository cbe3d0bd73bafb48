"""The network of a finished run, from the recipe and the weights in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from offramp.errors import UsageError
from offramp.files.folder import OWNER, RunFolder
from offramp.network import EarlyExitNet, rebuild
from offramp.storage import load_tensors


def load(run: str | Path, into: EarlyExitNet | None = None, *, allow_code: Sequence[str] = ()) -> EarlyExitNet:
    """The trained network of a finished run, in evaluation mode, on the CPU: see `offramp.load`."""
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    if not folder.weights.is_file():
        raise UsageError(f"{folder.path} has no weights yet: the run is not finished. Start the same command again.")
    if into is None:
        if config.network is None:
            raise UsageError(f"The network of {folder.path} was built by hand; pass one of the same make as `into`.")
        with folder.naming(config):
            into = rebuild(config.network)
    tensors, metadata = load_tensors(folder.weights)
    check_owner(folder.weights, metadata)
    load_weights(into, tensors, folder.weights)
    if folder.origin.is_file():
        into.origin = folder.read_origin()
    return into.eval()


def check_owner(file: Path, metadata: Mapping[str, str]) -> None:
    """Refuse a run's weights, final or best, that another run made; a file that stands elsewhere is of no run."""
    folder = RunFolder(file.parent)
    if file not in (folder.weights, folder.best_weights) or not folder.config.is_file():
        return
    if not folder.owns(metadata.get(OWNER)):
        raise UsageError(
            f"{file} is of another run than the config.json beside it. Put back the file that this run wrote, or "
            "remove this one and train again."
        )


def load_weights(network: EarlyExitNet, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put `tensors` into `network`; every name and shape must fit, or the error shows what does not."""
    check_fit(network.state_dict(), tensors, source)
    network.load_state_dict(dict(tensors))


def check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse tensors of other names or shapes than a network's own; the error shows which."""
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name} is {list(tensors[name].shape)} there, {list(own[name].shape)} here"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    problems = [f"{len(missing)} missing, such as {shape_of(own, missing)}"] if missing else []
    problems += [f"{len(unknown)} unknown, such as {shape_of(tensors, unknown)}"] if unknown else []
    problems += [f"{len(shapes)} of another shape: {sorted(shapes)[0]}"] if shapes else []
    if problems:
        raise UsageError(f"{source} does not fit this network: {'; '.join(problems)}.")


def shape_of(tensors: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """`NAME [2, 3]`, of the first name."""
    return f"{names[0]} {list(tensors[names[0]].shape)}"
