import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offramp import data
from offramp.config import DataConfig, Spec
from offramp.files import Ancestor, RunFolder
from offramp.json_files import convert
from offramp.training.provenance import _shared, ancestor, ancestors, named

PIXELS, LABELS = np.random.default_rng(0).integers(0, 255, (200, 2, 2)).astype(np.uint8), np.arange(200) % 2


def parts(**cut) -> data.Parts:
    return data.arrays(PIXELS, LABELS, **cut)


def told(of: data.Parts, name: str | None = "digits", *, fingerprints: bool = False) -> Ancestor:
    images = {part.name.rpartition("/")[2]: part.fingerprint() for part in of.splits()} if fingerprints else {}
    return convert(
        {"through": "init", "run": "a", "data": name, "division": of.val.division, "images": images}, Ancestor, ""
    )


CUTS = [
    {"holdout": 0},
    {"holdout": 40},
    {"holdout": 20},
    {"holdout": 60},
    {"holdout": 40, "split_seed": 1},
    {"holdout": 0, "limit": 50},
    {"holdout": 40, "limit": 100},
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("limit", [None, 120])
def test_what_was_trained_on_is_counted_image_by_image(cut, limit) -> None:
    ours, theirs = parts(holdout=40, limit=limit), parts(**cut)
    shared = len(np.intersect1d(theirs.train.indices_S, ours.val.certify.indices_S))
    assert _shared(told(theirs), "digits", ours) == shared


def test_what_cannot_be_known_is_not_said_to_be_clean() -> None:
    ours, theirs = parts(holdout=40), parts(holdout=0)
    assert _shared(told(theirs, None), "digits", ours) is None  # made by hand
    assert _shared(told(theirs, "folder:a"), "digits", ours) is None
    assert _shared(told(theirs, "cifar10"), "digits", ours) == 0
    assert _shared(replace(told(theirs), division=None), "digits", ours) is None
    assert _shared(Ancestor("init", unknown="a.pth"), "digits", ours) is None
    others = told(data.arrays(PIXELS[:190], LABELS[:190], holdout=0))
    assert _shared(others, "digits", ours) is None  # as many as it was then, or is now: other images


def test_the_same_images_are_known_by_what_they_are() -> None:
    assert _shared(told(parts(holdout=40), None, fingerprints=True), None, parts(holdout=40)) == 0
    assert _shared(told(parts(holdout=0), None, fingerprints=True), None, parts(holdout=40)) is None


def test_a_name_is_of_images_and_not_of_their_division() -> None:
    def name(source: str, **args) -> str | None:
        return named(DataConfig(source=Spec(source, args)))

    assert name("digits", limit=5) == name("digits") == "digits"
    assert name("package.module:make", holdout=5) == name("package.module:make") != name("package.module:make", seed=1)
    assert name("folder:a") == name(f"folder:{Path('a').resolve()}") != name("folder:b")
    assert named(None) is None


def run(path: Path, origin: dict | None = None, **config) -> RunFolder:
    path.mkdir()
    whole = {
        "format": 1,
        "data": None,
        "network": None,
        "objective": {"name": "cross-entropy"},
        "training": {},
        **config,
    }
    (path / "config.json").write_text(json.dumps(whole))
    if origin is not None:
        (path / "origin.json").write_text(json.dumps(origin))
    return RunFolder(path)


def test_ancestors_of_ancestors_are_kept_and_those_of_which_nothing_is_said_are_unknown(tmp_path: Path) -> None:
    run(tmp_path / "oldest", origin={"init": {"file": "foreign.pth"}})
    oldest = ancestor("init", tmp_path / "oldest")
    collaborates = {"name": "offramp.backbones.collaboration:collaboration", "args": {}}
    middle = run(tmp_path / "middle", {"ancestors": [one.to_json() for one in oldest]}, network=collaborates)
    found = [(one.through, one.run, one.unknown) for one in ancestor("teacher", middle.path)]
    assert found == [
        ("teacher", "middle", None),
        ("init of middle", "oldest", None),
        ("init of oldest of middle", None, "foreign.pth"),
        ("network of middle", None, "the run it collaborates in"),
    ]
    plain = run(tmp_path / "plain")
    assert ancestors(plain, plain.read_config()) == []
