"""Wrong arguments of every registered network, objective, rule and data set: built, or one clear line, fast."""

import inspect
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import write_png

from offramp import backbones, data, objectives, registry, rules
from offramp.config import DataConfig, Spec
from offramp.errors import OfframpError, SeveralErrors, UsageError

WRONG = ["x", "", [], [1, "x"], {}, None, True, math.nan, math.inf, -1, 0, 0.5, 1e300, 1e-320, 10**9, 10**30]
WRONG += [[10**9], (1,) * 5000]
_SECONDS = 2.0


def _arguments(known: Any, names: Iterator[str] | list[str]) -> list[tuple[str, str]]:
    return [(name, key) for name in names for key in inspect.signature(known[name]).parameters if key != "run"]


PRESETS = ["msdnet7-cifar100", "ranet6-cifar100"]
SMALL = {"msdnet": {"exits": 2}, "ranet": {"scales": (1, 2), "growth_factors": (2, 1)}}  # quickly built
CASES = [("network", *pair) for pair in _arguments(backbones.NETWORKS, list(registry.BACKBONES))]
CASES += [
    pytest.param("network", *pair, marks=pytest.mark.slow)  # their builders stand above
    for pair in _arguments(backbones.NETWORKS, PRESETS)
]
CASES += [("objective", *pair) for pair in _arguments(objectives.OBJECTIVES, list(objectives.OBJECTIVES))]
CASES += [("rule", *pair) for pair in _arguments(rules.RULES, list(rules.RULES))]
CASES += [("data", *pair) for pair in _arguments(data.REGISTRY, ["digits", "folder:PATH"]) if pair[1] != "path"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for i in range(10):
            write_png(torch.full((3, 32, 32), 100 * label + i, dtype=torch.uint8), str(folder / name / f"{i}.png"))
    return folder


def _build(kind: str, name: str, arguments: dict[str, Any], images: Path) -> object:
    if kind == "network":
        if name in ("collaborating", "prefix"):
            arguments = {"run": str(images), "exits": 1, **arguments}
        arguments = {**SMALL.get(name, {}), **arguments}
        return backbones.build(Spec(name, arguments), num_classes=10, image_shape=(3, 32, 32))
    if kind == "data":
        settings = {key: arguments.pop(key) for key in ("root", "batch_size", "holdout", "workers") if key in arguments}
        source = Spec(name.replace("PATH", str(images)), arguments)
        return data.load(DataConfig(source=source, **settings))
    return (objectives if kind == "objective" else rules).build(Spec(name, arguments))


@pytest.mark.parametrize(("kind", "name", "key"), CASES, ids=str)
def test_a_wrong_argument_is_one_line(kind: str, name: str, key: str, images: Path) -> None:
    bad = []
    for value in WRONG:
        started = time.process_time()
        try:
            _build(kind, name, {key: value}, images)
        except SeveralErrors as error:  # a line for each image that is too large, by a limit that may be as low as that
            if not str(error).splitlines()[0].endswith("image files cannot be used:"):
                bad.append(f"{value!r:.40}: {str(error)[:100]}")
        except (UsageError, OfframpError) as error:
            if len(str(error).splitlines()) != 1 or len(str(error)) > 1000:
                bad.append(f"{value!r:.40}: {len(str(error))} characters: {str(error)[:100]}")
        except Exception as error:  # whatever it is, it must not be
            bad.append(f"{value!r:.40}: {type(error).__name__}: {str(error)[:100]}")
        seconds = time.process_time() - started
        if seconds > _SECONDS:
            bad.append(f"{value!r:.40}: {seconds:.1f} s")
    assert not bad
