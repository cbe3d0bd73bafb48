"""What ships is what its card says: hashes, figures, images, recipe."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_png, read_file

import offramp
from offramp import shipped
from offramp.cli import main
from offramp.commands import EvaluateOptions, PredictOptions, evaluate, predict
from offramp.data import Inputs
from offramp.errors import UsageError
from offramp.evaluation import Certificate, record
from offramp.files import RunFolder
from offramp.policy import Policy
from offramp.storage import weights_hash

LIMIT = 2_000_000  # bytes of a network; the package is to stay small
every_network = pytest.mark.parametrize("name", shipped.names())


def files_of(name: str) -> dict[str, bytes]:
    folder = shipped.folder(name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_digits_ship() -> None:
    assert "digits" in shipped.names()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    for ask in (shipped.folder, shipped.card):
        with pytest.raises(UsageError, match=r"example 'digit' is unknown. Did you mean digits\?"):
            ask("digit")


@every_network
def test_files_are_those_of_the_card_and_small(name: str) -> None:
    files = files_of(name)
    assert sum(map(len, files.values())) < LIMIT
    hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items() if file != "card.json"}
    assert hashes == shipped.card(name).sha256


@every_network
def test_nothing_in_it_says_where_it_was_made(name: str) -> None:
    files = files_of(name)
    del files["weights.safetensors"]
    for file, content in files.items():
        assert not re.search(rb"/(home|root|tmp|work|Users|usr|var|mnt)/", content), file
    assert json.loads(files["config.json"])["data"]["root"] is None


@every_network
def test_figures_are_of_the_weights_that_ship(name: str) -> None:
    card, network = shipped.card(name), offramp.load(shipped.folder(name))
    assert card.evaluation["weights"] == weights_hash(network.state_dict())
    counted = offramp.cost(network).exits
    assert [exit["operations"] for exit in card.evaluation["exits"]] == [count.operations for count in counted]
    assert f"{len(counted)} exits, {counted[-1].parameters:,} parameters" in card.summary


@every_network
def test_one_image_of_each_class_at_the_networks_size(name: str) -> None:
    card, network = shipped.card(name), offramp.load(shipped.folder(name))
    assert sorted(image["class"] for image in card.images.values()) == list(range(network.num_classes))
    assert {f"images/{file}" for file in card.images} == {file for file in card.sha256 if file.startswith("images/")}
    for file, image in card.images.items():
        pixels = decode_png(read_file(str(shipped.folder(name) / "images" / file)))
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, network.image_shape)
        assert file.endswith(f"-{image['index']}.png")


@every_network
def test_images_are_inputs_of_the_network_as_they_are(name: str) -> None:
    inputs, network = Inputs.load(shipped.folder(name) / "input.json"), offramp.load(shipped.folder(name))
    told = shipped.card(name).evaluation["classes"]
    assert list(inputs.class_names) == [of_class["name"] for of_class in told]
    for file in shipped.card(name).images:
        path = shipped.folder(name) / "images" / file
        pixels = decode_png(read_file(str(path))).double() / 255
        expected = (pixels - torch.tensor(inputs.mean)[:, None, None]) / torch.tensor(inputs.std)[:, None, None]
        torch.testing.assert_close(inputs.read(path).double(), expected, rtol=0, atol=1e-5)
    assert inputs.image_shape == network.image_shape


@every_network
def test_the_recipe_is_that_of_the_run(name: str, tmp_path, capsys) -> None:
    """The command makes the same configuration: in a copy, it finds the run finished."""
    command = shlex.split(shipped.card(name).command)
    assert command[-2:] == ["--out", f"runs/{name}"]
    if RunFolder(shipped.folder(name)).read_config().data.source.name != "digits":
        pytest.skip("its data may not be here")
    assert shipped.copy(name, tmp_path / "run")
    assert main([*command[1:-1], str(tmp_path / "run")]) == 0
    assert "is finished; nothing to do" in capsys.readouterr().err


def test_images_are_those_of_the_test_set() -> None:
    folder, test = shipped.folder("digits"), offramp.data.digits().test
    inputs = Inputs.load(folder / "input.json")
    there = {
        int(index): (image, int(label))
        for images, labels, indices, _ in test.batches()
        for image, label, index in zip(images, labels, indices, strict=True)
    }
    for file, image in shipped.card("digits").images.items():
        expected, label = there[image["index"]]
        assert label == image["class"] == int(file[0])
        assert torch.equal(inputs.read(folder / "images" / file), expected)


def test_figures_are_found_again(tmp_path) -> None:
    shipped.copy("digits", tmp_path / "run")
    told = shipped.card("digits").evaluation
    found = evaluate(EvaluateOptions(tmp_path / "run", train_limit=0, device="cpu"), page=False).to_json()
    assert (found["weights"], found["fingerprint"]) == (told["weights"], told["fingerprint"])
    for here, there in zip(found["exits"], told["exits"], strict=True):
        # Another machine rounds otherwise, so an image on the edge may change sides; not two.
        assert here["top1"] == pytest.approx(there["top1"], abs=1.01 * 100 / told["images"])
        assert here["nll"] == pytest.approx(there["nll"], rel=1e-3)


def test_it_can_be_certified_with_the_default_promise(tmp_path) -> None:
    shipped.copy("digits", tmp_path / "run")
    assert main(["certify", str(tmp_path / "run"), "--device", "cpu"]) == 0
    policy = Policy.load(tmp_path / "run" / "policy.json")
    certificate = Certificate.of(policy)
    assert certificate is not None
    assert certificate.images >= 299
    assert (certificate.promise.risk, certificate.promise.confidence) == (0.01, 0.95)
    assert policy.found["operations"] < offramp.cost(offramp.load(tmp_path / "run")).exits[-1].operations


def test_predicting_the_images_gives_what_the_network_answers_on_the_test_set(tmp_path) -> None:
    shipped.copy("digits", tmp_path / "run")
    answers = {
        Path(one.file).name: one
        for one in predict(PredictOptions(tmp_path / "run", [tmp_path / "run" / "images"], device="cpu"))
    }
    seen = record(offramp.load(tmp_path / "run"), offramp.data.digits().test)
    places = {index: place for place, index in enumerate(seen.indices_S.tolist())}
    for file, image in shipped.card("digits").images.items():
        label = int(seen.logits_KSC[-1, places[image["index"]], : seen.num_classes].argmax())
        assert answers.pop(file).label == label
    assert answers == {}
