"""A finished run becomes a network that ships with the package: python benchmarks/ship.py RUN NAME --chosen "HOW".

Run it on the machine that trained. The folder src/offramp/shipped/NAME is made anew. What goes in, and how figures and
images come about, is the same for every network; only `DATA` knows data sets.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchvision.io import write_png

from offramp import data, registry, shipped
from offramp.commands import EvaluateOptions, evaluate
from offramp.commands.open_run import parts_of
from offramp.config import DataConfig, Spec
from offramp.data import Split
from offramp.data.memory import MemorySplit
from offramp.errors import OfframpError, UsageError
from offramp.files import RunConfig, RunFolder, Start
from offramp.json_files import read, write
from offramp.results.evaluation import Evaluation
from offramp.runtime.timing import conditions
from offramp.shipped.card import CARD, Card
from offramp.storage import write_atomically
from offramp.terminal import with_error

SHIPPED = Path(shipped.__file__).parent
KEPT = ("split.json", "metrics.jsonl", "weights.safetensors")  # as they are
DATA = {  # the data set's name in a configuration -> what a card says of it
    "digits": {
        "about": "The digits of scikit-learn: 1,797 handwritten digits of 8 x 8 pixels, here scaled up.",
        "licence": "CC BY 4.0",
        "source": "Alpaydin and Kaynak, UCI Machine Learning Repository, https://archive.ics.uci.edu/dataset/80",
    },
    "fashion-mnist": {
        "about": "Fashion-MNIST: 70,000 grey images of clothes, 28 x 28 pixels.",
        "licence": "MIT",
        "source": "Xiao, Rasul and Vollgraf, https://github.com/zalandoresearch/fashion-mnist",
    },
}
AT_HAND = {"fashion-mnist": "garments"}  # data that do not ship -> the part of them that does, by which a copy is tried
PURPOSE = """## What it is for

To try `offramp predict`, `offramp certify`, `offramp bench` and the Python interface within a minute, and to test them.

It is not for reading digits, clothes or anything else in earnest: images from elsewhere look different (size, contrast,
framing), and nothing measured or certified here holds for them. Nor does it say anything about larger data."""


def ship(run: Path, name: str, chosen: str, to: Path = SHIPPED, root: str | None = None) -> Path:
    """Make the folder `to`/`name` out of a finished run, whole or not at all, and return it.

    Args:
        run: The run's folder.
        name: Of the shipped network.
        chosen: How settings and seed were chosen, one sentence or more, for the card.
        to: Where the shipped networks are.
        root: Folder that holds the data set's files, if it is not where it was in training.

    Raises:
        UsageError: A run that cannot be repeated from its command, that held no images out, or on a data set whose
            licence is not in `DATA`.
    """
    source = RunFolder(run)
    config = source.read_config()
    about = None if config.data is None else DATA.get(config.data.source.name)
    if config.data is None or about is None:
        raise UsageError(f"{run} is trained on other data than {', '.join(DATA)}; say in DATA where it is from.")
    if config.training.init is not None:
        raise UsageError(f"{run} started from other weights ({config.training.init}), which do not ship.")
    if not read(source.split, dict[str, Any]).get("certify"):
        raise UsageError(f"{run} held no images out, so nobody could try `offramp certify` on it.")
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{name}.", suffix=".part") as beside:
        made = RunFolder(Path(beside) / name)
        write(made.config, {**config.values, "data": {**config.values["data"], "root": None}})
        write(made.environment, [scrubbed(source.read_starts(), name)])
        for file in KEPT:
            shutil.copyfile(source.path / file, made.path / file)
        evaluation = evaluate(EvaluateOptions(made.path, root=root, device="cpu"), page=False)
        shutil.rmtree(made.records)
        test = parts_of(made, config, root, "ship").test
        inputs = test.inputs()  # as `offramp train` writes it; a run from before it did so lacks it
        if inputs is None:
            raise UsageError(
                f"{test.name} does not say how a file becomes an input, so `offramp predict` cannot read any."
            )
        inputs.save(made.input)
        about_it = {
            "summary": _summary(evaluation, test.image_shape),
            "data": about,
            "division": division(read(made.split, dict[str, Any]), evaluation.test.num_images),
            "at_hand": AT_HAND.get(config.data.source.name),
            "chosen": chosen,
            "seconds": round(sum(line["seconds"] for line in _lines(source.timing)), 1),
            "processor": _processor(str(source.read_starts()[0].device)),
            "images": write_images(test, made.path / "images"),
        }
        if about_it["at_hand"] is not None:
            take_at_hand(made, about_it["at_hand"])
        write_card(made.path, about_it)
        if (to / name).exists():
            os.replace(to / name, Path(beside) / "before")
        os.replace(made.path, to / name)
    return to / name


def division(split: Mapping[str, Any], num_test: int) -> dict[str, int]:
    """How many images each part had in training."""
    trained_on = (split["limit"] or split["training_images"]) - split["holdout"]
    return {"train": trained_on, **{part: len(split[part]) for part in ("search", "certify")}, "test": num_test}


def take_at_hand(made: RunFolder, name: str) -> None:
    """Make the shipped data set `name` the one that commands use on a copy, so that they need no download.

    Its parts are of the parts of that name of what was trained on: what is held out there was held out here.
    """
    parts, config = data.load(DataConfig(source=Spec(name))), made.read_config()
    assert parts.train.config is not None
    search = {"search": parts.val.search.fingerprint()}
    write(made.config, {**config.values, "data": dataclasses.asdict(parts.train.config), "images": search})
    write(made.split, parts.description())


def scrubbed(starts: Sequence[Start], name: str) -> Start:
    """What `environment.json` is to say: the first start, without what only this machine has."""
    if not starts:
        raise UsageError("The run has no environment.json, so nobody knows what trained it.")
    commands = {command(start.command or "", name) for start in starts}
    if len(commands) > 1:
        raise UsageError(f"The run was continued by other commands, so no one command repeats it: {sorted(commands)}.")
    # Not the kernel's name, which can be a machine's own.
    system = "-".join([platform.system(), platform.machine(), *filter(None, platform.libc_ver())])
    return replace(starts[0], command=commands.pop(), platform=system)


def command(started: str, name: str) -> str:
    """The command that a user can repeat: `offramp train ... --out runs/NAME`, without the place of the data."""
    program, *words = shlex.split(started)
    if Path(program).name not in ("offramp", "__main__.py") or words[:1] != ["train"]:
        raise UsageError(f"The run was not made by `offramp train` but by `{started}`, which others cannot repeat.")
    kept: list[str] = []
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag in ("--out", "--root") and equals:
            continue
        if kept and kept[-1] in ("--out", "--root"):
            kept.pop()
            continue
        kept.append(word)
    return shlex.join(["offramp", *kept, "--out", f"runs/{name}"])


def write_images(test: Split, folder: Path) -> dict[str, dict[str, int]]:
    """The first test image of each class as a PNG file of its pixels; for each file its class and index."""
    if not isinstance(test, MemorySplit):
        raise UsageError(f"{test.name} does not keep its pixels in memory.")
    folder.mkdir(parents=True)
    images = {}
    for label, class_name in enumerate(test.class_names):
        index = int(test.indices_S[(test.labels_S == label).nonzero()[0, 0]])
        file = f"{re.sub(r'[^A-Za-z0-9]+', '-', class_name)}-{index}.png"
        write_png(test.pixels_SCHW[index], str(folder / file))
        images[file] = {"class": label, "index": index}
    return images


def write_card(folder: Path, about_it: Mapping[str, Any]) -> None:
    """`CARD.md` and `card.json`, whose hashes are those of all other files."""
    write(folder / CARD, {**about_it, "sha256": {}})
    write_atomically(folder / "CARD.md", card_text(folder).encode())
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    hashes = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    write(folder / CARD, {**about_it, "sha256": hashes})


def card_text(folder: Path) -> str:
    """`CARD.md`, made of nothing but the folder's other files."""
    card, config = Card.of(folder), RunFolder(folder).read_config()
    sections = (f"{card.summary}.", _data(card), _recipe(card, config), _figures(card), PURPOSE)
    return "\n\n".join((f"# {folder.name}", *sections)) + "\n"


