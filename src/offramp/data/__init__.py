"""Data sets: builders that give train, held-out and test parts, and `load`, which finds them by name."""

import functools
import inspect
from collections.abc import Callable, Mapping

from offramp import config as configuration
from offramp import registry
from offramp.batch import Batch
from offramp.config import DataConfig
from offramp.data.base import SETTINGS, HeldOut, Parts, Split, builder
from offramp.data.cifar import cifar10, cifar100
from offramp.data.class_folders import folder, imagenet
from offramp.data.fashion import fashion_mnist
from offramp.data.garment_subset import garments
from offramp.data.inputs import Inputs
from offramp.data.numpy_arrays import arrays
from offramp.data.pairs import fashion_pairs
from offramp.data.sklearn_digits import digits
from offramp.data.torch_data import Given, HeldOutGiven, PartsGiven, as_parts, from_torch, held_out
from offramp.errors import UsageError

REGISTRY: Mapping[str, Callable[..., Parts]] = registry.load(registry.DATA)
"""Every data set that has a name, and its builder."""
KIND = "data set"

__all__ = [
    "REGISTRY",
    "Batch",
    "Given",
    "HeldOut",
    "HeldOutGiven",
    "Inputs",
    "Parts",
    "PartsGiven",
    "Split",
    "arrays",
    "as_parts",
    "builder",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "fashion_pairs",
    "folder",
    "from_torch",
    "garments",
    "held_out",
    "imagenet",
    "load",
]


def load(config: DataConfig) -> Parts:
    """The data set that `config` describes. A setting that the data set has no use for is refused.

    `source` names a builder: a registered one, `folder:PATH`, or `package.module:Name`, a function that returns `Parts`
    and takes what it needs of `root`, `batch_size`, `holdout` and `workers`.
    """
    source = config.source
    kind, _, path = source.name.partition(":")
    known = dict(REGISTRY)
    if kind == "folder":
        if not path:
            raise UsageError("folder needs to know which: folder:PATH.")
        known[source.name] = functools.partial(folder, path)
    # None is no setting: the builder's own default holds.
    settings = {name: getattr(config, name) for name in SETTINGS if getattr(config, name) is not None}
    parameters = inspect.signature(configuration.resolve(source.name, known, KIND)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in settings.items():
        if name not in parameters and not takes_any and value != getattr(DataConfig(), name):
            raise UsageError(f"{KIND} {source.name!r} has no use for {name.replace('_', '-')}={value}; leave it out.")
    parts: Parts = configuration.build(source, known, KIND, Parts, **settings)
    for split in parts.splits():
        split.config = split.config or config
    return parts
