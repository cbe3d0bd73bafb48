"""Small trained networks that ship with the package, each a finished run's folder: something to try everything on.

Each is a folder here, made by `benchmarks/ship.py` and by nothing else:

config.json, environment.json, split.json, metrics.jsonl, input.json, weights.safetensors
                     as `offramp train` leaves them, with the paths of the machine taken out
evaluation.json      the figures of every exit on the test set, as `offramp evaluate` leaves them
images/              one test image of each class, named by class and position, at the network's image size
card.json            what the folder holds, for programs: `Card`
CARD.md              the same for people

Adding a network is adding a folder.
"""

from offramp.shipped.card import Card, card, folder, names
from offramp.shipped.copying import copy

__all__ = ["Card", "card", "copy", "folder", "names"]