def _data(card: Card) -> str:
    count = card.division
    text = f"""## Data

{card.data["about"]} Licence: {card.data["licence"]}.
Source: {card.data["source"]}.

Images: {count["train"]:,} for training, {count["search"]:,} for `search` (monitoring, thresholds),
{count["certify"]:,} for `certify`, {count["test"]:,} for test. `images/` holds the first test image of each
class, under the licence above. Its name is the class and the position (from 0) in the official test set, or among
all images where there is none."""
    if card.at_hand is None:
        return text
    return f"""{text}

On a copy the commands use `{card.at_hand}`, the part of these images that comes with the package, so that nothing is
downloaded: `config.json` and `split.json` are of that. Its images for search, certify and test were not trained on.
What is measured on them does not compare with the figures below, which are of all test images."""


def _recipe(card: Card, config: RunConfig) -> str:
    git = card.start.git
    commit = f"commit {git.commit}{', with changes' if git.changed else ''}" if git else "commit unknown"
    return f"""## Recipe

```sh
{card.command}
```

Seed {config.training.seed}. Trained in {card.training}, offramp {card.start.offramp}
({commit}).
{card.chosen}
The command gives the same weights byte for byte on a like machine with the same versions."""


def _figures(card: Card) -> str:
    found = card.evaluation
    rows = "\n".join(
        f"| {exit['exit']} | {exit['operations']:,} | {exit['parameters']:,} | "
        f"{with_error(exit['top1'], exit['top1_se'], found['images'])} | {exit['nll']:.4f} | {exit['ece']:.4f} |"
        for exit in found["exits"]
    )
    return f"""## Figures

Measured on {found["images"]:,} images of {found["split"]} ({found["made_on"]}), with the weights that stand here, of
the last epoch. ±: standard error over the images, at least 100 / (images + 1); it says nothing of other seeds.
Operations of one image and parameters, with the heads of all exits on the way.

| exit | operations | parameters | top-1 % | NLL | ECE |
|---|---|---|---|---|---|
{rows}

More in `evaluation.json`; `card.json` has the SHA-256 of every file."""


def _summary(evaluation: Evaluation, image_shape: Sequence[int]) -> str:
    """One line: network, objective, data."""
    config = evaluation.config
    assert config.network is not None
    maker = config.network.name.rpartition(":")[2]
    kind = {"msdnet": "MSDNet", "ranet": "RANet"}.get(maker, maker)
    exits, objective = evaluation.cost.exits, registry.called(config.objective.to_json())
    return (
        f"{kind}, {len(exits)} exits, {exits[-1].parameters:,} parameters, trained with "
        f"{objective} on {evaluation.data_name} ({' x '.join(map(str, image_shape))})"
    )


def _processor(device: str) -> str:
    return str(conditions()["device"]) if device == "cpu" else device


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--chosen", required=True, help="how settings and seed were chosen, for the card")
    parser.add_argument("--root", help="folder that holds the data set's files")
    arguments = parser.parse_args()
    try:
        made = ship(arguments.run, arguments.name, arguments.chosen, root=arguments.root)
    except (UsageError, OfframpError) as error:
        sys.exit(f"ship: {error}")
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    print(f"{made}: {size:,} bytes")


if __name__ == "__main__":
    main()
