from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offramp.data import Inputs
from offramp.data.augment import normalise
from offramp.errors import UsageError
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine
from offramp.runtime.images import as_images

POLICY = Policy((0.5, 0.5, EVERYBODY))
PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ways(images: Any) -> dict[str, Any]:
    """The same images as others may hold them."""
    array = images.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "array": array,
        "read-only": read_only,
        "other byte order": array.astype(">f4"),
        "backwards": np.ascontiguousarray(array[::-1])[::-1],
        "float64": array.astype(np.float64),
        "long double": array.astype(np.longdouble),
        "list of tensors": list(images),
        "tuple of arrays": tuple(array),
        "tensors and arrays": [images[0], *array[1:]],
        "numbers": images.tolist(),
        "float64 tensor": images.double(),
        "needs gradients": images.clone().requires_grad_(),
    }


@pytest.fixture(scope="module")
def engine(small) -> Engine:
    return Engine(small(), POLICY)


@pytest.mark.parametrize("way", ways(PIXELS))
def test_images_may_come_in_many_ways(engine, way) -> None:
    images = ways(PIXELS)[way]
    wanted = engine(PIXELS)
    found = {
        "call": engine(images),
        "stream": next(engine.stream([images])),
        "anytime": engine.anytime(images, deadline_ms=10_000),
        "each exit": list(engine.each_exit(images))[-1],
    }
    assert all(torch.equal(answers.labels_B, wanted.labels_B) for answers in found.values())
    assert torch.equal(found["call"].confidence_B, wanted.confidence_B)
    for positions_B, answers in engine.as_ready([images]):
        assert torch.equal(answers.labels_B, wanted.labels_B[positions_B])


def test_an_engine_is_tuned_on_arrays(small) -> None:
    engine = Engine(small(), POLICY)
    engine.tune(PIXELS.numpy(), batch_sizes=(2,), forms=[engine.program.form], seconds=0.1, streams=False)
    assert engine(PIXELS.numpy()).labels_B.shape == (4,)


REFUSED = {
    "bytes": (PIXELS.byte(), "Images must be floats, normalised as in training, not torch.uint8"),
    "array of bytes": (PIXELS.byte().numpy(), "Images must be floats, normalised as in training, not uint8"),
    "whole numbers": (PIXELS.long().tolist(), "Images must be floats, .* not int64"),
    "complex": (PIXELS.to(torch.complex64), "Images must be floats, .* not torch.complex64"),
    "one image": (PIXELS[0], r"Images must be a batch \[B, 3, 16, 16\], not \[3, 16, 16\]"),
    "array of one image": (PIXELS[0].numpy(), r"Images must be a batch \[B, 3, 16, 16\], not \[3, 16, 16\]"),
    "five dimensions": (PIXELS[None], r"not \[1, 4, 3, 16, 16\]"),
    "channels last": (PIXELS.numpy().transpose(0, 2, 3, 1), r"not \[4, 16, 16, 3\]"),
    "grey": (PIXELS[:, :1], r"not \[4, 1, 16, 16\]"),
    "no images of another size": (PIXELS[:0, :, :8], r"not \[0, 3, 8, 16\]"),
    "a number": (torch.tensor(1.0), r"not \[\]"),
    "several sizes": ([PIXELS[0], PIXELS[0, :, 1:]], r"one size, not \(3, 16, 16\) and \(3, 15, 16\)"),
    "arrays of several sizes": ([PIXELS[0].numpy(), PIXELS[0, :, 1:].numpy()], "must have one size"),
    "a picture": (Image.new("RGB", (16, 16)), "a NumPy array or a list of either, not a Image"),
    "pictures": ([Image.new("RGB", (16, 16))], "Images must be floats"),
    "a path": ("cat.png", "not a str"),
    "nothing": (None, "not a NoneType"),
    "nothings": ([None, None], "Images must be floats"),
    "a generator": (iter(PIXELS), "or a list of either, not a"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_batch_of_images_is_one_line_wherever_it_is_given(engine, kind) -> None:
    images, said = REFUSED[kind]
    calls = {
        "call": lambda: engine(images),
        "stream": lambda: next(engine.stream([images])),
        "as ready": lambda: next(engine.as_ready([images])),
        "anytime": lambda: engine.anytime(images, deadline_ms=1),
        "each exit": lambda: engine.each_exit(images),
        "tune": lambda: engine.tune(images, seconds=0.1),
    }
    for name, call in calls.items():
        with pytest.raises(UsageError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("none", [PIXELS[:0], PIXELS[:0].numpy(), [], ()], ids=["tensor", "array", "list", "tuple"])
def test_no_images_have_no_answers(engine, none) -> None:
    answers = [engine(none), engine.anytime(none, deadline_ms=1), *engine.stream([none])]
    assert [len(column_B) for one in answers for column_B in one] == [0] * 9


def test_what_is_not_finite_is_let_through(engine) -> None:
    images = PIXELS.clone()
    images[1] = torch.nan
    answers = engine(images.numpy())
    assert answers.confidence_B.isnan().tolist() == [False, True, False, False]
    assert answers.exits_B[1] == 2


def test_a_batch_that_is_a_tensor_is_not_copied(small) -> None:
    assert as_images(PIXELS, small()) is PIXELS


def test_a_network_that_does_not_say_its_images_takes_any_shape(recorded) -> None:
    logits_BKC = torch.randn(2, 3, 4)
    assert torch.equal(as_images(logits_BKC.numpy(), recorded(3, 4)), logits_BKC)


MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def prepared(mean: tuple[float, ...] = tuple(MEAN.tolist()), std: tuple[float, ...] = tuple(STD.tolist())) -> Inputs:
    return Inputs(("a", "b"), (len(mean), 16, 16), mean, std, "central-fit")


def as_trained(inputs: Inputs, shade: torch.Tensor) -> torch.Tensor:
    return inputs.prepare([(one * 255).to(torch.uint8) for one in shade])


@pytest.mark.parametrize(
    ("prepare", "shade"),
    [
        (lambda images: images, PIXELS),  # not normalised
        (lambda images: images * 255, PIXELS),
        (lambda images: normalise(as_trained(prepared(), images), MEAN, STD), PIXELS),  # twice
        (lambda images: images * 255, PIXELS[:1]),
    ],
)
def test_images_prepared_otherwise_than_in_training_are_warned_of_once(small, prepare, shade) -> None:
    network = small()
    network.inputs = prepared()
    for call in (lambda engine, images: engine(images), lambda engine, images: [*engine.stream([images])]):
        engine = Engine(network, POLICY)
        with pytest.warns(UserWarning, match=r"normalised as in training\?.*preprocess"):
            call(engine, prepare(shade))
        call(engine, prepare(shade))  # a second warning would be an error


@pytest.mark.parametrize("inputs", [prepared(), prepared((0.0,) * 3, (1.0,) * 3), prepared((0.1,) * 3, (0.05,) * 3)])
def test_images_as_in_training_are_not_warned_of(small, inputs) -> None:
    network = small()
    network.inputs = inputs
    for shade in (PIXELS, PIXELS * 0, PIXELS * 0 + 1, PIXELS.round(), PIXELS * 0.1 + 0.5, PIXELS[:1], PIXELS[:0]):
        Engine(network, POLICY)(as_trained(inputs, shade))
    Engine(network, POLICY)(torch.full((2, 3, 16, 16), torch.nan))
