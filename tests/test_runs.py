import json
from pathlib import Path

import pytest
import torch

from offramp.backbones import msdnet
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet
from offramp.runs import FORMAT, RunFolder, load, load_weights, start_from
from offramp.storage import save_tensors


def small(damping: bool = False, num_classes: int = 4) -> EarlyExitNet:
    return msdnet(
        exits=2, num_classes=num_classes, damping=damping, channels=4, growth=2, growth_factors=(1, 2), head_channels=8,
        image_size=16, in_channels=1,
    )  # fmt: skip


def run_in(path: Path, network: EarlyExitNet, recipe: bool = True) -> RunFolder:
    folder = RunFolder(path)
    spec = network.spec.to_json() if recipe and network.spec else None
    folder.config.write_text(
        json.dumps({"format": FORMAT, "network": spec, "data": None, "objective": {}, "training": {}})
    )
    save_tensors(folder.weights, network.state_dict())
    return folder


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


def test_weights_that_do_not_fit_name_what_does_not(tmp_path: Path) -> None:
    tensors = small(num_classes=5).state_dict()
    del tensors["exits.0." + next(iter(small().exits[0].state_dict()))]
    tensors["extra"] = torch.zeros(1)
    with pytest.raises(UsageError, match=r"1 missing, such as exits.*1 unknown, such as extra; \d of another shape"):
        load_weights(small(), tensors, tmp_path / "w")


def test_starting_from_weights_without_the_neuron_leaves_only_its_row_fresh(tmp_path: Path) -> None:
    plain, damped = small(), small(damping=True)
    fresh = {name: value.clone() for name, value in damped.state_dict().items()}
    save_tensors(tmp_path / "w.safetensors", plain.state_dict())
    start_from(damped, tmp_path / "w.safetensors")
    widened = 0
    for name, value in damped.state_dict().items():
        there = plain.state_dict()[name]
        assert torch.equal(value[: len(there)] if value.dim() else value, there)
        if value.shape != there.shape:
            widened += 1
            assert torch.equal(value[-1], fresh[name][-1])
    assert widened == 2 * plain.num_exits  # weight and bias of every exit's Linear
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(damped.eval()(images)[..., :4], plain.eval()(images))


def test_metrics_are_read_line_by_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    folder.metrics.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert folder.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
