"""`benchmarks/ship.py`: how a finished run becomes a shipped network."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchvision.io import decode_png, read_file

import offramp
from offramp import shipped
from offramp.cli import main
from offramp.errors import UsageError
from offramp.shipped import Card

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = "train --data digits limit=60 --network auto exits=2 channels=4 growth=2 head_channels=8 --holdout 20 --epochs 1"


@pytest.fixture(scope="module")
def ship(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(BENCHMARKS / "ship.py")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = [*TINY.split(), "--objective", "damping", "--threads", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/offramp", *words])
    assert main(words) == 0
    return tmp_path / "run"


def test_a_run_becomes_a_network_that_can_be_made_again(ship: ModuleType, run: Path, tmp_path: Path) -> None:
    (run / "input.json").rename(tmp_path / "input.json")  # as in a run from before there was one
    (tmp_path / "shipped" / "tiny").mkdir(parents=True)
    (tmp_path / "shipped" / "tiny" / "old").touch()
    made = ship.ship(run, "tiny", "Nothing was tried.", to=tmp_path / "shipped")
    assert [path.name for path in made.parent.iterdir()] == ["tiny"]
    assert {path.name for path in made.iterdir()} == {
        *("config.json", "environment.json", "split.json", "metrics.jsonl", "input.json", "weights.safetensors"),
        *("evaluation.json", "card.json", "CARD.md", "images"),
    }
    assert (made / "input.json").read_bytes() == (tmp_path / "input.json").read_bytes()
    card = Card.of(made)
    assert card.command == f"offramp {TINY} --objective damping --threads 1 --out runs/tiny"
    assert card.summary.startswith("MSDNet, 2 exits, ")
    assert card.summary.endswith(" parameters, trained with damping on digits limit=60 (1 x 16 x 16)")
    assert str(tmp_path) not in "".join(path.read_text() for path in made.glob("*.json*"))
    assert torch.equal(*(next(offramp.load(path).parameters()) for path in (run, made)))
    seconds = [json.loads(line)["seconds"] for line in (run / "timing.jsonl").read_text().splitlines()]
    assert card.seconds == pytest.approx(sum(seconds), abs=0.051)
    text = (made / "CARD.md").read_text()
    for exit in card.evaluation["exits"]:
        assert f"| {exit['top1']:.2f} ±" in text
    assert "Images: 40 for training, 10 for `search`" in text
    assert "Nothing was tried." in text


@pytest.mark.parametrize("name", shipped.names())
def test_what_ships_has_the_card_that_its_files_make(ship: ModuleType, name: str) -> None:
    assert (shipped.folder(name) / "CARD.md").read_text() == ship.card_text(shipped.folder(name))


def test_what_nobody_can_repeat_does_not_ship(ship: ModuleType, run: Path, tmp_path: Path) -> None:
    config, starts = json.loads((run / "config.json").read_text()), json.loads((run / "environment.json").read_text())
    to = tmp_path / "shipped"
    to.mkdir()

    def refused(words: str, *, config: object = config, starts: object = starts) -> None:
        (run / "config.json").write_text(json.dumps(config))
        (run / "environment.json").write_text(json.dumps(starts))
        with pytest.raises(UsageError, match=words):
            ship.ship(run, "tiny", "", to=to)
        assert list(to.iterdir()) == []

    refused("say in DATA where it is from", config={**config, "data": None})
    refused("do not ship", config={**config, "training": {**config["training"], "init": "other"}})
    refused("others cannot repeat", starts=[{**starts[0], "command": "python mine.py"}])
    refused("no one command repeats it", starts=[*starts, {**starts[0], "command": "offramp train --out x"}])
    refused("has no environment.json", starts=[])
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**split, "certify": []}))
    refused("held no images out")


@pytest.mark.parametrize(
    ("started", "repeatable"),
    [
        ("/x/bin/offramp train --out /tmp/a --seed 2", "offramp train --seed 2 --out runs/n"),
        ("/x/offramp/__main__.py train --root=/d --out=/a --seed 2", "offramp train --seed 2 --out runs/n"),
        (
            "offramp train --data folder:p 'a=b c' --root ~/data --out o",
            "offramp train --data folder:p 'a=b c' --out runs/n",
        ),
    ],
)
def test_a_command_loses_what_only_its_machine_has(ship: ModuleType, started: str, repeatable: str) -> None:
    assert ship.command(started, "n") == repeatable


def test_images_are_pixels_named_by_class_and_position(ship: ModuleType, tmp_path: Path) -> None:
    test = offramp.data.digits(image_size=9).test
    test.class_names = ("T-shirt/top", *test.class_names[1:])
    images = ship.write_images(test, tmp_path / "images")
    first = int(test.indices_S[int((test.labels_S == 0).nonzero()[0])])
    assert images[f"T-shirt-top-{first}.png"] == {"class": 0, "index": first}
    for file, image in images.items():
        assert torch.equal(decode_png(read_file(str(tmp_path / "images" / file))), test.pixels_SCHW[image["index"]])
