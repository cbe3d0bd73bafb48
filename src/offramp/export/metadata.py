"""What a file says of itself: `metadata_props` of ONNX, texts by name.

N classes, K exits.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict

import offramp
from offramp.certificate import Certificate
from offramp.data import Inputs
from offramp.export.int8 import Int8
from offramp.network import EarlyExitNet
from offramp.policy import NOBODY, Policy
from offramp.storage import weights_hash


def metadata(
    network: EarlyExitNet,
    policy: Policy,
    image_shape: Sequence[int],
    inputs: Inputs | None,
    preprocess: bool,
    int8: Int8 | None,
) -> dict[str, str]:
    """Texts by name; lists and dictionaries are JSON.

    Always `offramp` (the version), `weights` (their hash), `how_to_call`, `policy` (thresholds, measure, found). Where
    they are known `classes`, `input` (image_shape, mean, std, resizing), `certificate` (in words), `origin` and
    `licence` (of the trunk's weights). Of a file in 8 bits `int8`, what that costs; `weights` are the network's still.
    """
    texts = {
        "offramp": offramp.__version__,
        "weights": weights_hash(network.state_dict()),
        "how_to_call": _how_to_call(network, policy, image_shape, preprocess),
        "policy": json.dumps(asdict(policy), sort_keys=True),
    }
    if inputs is not None:
        how = {key: value for key, value in asdict(inputs).items() if key != "class_names"}
        texts |= {"classes": json.dumps(inputs.class_names), "input": json.dumps(how, sort_keys=True)}
    certificate = Certificate.of(policy)
    if certificate is not None:
        texts["certificate"] = str(certificate)
    if int8 is not None:
        texts["int8"] = json.dumps(asdict(int8))
    origin = network.origin
    if origin is not None:
        texts["origin"] = json.dumps(origin, sort_keys=True)
        if origin.get("licence"):
            texts["licence"] = str(origin["licence"])
    return texts


def _how_to_call(network: EarlyExitNet, policy: Policy, image_shape: Sequence[int], preprocess: bool) -> str:
    channels, height, width = image_shape
    images = (
        "images: uint8 [B, height, width, 3], RGB pixels, all of one size, of any size."
        if preprocess
        else f"images: float32 [B, {channels}, {height}, {width}], normalised as in training (see `input`)."
    )
    K = network.num_exits
    thresholds = (
        f"thresholds (optional): float32 [{K - 1}]; an image leaves at the first exit whose confidence is at least its "
        f"threshold; {NOBODY:g} lets no image leave there. Default: those of `policy`.\n"
        if K > 1
        else ""
    )
    return (
        f"{images}\n{thresholds}"
        f"label: int64 [B], the class, from 0 (see `classes`).\n"
        f"exit: int64 [B], the exit that answered, from 0 to {K - 1}.\n"
        f"confidence: float32 [B], {policy.measure.meaning}.\n"
        f"probabilities: float32 [B, {network.num_classes}], of the exit that answered.\n"
        "Stages that no image of the batch needs are not run."
    )
