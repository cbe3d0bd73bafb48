from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import offramp
from offramp.data import Inputs
from offramp.errors import OfframpError, UsageError
from offramp.network import EarlyExitNet

COLOUR = Inputs(("a", "b"), (3, 6, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "central-fit")
GREY = Inputs(("a", "b"), (1, 6, 6), (0.5,), (0.25,), "central-cut")


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))


@pytest.mark.parametrize("inputs", [COLOUR, GREY])
def test_however_an_image_is_held_the_network_sees_what_it_sees_of_its_file(inputs: Inputs, tmp_path: Path) -> None:
    image, path = photo(), tmp_path / "photo.png"
    image.save(path)
    wanted = inputs.read(path)
    array = np.array(image)
    ways = [path, str(path), image, array, torch.from_numpy(array).permute(2, 0, 1)]
    for way in ways:
        assert torch.equal(inputs.prepare(way), wanted[None])
    assert torch.equal(inputs.prepare(ways), wanted.expand(len(ways), -1, -1, -1))
    assert inputs.prepare([]).shape == (0, *inputs.image_shape)


def test_grey_pixels_and_turned_photographs(tmp_path: Path) -> None:
    array = np.array(photo())
    assert torch.equal(GREY.prepare(array[..., 0]), GREY.prepare(np.repeat(array[..., :1], 3, axis=2)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    photo().save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(COLOUR.prepare(turned), COLOUR.prepare(tmp_path / "turned.png"))
    assert not torch.equal(COLOUR.prepare(tmp_path / "turned.png"), COLOUR.prepare(photo()))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((6, 8, 3)),
        np.zeros((6, 8, 4), np.uint8),
        np.zeros((2, 6, 8, 3), np.uint8),
        torch.zeros(3, 6, 8),
        7,
        None,
    ],
)
def test_what_is_no_image_is_one_line(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"^An image must be a path, .* not .*$"):
        COLOUR.prepare(wrong)


def test_a_run_that_was_trained_or_loaded_prepares_images(run_of: Callable[..., Path], tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    run = run_of(tmp_path / "run")
    network = offramp.load(run)
    seen = network.preprocess(tmp_path / "photo.png")
    assert torch.equal(seen, Inputs.load(run / "input.json").read(tmp_path / "photo.png")[None])
    assert network(seen).shape[1] == 1
    trained = offramp.fit(
        EarlyExitNet(network.stages, network.exits, num_classes=10, damping=True, image_shape=(1, 16, 16)),
        offramp.objectives.PowerSqrt(),
        *offramp.data.digits(limit=50)[:2],
        offramp.TrainConfig(epochs=1, form="plain", device="cpu"),
        out=tmp_path / "fit",
    )
    assert torch.equal(trained.preprocess(photo()), seen)
    with pytest.raises(OfframpError, match="cannot be read"):
        network.preprocess(tmp_path / "gone.png")


def test_a_network_that_does_not_know_says_how_it_can(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (run / "input.json").unlink()
    with pytest.raises(UsageError, match=r"does not say how an image becomes its input.*network.inputs = "):
        offramp.load(run).preprocess(photo())
