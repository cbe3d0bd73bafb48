"""Checkpoints of the original programs: names, shapes, and the same logits as a second, textbook implementation.

The second implementation reads the original names one by one and keeps every map in a list, as the papers draw it.
`original_parameters.json.gz` holds the names and shapes that the original programs write.
"""

import gzip
import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, interpolate, linear, max_pool2d, relu

from offramp.backbones import msdnet, ranet
from offramp.backbones.originals import load_original, original_names, read_checkpoint
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet

SHAPES = json.loads(gzip.decompress((Path(__file__).parent / "original_parameters.json.gz").read_bytes()))
BIG: dict[str, Any] = {"msdnet7-cifar100": msdnet, "ranet6-cifar100": ranet}
SMALL: dict[str, Any] = {"num_classes": 3, "channels": 4, "growth": 4, "head_channels": 8, "image_size": 20}


def values(shapes: dict[str, Any]) -> "OrderedDict[str, Tensor]":
    """Weights and statistics drawn so that maps neither vanish nor explode."""
    tensors = OrderedDict()
    for name, shape in shapes.items():
        if name.endswith(("running_var", ".1.weight", ".4.weight")) and len(shape) == 1:
            tensors[name] = 0.5 + torch.rand(shape)
        elif len(shape) == 4:
            tensors[name] = torch.randn(shape) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        else:
            tensors[name] = 0.1 * torch.randn(shape)
    return tensors


def original_shapes(network: EarlyExitNet) -> dict[str, Any]:
    state = network.state_dict()
    names = original_names(network)
    return {there: tuple(state[here].shape) for here, there in names.items() if not here.endswith("tracked")}


def save(path: Path, tensors: dict[str, Tensor], prefix: str = "module.") -> Path:
    """As the originals save: everything in one dictionary, names prefixed by data-parallel training."""
    state = OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": [0, 1]}]}
    torch.save(
        {"epoch": 299, "arch": "msdnet", "state_dict": state, "best_prec1": torch.tensor(75.0), "optimizer": optimizer},
        path,
    )
    return path


# The textbook implementation. `t` holds the tensors by their original names.


