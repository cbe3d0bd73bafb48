"""The paper, every table and figure: experiments as data, jobs that survive anything, claims judged in words."""

from offramp.reproduce.claims import CLAIMS, Claim
from offramp.reproduce.experiments import EXPERIMENTS, Experiment, Row, experiments
from offramp.reproduce.manifest import Manifest
from offramp.reproduce.methods import LEAGUE, Method, own
from offramp.reproduce.scales import SCALES, Recipe, Scale, Setting, scale

__all__ = [
    "CLAIMS",
    "EXPERIMENTS",
    "LEAGUE",
    "SCALES",
    "Claim",
    "Experiment",
    "Manifest",
    "Method",
    "Recipe",
    "Row",
    "Scale",
    "Setting",
    "experiments",
    "own",
    "scale",
]
