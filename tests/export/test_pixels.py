import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from torchvision.io import write_png

from offramp import data, export
from offramp.data import Inputs
from offramp.errors import UsageError
from offramp.export.graph import IR_VERSION, OPSET, Graph
from offramp.export.pixels import PIXELS, prepare
from offramp.policy import EVERYBODY, Policy

GREY = Inputs(("a", "b"), (1, 28, 28), (0.3,), (0.35,), "central-fit")
WIDE = Inputs(("a", "b"), (3, 20, 31), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "central-fit")
CUT = Inputs(("a", "b"), (3, 56, 56), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "central-cut")
SIZES = [(28, 28), (64, 64), (37, 53), (90, 41), (151, 200), (20, 17), (3, 60), (1, 1)]


def prepared(inputs: Inputs, pixels: np.ndarray) -> np.ndarray:
    """What the nodes make of uint8 `[B, height, width, 3]`."""
    graph = Graph("pixels/")
    graph.call("out", prepare(graph, inputs, "in"))
    given = helper.make_tensor_value_info("in", 2, ["batch", *PIXELS])
    made = helper.make_tensor_value_info("out", 1, ["batch", *inputs.image_shape])
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph.finish("pixels", [made], [given]), ir_version=IR_VERSION, opset_imports=opset)
    (out,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"in": pixels})
    return out


@pytest.mark.parametrize("inputs", [GREY, WIDE, CUT], ids=["grey", "wide", "cut"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_become_what_the_library_makes_of_the_file(inputs, size, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    wanted = []
    for i, image in enumerate(pixels):
        write_png(torch.from_numpy(image).permute(2, 0, 1), str(tmp_path / f"{i}.png"))
        wanted.append(inputs.read(tmp_path / f"{i}.png").numpy())
    found = prepared(inputs, pixels)
    assert found.dtype == np.float32
    grey_levels = np.abs(found - np.stack(wanted)) * np.reshape(inputs.std, (-1, 1, 1)) * 255
    grows = min(size) < min(inputs.image_shape[1:]) * 256 / 224
    assert grey_levels.max() <= (2 if grows else 1) + 1e-3
    assert (grey_levels > 0.5).mean() < 0.1


def test_images_of_the_networks_size_are_only_scaled_and_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    pixels[:] = pixels[..., :1]  # grey already
    wanted = data.augment.normalise(
        torch.from_numpy(pixels[..., 0])[:, None], torch.tensor(GREY.mean), torch.tensor(GREY.std)
    )
    np.testing.assert_allclose(prepared(GREY, pixels), wanted.numpy(), rtol=0, atol=1e-6)


def test_a_file_that_takes_pixels_answers_as_one_that_takes_the_networks_input(trained, tmp_path) -> None:
    one, policy = trained("by hand", True), Policy((0.3, 0.3, EVERYBODY))
    inputs = data.digits().test.inputs()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    both = []
    for preprocess, images in ((True, pixels), (False, prepared(inputs, pixels))):
        path = export.onnx_file(
            one.network, policy, tmp_path / "n.onnx", inputs=inputs, preprocess=preprocess, made=one.parts
        )
        running = onnxruntime.InferenceSession(path)
        assert ("uint8" in running.get_modelmeta().custom_metadata_map["how_to_call"]) == preprocess
        both.append(running.run(None, {"images": images}))
    for by_pixels, by_input in zip(*both, strict=True):
        np.testing.assert_allclose(by_pixels, by_input, rtol=0, atol=1e-6)


def test_pixels_without_inputs_and_inputs_of_another_shape_are_refused(trained, tmp_path) -> None:
    one, policy = trained("by hand", True), Policy((0.3, 0.3, EVERYBODY))
    with pytest.raises(UsageError, match="pass `inputs`"):
        export.onnx_file(one.network, policy, tmp_path / "n.onnx", preprocess=True, made=one.parts)
    with pytest.raises(UsageError, match=r"shape \(1, 28, 28\); the network is for \(1, 16, 16\)"):
        export.onnx_file(one.network, policy, tmp_path / "n.onnx", inputs=GREY, made=one.parts)
    assert not list(tmp_path.iterdir())
