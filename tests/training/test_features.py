"""What the exits of a frozen trunk read, computed once and kept."""

import dataclasses
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

import offramp
from offramp import data
from offramp.config import Spec, TrainConfig
from offramp.data import Batch, Parts
from offramp.errors import OfframpError, UsageError
from offramp.files import Epoch, RunFolder
from offramp.files.xray import Xray
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy, PowerSqrt
from offramp.rules import RULES, Outcome, TrainingRule, build
from offramp.training import features
from offramp.training.splits import Kept, Unaugmented, is_augmented

QUICK = TrainConfig(epochs=3, lr=0.05, freeze_trunk=True, form="plain")


def images(**more: Any) -> Parts:
    """Two classes told apart by brightness, 8 x 8 pixels; the last batch is smaller."""
    labels = np.arange(60) % 2
    noise = np.random.default_rng(0).integers(0, 100, (60, 1, 8, 8))
    pixels = (noise + 150 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return data.arrays(pixels, labels, **{"batch_size": 16, "holdout": 10, **more})


class Stage(nn.Module):
    """Hands on two maps, the second at half the size, and counts its calls."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1, bias=False)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.calls = 0

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        fine = F.relu(self.norm(self.drop(self.conv(maps[0]))))
        return fine, F.avg_pool2d(fine, 2)


class Deep(nn.Module):
    """A head without a prefix, with dropout of its own."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.conv, self.drop, self.linear = nn.Conv2d(4, 4, 3), nn.Dropout(0.1), nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.drop(F.relu(self.conv(x)).mean((2, 3))))
        return logits


def network(damping: bool = False, seed: int = 0) -> EarlyExitNet:
    torch.manual_seed(seed)
    num = 2 + damping
    pooled = OrderedDict(pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), norm=nn.BatchNorm1d(16))
    heads = [nn.Sequential(OrderedDict(**pooled, linear=nn.Linear(16, num))), Deep(num)]
    heads.append(fx.symbolic_trace(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num))))
    return EarlyExitNet([Stage(c) for c in (1, 4, 4)], heads, damping=damping, reads=(0, 1, 1))


def trained(out: Path, keep: str, parts: Parts, rule: Any = None, **changes: Any) -> EarlyExitNet:
    config = dataclasses.replace(QUICK, keep_features=keep, **changes)
    objective = PowerSqrt() if rule is not None else CrossEntropy()
    return offramp.fit(network(rule is not None), objective, parts.train, parts.val, config, out=out, rule=rule)


def flat(line: Epoch) -> dict[str, Any]:
    """A line of `metrics.jsonl`, its lists as single values."""
    values = {**vars(line), **line.stats}
    lists = {f"{name}{k}": v for name, value in values.items() if isinstance(value, tuple) for k, v in enumerate(value)}
    return lists | {name: value for name, value in values.items() if isinstance(value, (int, float))}


def calls(net: EarlyExitNet) -> list[int]:
    return [stage.calls for stage in net.stages]


@pytest.mark.parametrize("more", [{"holdout": 10}, {"holdout": 0}])
def test_the_stages_run_once_an_image_and_the_outcome_is_that_of_running_them_always(tmp_path: Path, more: Any) -> None:
    parts = images(**more)
    kept, run = (trained(tmp_path / keep, keep, parts) for keep in ("yes", "no"))
    once = parts.train.num_batches + (parts.val.search.num_batches if parts.val else 0)
    blank = 3 if parts.val else 2  # images: does all fit, which shapes, and (of train and search) types
    assert calls(kept) == [once + 1 + blank] * 3
    assert calls(run) == [3 * once + 1] * 3
    assert list(kept.state_dict()) == list(run.state_dict())
    torch.testing.assert_close(kept.state_dict(), run.state_dict())
    one, other = (RunFolder(tmp_path / keep).read_metrics() for keep in ("yes", "no"))
    for mine, theirs in zip(one, other, strict=True):
        assert flat(mine) == pytest.approx(flat(theirs), rel=1e-4)
    loaded = offramp.load(tmp_path / "yes", into=network(seed=5))
    some = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(some), kept(some))


