import json
from pathlib import Path

import pytest
import torch

from offramp.backbones import msdnet
from offramp.backbones.collaboration import collaborating
from offramp.backbones.foreign import start_from
from offramp.backbones.prefix import prefix
from offramp.config import Spec
from offramp.errors import OfframpError, UsageError
from offramp.files import FORMAT, OWNER, Epoch, RunFolder, load, load_weights
from offramp.network import EarlyExitNet
from offramp.rules import OneForAll
from offramp.storage import save_tensors
from offramp.training.job import _ancestors

OBJECTIVE = {"name": "offramp.objectives.cross_entropy:CrossEntropy", "args": {}}


def small(damping: bool = False, num_classes: int = 4) -> EarlyExitNet:
    return msdnet(
        exits=2, num_classes=num_classes, damping=damping, channels=4, growth=2, growth_factors=(1, 2), head_channels=8,
        image_size=16, in_channels=1,
    )  # fmt: skip


def run_in(path: Path, network: EarlyExitNet, recipe: bool = True) -> RunFolder:
    folder = RunFolder(path)
    spec = network.spec.to_json() if recipe and network.spec else None
    folder.config.write_text(
        json.dumps({"format": FORMAT, "network": spec, "data": None, "objective": OBJECTIVE, "training": {}})
    )
    save_tensors(folder.weights, network.state_dict(), {OWNER: folder.identity()})
    return folder