def unit(t: dict[str, Tensor], conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = t[f"{conv}.weight"]
    x = conv2d(x, weight, t.get(f"{conv}.bias"), stride, padding=weight.shape[-1] // 2)
    mean, var = t[f"{norm}.running_mean"], t[f"{norm}.running_var"]
    return relu(batch_norm(x, mean, var, t[f"{norm}.weight"], t[f"{norm}.bias"]))


def net(t: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """One convolution, or a 1 x 1 and then one that may be strided."""
    if f"{name}.net.3.weight" in t:
        x = unit(t, f"{name}.net.0", f"{name}.net.1", x)
        return unit(t, f"{name}.net.3", f"{name}.net.4", x, stride)
    return unit(t, f"{name}.net.0", f"{name}.net.1", x, stride)


def numbers(t: dict[str, Tensor], prefix: str) -> list[int]:
    """The numbers that follow `prefix` in names."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return sorted({int(match[1]) for name in t if (match := pattern.match(name))})


def stem(t: dict[str, Tensor], name: str, x: Tensor, strides: list[int]) -> list[Tensor]:
    if f"{name}.layers.0.0.weight" in t:
        x = max_pool2d(unit(t, f"{name}.layers.0.0", f"{name}.layers.0.1", x, 2), 3, 2, 1)
    else:
        x = net(t, f"{name}.layers.0", x)
    maps = [x]
    for i, stride in enumerate(strides, 1):
        maps.append(net(t, f"{name}.layers.{i}", maps[-1], stride))
    return maps


def classify(t: dict[str, Tensor], k: int, x: Tensor) -> Tensor:
    for i in (0, 1):
        x = net(t, f"classifier.{k}.m.{i}", x, stride=2)
    x = avg_pool2d(x, 2).flatten(1)
    return linear(x, t[f"classifier.{k}.linear.weight"], t[f"classifier.{k}.linear.bias"])


def textbook_msdnet(t: dict[str, Tensor], x: Tensor) -> Tensor:
    logits = []
    maps: list[Tensor] = []
    for k in numbers(t, "blocks"):
        for j in numbers(t, f"blocks.{k}"):
            here = f"blocks.{k}.{j}"
            if (k, j) == (0, 0):
                maps = stem(t, here, x, [2] * (len(numbers(t, f"{here}.layers")) - 1))
            elif numbers(t, f"{here}.m"):
                maps = [net(t, f"{here}.m.{i}", y) for i, y in enumerate(maps)]
            else:
                kept = len(numbers(t, f"{here}.layers"))
                finer = [None, *maps][-kept - 1 : -1]
                new = []
                for i, (y, fine) in enumerate(zip(maps[-kept:], finer, strict=True)):
                    layer = f"{here}.layers.{i}"
                    down = [net(t, f"{layer}.conv_down", fine, 2)] if fine is not None else []
                    new.append(torch.cat([y, *down, net(t, f"{layer}.conv_normal", y)], 1))
                maps = new
        logits.append(classify(t, k, maps[-1]))
    return torch.stack(logits)


def to_side_of(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


def textbook_ranet(t: dict[str, Tensor], x: Tensor, scales: tuple[int, ...], halvings: set[tuple[int, int]]) -> Tensor:
    """`halvings`: sub-network and block, from 0."""
    strides = [1 + (fine != coarse) for fine, coarse in zip(scales[:0:-1], scales[-2::-1], strict=True)]
    stems = stem(t, "FirstLayer", x, strides)[::-1]
    logits: list[Tensor] = []
    below: list[list[Tensor]] = []
    for i, y in enumerate(stems):
        handed_up = []
        for n in numbers(t, f"scale_flows.{i}"):
            here = f"scale_flows.{i}.{n}"
            features, fuses = [y], f"{here}.conv_last.net.0.weight" in t
            layers = numbers(t, f"{here}.layers")
            for j in layers:
                stride = 2 if (i, n) in halvings and j == layers[-1] else 1
                own = net(t, f"{here}.layers.{j}.conv_normal", y, stride)
                up = [to_side_of(net(t, f"{here}.layers.{j}.conv_up", below[n][j]), own)] if fuses else []
                y = torch.cat([to_side_of(y, own), *up, own], 1)
                features.append(y)
            if fuses:
                y = torch.cat([y, to_side_of(net(t, f"{here}.conv_last", below[n][-1]), y)], 1)
            if f"{here}.trans.net.0.weight" in t:
                y = net(t, f"{here}.trans", y)
            if not fuses:
                logits.append(classify(t, len(logits), y))
            handed_up.append(features)
        below = handed_up
    return torch.stack(logits)


def doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    scale = theirs.abs().max().item()
    assert 1e-3 < scale < 1e4  # neither vanished nor exploded: the comparison means something
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * scale)


@pytest.mark.parametrize("name", BIG)
def test_names_and_shapes_are_those_of_the_originals(name: str) -> None:
    found = {there: list(shape) for there, shape in original_shapes(BIG[name]()).items()}
    assert found == SHAPES[name]


@pytest.mark.parametrize("name", BIG)
def test_a_whole_checkpoint_gives_the_logits_of_the_original(name: str, tmp_path: Path) -> None:
    tensors = values(SHAPES[name])
    network = BIG[name]()
    load_original(network, save(tmp_path / "checkpoint.pth.tar", tensors))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        ours = network.double().eval()(images)
        if name.startswith("msdnet"):
            theirs = textbook_msdnet(doubles(tensors), images)
        else:
            theirs = textbook_ranet(doubles(tensors), images, (1, 2, 3), {(1, 1), (2, 1), (2, 3)})
    assert_same(ours, theirs)


IMAGENET: dict[str, Any] = {"stem": "imagenet", "head_channels": None, "image_size": 96}


@pytest.mark.parametrize(
    "knobs",
    [
        {"exits": 4},
        {"exits": 3, "growth_factors": (1, 2), "step_mode": "even", "step": 2, "damping": True},
        {"exits": 3, "prune": "min", "bottleneck": False, "in_channels": 1},
        {"exits": 3, **IMAGENET},
    ],
)
def test_small_msdnets_give_the_logits_of_the_textbook(knobs: dict[str, Any], tmp_path: Path) -> None:
    network = msdnet(**{**SMALL, **knobs})
    tensors = values(original_shapes(network))
    load_original(network, save(tmp_path / "c.pth.tar", tensors, prefix=""))
    images = torch.randn(2, *network.image_shape, dtype=torch.float64)
    with torch.no_grad():
        assert_same(network.double().eval()(images), textbook_msdnet(doubles(tensors), images))


@pytest.mark.parametrize(
    ("knobs", "halvings"),
    [
        ({"blocks": 1, "block_step": 1}, {(1, 0), (2, 0), (2, 1)}),
        (
            {"scales": (1, 2, 3, 3), "growth_factors": (4, 2, 1, 1), "step_mode": "even", "step": 3},
            {(1, 1), (2, 1), (2, 3), (3, 3), (3, 5)},
        ),
        ({"blocks": 2, "block_step": 1, "image_size": 23, "damping": True}, {(1, 1), (2, 1), (2, 2)}),
        ({"blocks": 1, "block_step": 1, **IMAGENET}, {(1, 0), (2, 0), (2, 1)}),
    ],
)
def test_small_ranets_give_the_logits_of_the_textbook(
    knobs: dict[str, Any], halvings: set[tuple[int, int]], tmp_path: Path
) -> None:
    network = ranet(**{**SMALL, **knobs})
    tensors = values(original_shapes(network))
    load_original(network, save(tmp_path / "c.pth.tar", tensors))
    images = torch.randn(2, *network.image_shape, dtype=torch.float64)
    with torch.no_grad():
        ours = network.double().eval()(images)
        assert_same(ours, textbook_ranet(doubles(tensors), images, knobs.get("scales", (1, 2, 3)), halvings))


def small() -> EarlyExitNet:
    return msdnet(**SMALL, exits=2, growth_factors=(1, 2))


def test_counters_of_batch_norm_may_be_there_or_not(tmp_path: Path) -> None:
    network = small()
    tensors = values(original_shapes(network))
    load_original(network, save(tmp_path / "without.pth.tar", tensors))
    with_counters = dict(tensors)
    for name in tensors:
        if name.endswith("running_var"):
            with_counters[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    again = small()
    load_original(again, save(tmp_path / "with.pth.tar", with_counters))
    counters = {x.item() for name, x in again.state_dict().items() if name.endswith("tracked")}
    assert counters == {7}
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True))


def test_only_batch_norm_counters_may_be_missing(tmp_path: Path) -> None:
    tensors = values(original_shapes(small()))
    for name in (
        "blocks.0.0.layers.0.net.1.running_var",
        "classifier.1.linear.bias",
        "blocks.1.0.layers.0.conv_normal.net.0.weight",
    ):
        fewer = {key: tensor for key, tensor in tensors.items() if key != name}
        with pytest.raises(UsageError, match=f"1 missing, such as {re.escape(name)}"):
            load_original(small(), save(tmp_path / "c.pth.tar", fewer))


def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth.tar", values(original_shapes(msdnet(**SMALL, exits=3))))
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UsageError, match=r"does not fit this network: .* unknown, such as blocks"):
        load_original(network, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth.tar", values(original_shapes(small())))
    with pytest.raises(UsageError, match=r"4 of another shape: classifier.0.linear.bias is \[3\] there, \[4\] here"):
        load_original(msdnet(**{**SMALL, "num_classes": 4}, exits=2, growth_factors=(1, 2)), path)


def test_networks_of_other_makes_have_no_original(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth.tar", {})
    with pytest.raises(UsageError, match="Only MSDNet and RANet"):
        load_original(EarlyExitNet([torch.nn.Identity()], [torch.nn.Linear(2, 2)]), path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        read_checkpoint(tmp_path / "missing.pth.tar")
    text = tmp_path / "text.pth.tar"
    text.write_text("not a checkpoint")
    empty = tmp_path / "empty.pth.tar"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(OfframpError, match=r"cannot be read as a checkpoint"):
            read_checkpoint(path)
    for number, content in enumerate([{"model": {}}, [torch.zeros(2)], torch.zeros(2), {"state_dict": {"a": 1}}]):
        path = tmp_path / f"{number}.pth.tar"
        torch.save(content, path)
        with pytest.raises(UsageError, match="no checkpoint of MSDNet or RANet"):
            read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_checkpoints_are_refused(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "c.pth.tar"
    state = OrderedDict(values(original_shapes(small())))
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    assert read_checkpoint(path).keys() == state.keys()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(OfframpError, match=r"cannot be read as a checkpoint"):
            read_checkpoint(path)


class Attack:
    def __reduce__(self) -> Any:
        return print, ("run!",)


@pytest.mark.parametrize("content", [Attack(), np.float64(75.0)])
def test_nothing_in_a_file_is_run(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.pth.tar"
    torch.save({"state_dict": {}, "best": content}, path)
    with pytest.raises(OfframpError, match="more than tensors and plain values"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""
