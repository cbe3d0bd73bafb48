"""What stands in a run's folder, and how to read it back.

config.json          everything that determines the run (and the fields that may change when it is continued)
asked.json           what a finished run was asked for: the same command again ends at once
environment.json     versions, device, threads, git state, command, of every start
input.json           how an image file becomes the network's input, and the names of the classes
origin.json          where the weights that it began with come from, and their licence, where that is known
split.json           which training images are held out as search and certify
metrics.jsonl        one line an epoch: only what the run determines, the same byte for byte after any interruption
timing.jsonl         clocks and rates
xray.safetensors     what the gradients of some training images did, on request
checkpoints/         the last few states of the training
weights.safetensors  the final weights, plain layout; there when the run is finished
best.safetensors     the weights of the best epoch, on request
records/             logits of whole data sets, made by `offramp evaluate`, as are the following
evaluation.json      the figures of every exit
report.html          the same as a page
plots/               its plots as files
policy.json          thresholds, made by `offramp policy`, or with a certificate by `offramp certify`
ladder.json          policies of rising certified risk, made by `offramp certify --ladder`
xray.html            the page that `offramp xray` makes of xray.safetensors
bench.json           times to each exit and how this machine runs it fastest, made by `offramp bench`
verdict.json         early exits against smaller networks, made by `offramp verdict`
verdict.html         the same as a page
verdict/             the runs of these smaller networks
export/              the network for other runtimes, made by `offramp export`
manifest.json        what `offramp reproduce` keeps of a run of a study: configuration, figures, times
tensorboard/         curves of `offramp train --tensorboard`
"""

import importlib
from typing import TYPE_CHECKING, Any

from offramp.files.asked import is_finished, keep_asked
from offramp.files.folder import CARD, FORMAT, OWNER, RunFolder, weights_of
from offramp.files.kinds import Ancestor, Clock, Division, Epoch, HeldOutImages, Origin, RunConfig, Start

if TYPE_CHECKING:
    from offramp.files.network import load, load_weights

__all__ = [
    "CARD",
    "FORMAT",
    "OWNER",
    "Ancestor",
    "Clock",
    "Division",
    "Epoch",
    "HeldOutImages",
    "Origin",
    "RunConfig",
    "RunFolder",
    "Start",
    "is_finished",
    "keep_asked",
    "load",
    "load_weights",
    "weights_of",
]


def __getattr__(name: str) -> Any:
    """What needs torch, when it is first used: files of a run can be read without."""
    if name in ("load", "load_weights"):
        return getattr(importlib.import_module("offramp.files.network"), name)
    raise AttributeError(f"module 'offramp.files' has no attribute {name!r}")
