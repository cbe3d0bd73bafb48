import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from offramp.backbones import msdnet
from offramp.backbones.foreign import start_from
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet
from offramp.storage import save_tensors


def small(damping: bool = False, num_classes: int = 4) -> EarlyExitNet:
    return msdnet(
        exits=2, num_classes=num_classes, damping=damping, channels=4, growth=2, growth_factors=(1, 2), head_channels=8,
        image_size=16, in_channels=1,
    )  # fmt: skip


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


class Original(nn.Module):
    """A classifier as other libraries have them, and the names of its weights."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.block(self.stem(images)).mean((2, 3))))
        return logits


class Head(nn.Module):
    """The end of `Original`, under its names."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(x.mean((2, 3))))
        return logits


def attached(num_classes: int = 4, damping: bool = False, own_head: bool = False) -> EarlyExitNet:
    """Exits on an `Original`, its weights under the names that the attached network has for them."""
    stages = [nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3)))]
    stages += [nn.Sequential(OrderedDict(block=nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))))]
    early = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes + damping))
    last = copy.deepcopy(early) if own_head else Head(num_classes + damping)
    return EarlyExitNet(stages, [early, last], num_classes=num_classes, damping=damping)


def wrapped(tensors: dict[str, Tensor], how: str) -> object:
    prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return {"plain": tensors, "state_dict": {"epoch": 3, "state_dict": prefixed}, "model": {"model": tensors}}[how]


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("how", ["plain", "state_dict", "model"])
def test_weights_of_the_model_that_exits_were_attached_to(tmp_path: Path, ending: str, how: str) -> None:
    original, network = Original().eval(), attached().eval()
    early = {name: value.clone() for name, value in network.exits[0].state_dict().items()}
    path = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        safetensors.torch.save_file(original.state_dict(), path)
    else:
        torch.save(wrapped(original.state_dict(), how), path)
    said = start_from(network, path)
    assert said == f"From weights{ending}: trunk and last exit; the other exits start fresh."
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(images)[-1], original(images))
    assert all(torch.equal(value, early[name]) for name, value in network.exits[0].state_dict().items())


@pytest.mark.parametrize("name", ["aux1.conv.weight", "AuxLogits.fc.bias", "other.fc.bias"])
def test_auxiliary_heads_of_a_file_are_left_out_and_nothing_else(tmp_path: Path, name: str) -> None:
    """As torchvision's GoogLeNet and Inception have them for training."""
    original, network = Original().eval(), attached().eval()
    torch.save({**original.state_dict(), name: torch.ones(4)}, tmp_path / "w.pth")
    if name.startswith("other"):
        with pytest.raises(UsageError, match=r"1 unknown, such as other.fc.bias \[4\]"):
            start_from(network, tmp_path / "w.pth")
        return
    said = start_from(network, tmp_path / "w.pth")
    assert said == (
        "From w.pth: trunk and last exit; the other exits start fresh; auxiliary heads of the file are left out."
    )
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(images)[-1], original(images))


def test_a_first_convolution_for_colours_is_summed_for_grey_images_and_this_is_said(tmp_path: Path) -> None:
    original, network = Original().eval(), attached().eval()
    original.stem = nn.Conv2d(3, *original.stem.weight.shape[:1], 3)
    torch.save(original.state_dict(), tmp_path / "w.pth")
    network.image_shape = (1, 8, 8)
    said = start_from(network, tmp_path / "w.pth")
    assert said == (
        "From w.pth: trunk and last exit; the other exits start fresh; its first convolution, for colours, is summed "
        "for grey images."
    )
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(images)[-1], original(images.expand(-1, 3, -1, -1)))
    network.image_shape = None
    with pytest.raises(UsageError, match=r"1 of another .* \[4, 3, 3, 3\] there"):
        start_from(network, tmp_path / "w.pth")


def test_the_neuron_widens_the_kept_head(tmp_path: Path) -> None:
    original, network = Original().eval(), attached(damping=True).eval()
    torch.save(original.state_dict(), tmp_path / "w.pth")
    fresh = network.get_parameter("exits.1.fc.weight")[-1].clone()
    start_from(network, tmp_path / "w.pth")
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(images)[-1, :, :4], original(images))
    assert torch.equal(network.get_parameter("exits.1.fc.weight")[-1], fresh)