def test_a_run_may_have_a_number_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line `teacher=1` is a number, as is `run=1` of a network."""
    monkeypatch.chdir(tmp_path)
    network = msdnet(exits=2, growth_factors=(1,), bottleneck_factors=(1,), image_size=8, num_classes=3)
    (tmp_path / "1").mkdir()
    run_in(tmp_path / "1", network)
    assert prefix(**Spec.parse(["prefix", "run=1", "exits=1"]).args).num_exits == 1
    assert collaborating(**Spec.parse(["collaborating", "run=1"]).args).num_exits == 2
    rule = OneForAll(**Spec.parse(["one-for-all", "teacher=1"]).args)
    rule.check(network)
    assert [one.run for one in _ancestors("teacher", rule.settings()["teacher"])] == ["1"]


def test_a_run_gives_its_network_back(tmp_path: Path) -> None:
    network = small(damping=True)
    loaded = load(run_in(tmp_path, network).path)
    images = torch.randn(2, 1, 16, 16)
    assert not loaded.training
    assert torch.equal(loaded(images), network.eval()(images))


def test_a_network_built_by_hand_is_loaded_into_one_of_the_same_make(tmp_path: Path) -> None:
    network = small()
    run_in(tmp_path, network, recipe=False)
    with pytest.raises(UsageError, match="built by hand; pass one of the same make"):
        load(tmp_path)
    other = small()
    assert load(tmp_path, into=other) is other
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_unfinished_no_run_and_damaged_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run: it has no config.json"):
        load(tmp_path)
    folder = run_in(tmp_path, small())
    folder.weights.unlink()
    with pytest.raises(UsageError, match="has no weights yet"):
        load(tmp_path)
    folder.config.write_text("{")
    with pytest.raises(OfframpError, match="is damaged"):
        load(tmp_path)


def test_data_with_a_setting_of_a_newer_version_are_refused_and_training_of_an_older_is_read(tmp_path: Path) -> None:
    folder = run_in(tmp_path, small())
    config = json.loads(folder.config.read_text())
    source = {"name": "digits", "args": {}}
    folder.config.write_text(json.dumps({**config, "data": {"source": source, "mixing": 2}}))
    with pytest.raises(UsageError, match=r"written by a newer offramp: its config.json has mixing among .* Update"):
        load(tmp_path)
    older = {**config, "format": 1, "data": {"source": source}, "training": {"compile": True}}
    folder.config.write_text(json.dumps(older))
    save_tensors(folder.weights, small().state_dict())  # which said nothing of their run
    assert load(tmp_path).num_exits == 2


def test_what_the_system_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        load(tmp_path / ("x" * 300))
    for call in (load, RunFolder, lambda path: start_from(small(), path)):
        with pytest.raises(UsageError, match="~nobody_here/run is not there"):
            call("~nobody_here/run")
    run_in(tmp_path, small())

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    with pytest.raises(OfframpError, match=r"config.json cannot be read: Permission denied"):
        load(tmp_path)


def test_weights_that_do_not_fit_name_what_does_not(tmp_path: Path) -> None:
    tensors = small(num_classes=5).state_dict()
    del tensors["exits.0." + next(iter(small().exits[0].state_dict()))]
    tensors["extra"] = torch.zeros(1)
    with pytest.raises(
        UsageError, match=r"1 missing, such as exits.*1 unknown, such as extra \[1\]; \d of another shape"
    ):
        load_weights(small(), tensors, tmp_path / "w")


def test_settings_that_are_newer_than_a_run_have_their_defaults(tmp_path: Path) -> None:
    folder = run_in(tmp_path, small())
    assert folder.read_config().values["training"]["freeze_trunk"] is False
    assert folder.read_config().data is None


def test_a_loaded_network_says_where_its_weights_come_from(tmp_path: Path) -> None:
    folder = run_in(tmp_path, small())
    assert getattr(load(tmp_path), "origin", None) is None
    folder.origin.write_text('{"model": "timm/resnet18", "licence": "apache-2.0"}')
    assert load(tmp_path).origin == {"model": "timm/resnet18", "licence": "apache-2.0"}


def test_metrics_are_read_line_by_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    folder.metrics.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert folder.read_metrics() == [Epoch(1), Epoch(2)]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ('{"epoch": 1}\n{"loss": 0.5}\n', "epoch"),
        ('{"epoch": 1, "stats": {"weight": [1, 2]}}\n{"epoch": 2, "stats": {"weight": [1]}}\n', "weight"),
    ],
)
def test_damaged_metrics_are_said(tmp_path: Path, lines: str, named: str) -> None:
    """`evaluate` ended in a KeyError, and in a ValueError of `zip`."""
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(lines)
    with pytest.raises(OfframpError, match=named):
        folder.read_metrics()


def test_weights_of_another_run_are_refused_and_a_folder_may_move(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = run_in(tmp_path / "one", small()), run_in(tmp_path / "other", small())
    config = json.loads(other.config.read_text())
    other.config.write_text(json.dumps({**config, "training": {"lr": 0.2}}))
    save_tensors(other.weights, small().state_dict(), {OWNER: other.identity()})
    assert load(other.path).num_exits == 2
    other.config.write_text(json.dumps({**config, "training": {"lr": 0.2, "keep_best": True}}))  # is free to change
    assert load(other.path.rename(tmp_path / "moved")).num_exits == 2
    moved = RunFolder(tmp_path / "moved")
    moved.weights.write_bytes(one.weights.read_bytes())
    moved.best_weights.write_bytes(one.weights.read_bytes())
    for read in (load, lambda path: start_from(small(), path), lambda _: start_from(small(), moved.best_weights)):
        with pytest.raises(UsageError, match=r"of another run than the config\.json beside it\. Put back"):
            read(moved.path)
    elsewhere = one.weights.rename(tmp_path / "weights.safetensors")  # a file alone is of no run
    assert start_from(small(), elsewhere) is None


def test_weights_without_a_run_are_those_of_an_older_version(tmp_path: Path) -> None:
    folder = run_in(tmp_path, small())
    save_tensors(folder.weights, small().state_dict())
    with pytest.raises(UsageError, match="of another run"):
        load(tmp_path)
    folder.config.write_text(json.dumps({**json.loads(folder.config.read_text()), "format": 1}))
    assert load(tmp_path).num_exits == 2
