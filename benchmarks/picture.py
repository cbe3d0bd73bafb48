"""The picture of the README, accuracy against time, for light and dark pages: python benchmarks/picture.py RUN.

RUN has been timed under its own policy: offramp example --out RUN; offramp certify RUN; offramp bench RUN.
"""

import sys
from pathlib import Path

from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder, load
from offramp.policy import Policy
from offramp.results.bench import Bench, bench_of
from offramp.show import figures
from offramp.show.bench.plots import times
from offramp.storage import weights_hash, write_atomically

FOLDER = Path(__file__).parents[1] / "docs" / "images"
DARK = {figures.INK: "#e6e9ed", figures.MUTED: "#98a2ad", figures.LINE: "#2c333c"}  # of the pages' dark theme


def draw(measured: Bench, folder: Path = FOLDER) -> list[Path]:
    with figures.style():
        light = figures.render(times(measured), "svg", "early-exit-time", transparent=True).decode()
    dark = light
    for colour, instead in DARK.items():
        dark = dark.replace(colour, instead)
    files = {folder / "early-exit-time-light.svg": light, folder / "early-exit-time-dark.svg": dark}
    for path, text in files.items():
        write_atomically(path, text.encode())
    return list(files)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(__file__).name} RUN")
    run = RunFolder(sys.argv[1])
    try:
        measured = bench_of(run, weights_hash(load(run.path).state_dict()), Policy.load(run.policy))
    except (UsageError, OfframpError) as error:
        sys.exit(f"picture: {error}")
    if measured is None:
        sys.exit(f"picture: {run.path} was not timed under its policy.json; `{run.command('bench')}` does it.")
    print(*draw(measured), sep="\n")


if __name__ == "__main__":
    main()