def test_a_head_of_other_classes_is_left_fresh_and_this_is_said(tmp_path: Path) -> None:
    original, network = Original(num_classes=7), attached()
    torch.save(original.state_dict(), tmp_path / "w.pth")
    fresh = network.get_parameter("exits.1.fc.weight").clone()
    said = start_from(network, tmp_path / "w.pth")
    assert said is not None
    assert "its last layer, for 7 classes there and 4 here, starts fresh, as do the other exits" in said
    assert torch.equal(network.get_parameter("exits.1.fc.weight"), fresh)
    assert torch.equal(network.get_parameter("exits.1.norm.weight"), original.norm.weight)
    assert torch.equal(network.get_parameter("stages.1.block.0.weight"), original.get_parameter("block.0.weight"))


@pytest.mark.parametrize("has_head", [True, False])
def test_a_last_exit_that_is_none_of_the_models_starts_fresh(tmp_path: Path, has_head: bool) -> None:
    original, network = Original(num_classes=7), attached(own_head=True)
    tensors = {n: t for n, t in original.state_dict().items() if has_head or not n.startswith(("fc", "norm"))}
    torch.save(tensors, tmp_path / "w.pth")
    fresh = network.get_parameter("exits.1.2.weight").clone()
    said = start_from(network, tmp_path / "w.pth")
    without = "fc.bias [7] of the file" if has_head else "a head of the file"
    assert said == f"From w.pth: trunk; the exits start fresh, without {without}."
    assert torch.equal(network.get_parameter("exits.1.2.weight"), fresh)
    assert torch.equal(network.get_parameter("stages.1.block.0.weight"), original.get_parameter("block.0.weight"))


def test_a_last_exit_without_weights_of_its_own_is_taken_over_as_it_is(tmp_path: Path) -> None:
    class Early(nn.Module):
        """The classifier before the pooling, as in SqueezeNet."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.classifier = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.stem(images)).mean((2, 3))
            return logits

    original = Early()
    stages = [nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 4, 3)))]
    stages += [nn.Sequential(OrderedDict(classifier=nn.Conv2d(4, 4, 1)))]
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = EarlyExitNet(stages, [nn.Sequential(*pooled, nn.Linear(4, 4)), pooled], num_classes=4)
    torch.save(original.state_dict(), tmp_path / "w.pth")
    assert start_from(network, tmp_path / "w.pth") == "From w.pth: trunk and last exit; the other exits start fresh."
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(images)[-1], original(images))


def test_files_of_old_programs_lack_the_counters_of_batch_norm(tmp_path: Path) -> None:
    tensors = {name: t for name, t in Original().state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "w.pth")
    network = attached()
    start_from(network, tmp_path / "w.pth")
    assert torch.equal(network.get_parameter("stages.0.stem.weight"), tensors["stem.weight"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stem.bias": None}, r"1 missing, such as stages.0.stem.bias \[4\]"),
        ({"block.2.weight": torch.zeros(2, 3)}, r"1 unknown, such as block.2.weight \[2, 3\]"),
        ({"stem.weight": torch.zeros(4, 3, 3, 3)}, r"1 of another .* \[4, 3, 3, 3\] there, \[4, 1, 3, 3\] here"),
        ({"fc.weight": torch.zeros(7, 5), "fc.bias": torch.zeros(7)}, r"2 of another shape: exits.1.fc.bias"),
        ({"norm.weight": None}, "1 missing, such as exits.1.norm.weight"),
    ],
)
def test_whatever_else_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Tensor | None], words: str) -> None:
    tensors = {n: t for n, t in (Original().state_dict() | change).items() if t is not None}
    torch.save(tensors, tmp_path / "w.pth")
    network = attached()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UsageError, match=words):
        start_from(network, tmp_path / "w.pth")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_own_names_are_read_from_any_kind_of_file(tmp_path: Path) -> None:
    network, other = attached(), attached()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert start_from(other, tmp_path / "w.pt") is None
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


class Payload:
    """What a pickle would build."""


@pytest.mark.parametrize(
    ("held", "error", "words"),
    [
        (Payload(), OfframpError, "holds more than tensors and plain values"),
        ({"epoch": 3, "net": {}}, UsageError, "no dictionary of tensors by name; found the entries epoch, net"),
        ([torch.zeros(2)], UsageError, "found a list"),
        (None, UsageError, "There is no file"),
        (b"not a file of torch", OfframpError, "is damaged, or"),
    ],
)
def test_files_that_hold_no_weights(tmp_path: Path, held: object, error: type[Exception], words: str) -> None:
    path = tmp_path / "w.pth"
    if isinstance(held, bytes):
        path.write_bytes(held)
    elif held is not None:
        torch.save(held, path)
    with pytest.raises(error, match=words):
        start_from(attached(), path)
