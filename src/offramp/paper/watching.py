"""Data whose held-out part is the test set: for the one row of the paper whose epoch was chosen on it (Table 3).

Nothing that is trained changes: no image is held out, and training only watches. What such a run says of its best epoch
is selected on test and has to be labelled so.
"""

import dataclasses
from typing import Any

from offramp import data
from offramp.config import DataConfig, Spec
from offramp.data import HeldOut, Parts, Split


class _Watched(HeldOut):
    """The test set where training looks for images to watch; there is nothing to certify with."""

    def __init__(self, test: Split) -> None:
        super().__init__()
        self._search = test


def on_test(
    root: str | None = None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    skip_unreadable: bool = False,
    source: str,
    **arguments: Any,
) -> Parts:
    """The data set `source` with nothing held out, watched on its test set after every epoch."""
    named = DataConfig(
        source=Spec(source, arguments),
        root=root,
        batch_size=batch_size,
        holdout=0,
        workers=workers,
        skip_unreadable=skip_unreadable,
    )
    parts = data.load(named)
    for split in parts.splits():
        split.config = None  # `load` signs what it returns with the configuration that names this function
    return parts._replace(val=_Watched(parts.test))


def watched(source: Spec) -> Spec:
    """`source`, watched on its test set."""
    return Spec(f"{__name__}:{on_test.__name__}", {"source": source.name, **source.args})


def plain(config: DataConfig) -> DataConfig:
    """The configuration of the data that `watched` data are made of; any other as it is."""
    if config.source.name != f"{__name__}:{on_test.__name__}":
        return config
    arguments = {key: value for key, value in config.source.args.items() if key != "source"}
    return dataclasses.replace(config, source=Spec(config.source.args["source"], arguments), holdout=0)
