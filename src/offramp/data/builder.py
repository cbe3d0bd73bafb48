"""What all builders of data sets share: they leave their recipe, a `DataConfig`, on what they build."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from offramp.config import DataConfig, Spec
from offramp.data.base import Parts

P = ParamSpec("P")

# Fields of DataConfig that are a builder's arguments.
SETTINGS = ("root", "batch_size", "holdout", "workers", "skip_unreadable")


def builder(function: Callable[P, Parts]) -> Callable[P, Parts]:
    """Make a builder attach the `DataConfig` by which `load` builds the same again.

    The builder is registered under its own name, with hyphens; a `path` argument, made absolute, becomes part of the
    name (`folder:PATH`). What differs from its default and is no field of `DataConfig` stands in `source.args`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build_and_sign(*args: P.args, **kwargs: P.kwargs) -> Parts:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(bound.arguments)
        name = function.__name__.replace("_", "-")
        if "path" in values:
            name = f"{name}:{Path(values.pop('path')).expanduser().resolve()}"
        settings = {key: values.pop(key) for key in SETTINGS if key in values}
        if settings.get("root") is not None:
            settings["root"] = str(settings["root"])
        arguments = {key: value for key, value in values.items() if value != signature.parameters[key].default}
        config = DataConfig(source=Spec(name, arguments), **settings)  # first: it checks the settings
        parts = function(*args, **kwargs)
        for split in parts.splits():
            split.config = config
        return parts

    return build_and_sign