@pytest.mark.parametrize("change", [{"channels_last": True}, {"xray": 5}, {"optimizer": "adamw"}])
def test_other_settings_keep_features_as_well(tmp_path: Path, change: dict[str, Any]) -> None:
    parts = images()
    kept, run = (trained(tmp_path / keep, keep, parts, **change) for keep in ("yes", "no"))
    torch.testing.assert_close(kept.state_dict(), run.state_dict(), rtol=1e-3, atol=1e-4)
    if "xray" in change:
        one, other = (Xray.load(RunFolder(tmp_path / keep).xray) for keep in ("yes", "no"))
        assert torch.equal(one.indices_W, other.indices_W)
        torch.testing.assert_close(one.ce_EKW, other.ce_EKW, rtol=1e-2, atol=1e-2)


def test_in_bf16_features_are_kept_as_they_are(tmp_path: Path) -> None:
    parts = images()
    kept, run = (trained(tmp_path / keep, keep, parts, precision="bf16") for keep in ("yes", "no"))
    torch.testing.assert_close(kept.state_dict(), run.state_dict(), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("standard", "dfs", "meta-gf") else pytest.mark.slow)
        for name in RULES
        if name != "one-for-all"
    ],
)
def test_every_rule_learns_from_features_as_from_images(tmp_path: Path, name: str) -> None:
    parts = images()
    changes = {"epochs": 4, "lr": 0.02}
    kept, run = (
        trained(tmp_path / keep, keep, parts, rule=build(Spec.parse([name])), **changes) for keep in ("yes", "no")
    )
    assert calls(kept)[0] < calls(run)[0] / 2
    torch.testing.assert_close(kept.state_dict(), run.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("in_memory", [2**31, 0])
def test_a_run_continues_with_the_trunk_of_its_checkpoint(
    interrupted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    """The network that is given then is another: weights of `init` are not read again."""
    monkeypatch.setattr(features, "IN_MEMORY", in_memory)
    parts, seeds = images(), iter([0, 0, 7])
    config = dataclasses.replace(QUICK, keep_features="yes", save_every_steps=2, xray=5)

    def fit(out: str) -> None:
        offramp.fit(network(seed=next(seeds)), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / out)

    interrupted(fit, CrossEntropy, "terms", 7, checkpoint=True)


def test_large_features_lie_in_a_file_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = images()
    trained(tmp_path / "memory", "yes", parts)
    monkeypatch.setattr(features, "IN_MEMORY", 100)
    made: list[tuple[str, int]] = []
    from_file = torch.from_file
    monkeypatch.setattr(
        torch, "from_file", lambda name, **more: made.append((name, more["size"])) or from_file(name, **more)
    )
    trained(tmp_path / "file", "yes", parts)
    width = 16 + 4 * 4 * 4 + 4
    assert [size for _, size in made] == [len(parts.train) * width, len(parts.val.search) * width]
    assert {Path(name).parent for name, _ in made} == {tmp_path / "file"}
    assert sorted(path.name for path in (tmp_path / "file").iterdir()) == sorted(
        path.name for path in (tmp_path / "memory").iterdir()
    )
    assert RunFolder(tmp_path / "file").metrics.read_bytes() == RunFolder(tmp_path / "memory").metrics.read_bytes()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "IN_MEMORY", 100)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OfframpError, match=r"no room in .* for a file of 0.0 MiB .*: No space left on device"):
        trained(tmp_path / "run", "yes", images())
    assert not list((tmp_path / "run").glob(".*.part"))


def test_auto_keeps_what_fits_in_memory_and_says_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = images()
    assert calls(trained(tmp_path / "fits", "auto", parts))[0] == 8
    assert "What the exits read of 43 images is computed once and kept: 0.0 MiB." in capsys.readouterr().err
    monkeypatch.setattr(features, "IN_MEMORY", 100)
    assert calls(trained(tmp_path / "large", "auto", parts))[0] > 8
    assert "The trunk is run in every epoch: kept they would take 0.0 MiB" in capsys.readouterr().err


class Looks(TrainingRule):
    """A rule of somebody's, which may do anything to the images."""

    def step(self, batch: Batch, progress: float) -> Outcome:
        self.shape = batch.images_BCHW.shape
        return self.bench.descend(batch, progress)


class Needs(Looks):
    needs_images = True


class Own(EarlyExitNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flip(-1))


def own_forward() -> EarlyExitNet:
    usual = network()
    return Own(usual.stages, usual.exits, num_classes=2, reads=usual.reads)


def written_into() -> EarlyExitNet:
    usual = network()
    usual.exits[0] = nn.Sequential(nn.Hardtanh(0, 0.1, inplace=True), usual.exits[0])
    return usual


