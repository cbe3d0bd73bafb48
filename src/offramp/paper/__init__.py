"""The paper, every table and figure: experiments as data, jobs that survive anything, claims judged in words."""

from offramp.paper.claims import CLAIMS, Claim
from offramp.paper.experiments import EXPERIMENTS, Experiment, Row, experiments
from offramp.paper.manifest import Manifest
from offramp.paper.methods import LEAGUE, Method, own
from offramp.paper.scales import SCALES, Recipe, Scale, Setting, scale

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