def listened_to() -> EarlyExitNet:
    net = network()
    net.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"parts": images(flip=True)}, "the training images are augmented"),
        ({"parts": images(padding=1)}, "the training images are augmented"),
        ({"rule": Needs()}, "Needs may look at the images themselves"),
        ({"network": own_forward()}, "the Own has a forward pass or hooks of its own"),
        (
            {"network": written_into()},
            "an exit changes what later ones read: Exit 1 writes",
        ),
        ({"network": listened_to()}, "the EarlyExitNet has a forward pass or hooks"),
    ],
)
def test_features_that_cannot_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], words: str
) -> None:
    given = {"network": network(), "parts": images(), "rule": None} | more
    parts = given["parts"]

    def fit(keep: Any) -> EarlyExitNet:
        config = dataclasses.replace(QUICK, keep_features=keep)
        net = deepcopy(given["network"])
        return offramp.fit(net, CrossEntropy(), parts.train, parts.val, config, out=tmp_path / keep, rule=given["rule"])

    with pytest.raises(UsageError, match=f"The trunk's features cannot be kept: {words}"):
        fit("yes")
    assert not (tmp_path / "yes").exists()
    assert calls(fit("auto"))[0] > 8
    assert f"The trunk is run in every epoch: {words}" in capsys.readouterr().err


def test_a_rule_of_ones_own_gets_images_unless_features_are_asked_for(tmp_path: Path) -> None:
    parts, rule = images(), Looks()
    trained(tmp_path / "auto", "auto", parts, rule=rule)
    assert rule.shape[1:] == (1, 8, 8)
    trained(tmp_path / "yes", "yes", parts, rule=rule)
    assert rule.shape[1:] == (16 + 4 * 4 * 4 + 4,)


def test_without_augmentation_features_of_any_data_can_be_kept(tmp_path: Path) -> None:
    augmented, plain = images(flip=True, padding=1), images()
    kept = trained(tmp_path / "kept", "auto", augmented, augment=False)
    assert calls(kept)[0] == 8
    run = trained(tmp_path / "run", "no", plain)
    torch.testing.assert_close(kept.state_dict(), run.state_dict())
    with pytest.raises(UsageError, match=r"training.augment: False there, True now"):
        trained(tmp_path / "kept", "auto", augmented)


def test_unaugmented_images_are_shuffled_and_the_same_in_every_epoch() -> None:
    train = images(flip=True, padding=2).train
    split = Unaugmented(train)
    plain = {
        int(i): image for b in train.plain().batches() for i, image in zip(b.indices_B, b.images_BCHW, strict=True)
    }
    orders = []
    for epoch in range(2):
        batches = list(split.on(torch.device("cpu")).batches(seed=3, epoch=epoch))
        orders.append([int(i) for batch in batches for i in batch.indices_B])
        assert orders[-1] == [int(i) for batch in train.batches(seed=3, epoch=epoch) for i in batch.indices_B]
        for batch in batches:
            for i, image in zip(batch.indices_B, batch.images_BCHW, strict=True):
                assert torch.equal(image, plain[int(i)])
    assert orders[0] != orders[1]
    assert split.fingerprint() == train.fingerprint()
    assert split.inputs() == train.inputs()
    assert (is_augmented(train), is_augmented(split), is_augmented(train.plain())) == (True, False, False)


def test_rows_follow_their_images() -> None:
    train = images().train
    rows_SF = torch.from_numpy(train.indices_S).double()[:, None] * torch.tensor([1.0, -1.0])
    for batch in Kept(train, rows_SF).batches(seed=1, epoch=2):
        assert torch.equal(batch.images_BCHW, batch.indices_B.double()[:, None] * torch.tensor([1.0, -1.0]))


def test_a_trunk_that_makes_numbers_that_are_not_finite_names_the_image(tmp_path: Path) -> None:
    class Spoilt(Stage):
        def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
            fine, coarse = super().forward(*maps)
            broken_B = (maps[0] - worst).abs().amax((1, 2, 3)) < 1e-6
            return fine.masked_fill(broken_B[:, None, None, None], torch.inf), coarse

    parts = images()
    batch = next(parts.train.plain().batches())
    worst = batch.images_BCHW[3]
    net = network()
    net.stages[0] = Spoilt(1)
    with pytest.raises(OfframpError, match=rf"makes of image {int(batch.indices_B[3])} of arrays/train"):
        offramp.fit(net, CrossEntropy(), parts.train, parts.val, QUICK, out=tmp_path)
