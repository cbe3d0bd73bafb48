"""Named networks as data: which builder, which arguments. Names say family, number of exits, variant, data."""

from collections.abc import Mapping
from typing import Any

from offramp.backbones.layers import HEAD_SIDES, StemKind, deepest_scales
from offramp.config import Spec
from offramp.errors import UsageError

_CIFAR: dict[str, Any] = {"channels": 16, "growth": 6, "stem": "cifar", "head_channels": 128, "image_size": 32}
_IMAGENET: dict[str, Any] = {"channels": 32, "growth": 16, "stem": "imagenet", "head_channels": None, "image_size": 224}

_MSDNET7 = {**_CIFAR, "exits": 7, "base": 1, "step": 1, "step_mode": "lin_grow", "growth_factors": (1, 2, 4)}
_MSDNET7_LAST = {**_MSDNET7, "last_only": True}
# Recipes in the README files of the originals; none of them is the paper's MSDNet-7.
_MSDNET7_ANYTIME = {**_MSDNET7, "base": 4, "step": 2, "step_mode": "even"}
_MSDNET5_BATCH = {**_MSDNET7, "exits": 5}
_MSDNET7_WIDE = {**_MSDNET7_ANYTIME, "growth": 16}  # DFS and Meta-GF
_MSDNET5 = {**_IMAGENET, "exits": 5, "base": 4, "step": 4, "step_mode": "even", "growth_factors": (1, 2, 4, 4)}

_RANET6 = {**_CIFAR, "blocks": 2, "block_step": 2, "step": 2, "step_mode": "lg", "scales": (1, 2, 3)}
_RANET6 = {**_RANET6, "growth_factors": (4, 2, 1)}
_RANET6_EVEN = {**_RANET6, "step": 4, "step_mode": "even"}
_RANET8 = {**_RANET6_EVEN, "scales": (1, 2, 3, 3), "growth_factors": (4, 2, 1, 1)}
# The growth factors of the published shell script; the README of the original has 4-2-2-1.
_RANET8_IMAGENET: dict[str, Any] = {
    **_RANET6_EVEN,
    **_IMAGENET,
    "step": 8,
    "scales": (1, 2, 3, 4),
    "growth_factors": (4, 2, 1, 1),
}


def _on(num_classes: int, builder: str, arguments: Mapping[str, Any]) -> Spec:
    return Spec(builder, {"num_classes": num_classes, **arguments})


PRESETS: Mapping[str, Spec] = {
    "msdnet7-cifar100": _on(100, "msdnet", _MSDNET7),
    "msdnet7-cifar10": _on(10, "msdnet", _MSDNET7),
    "msdnet7-last-cifar100": _on(100, "msdnet", _MSDNET7_LAST),
    "msdnet7-last-cifar10": _on(10, "msdnet", _MSDNET7_LAST),
    "msdnet7-anytime-cifar100": _on(100, "msdnet", _MSDNET7_ANYTIME),
    "msdnet5-batch-cifar100": _on(100, "msdnet", _MSDNET5_BATCH),
    "msdnet7-wide-cifar100": _on(100, "msdnet", _MSDNET7_WIDE),
    "msdnet5-imagenet": _on(1000, "msdnet", _MSDNET5),
    "msdnet5-step6-imagenet": _on(1000, "msdnet", {**_MSDNET5, "base": 6, "step": 6}),
    "msdnet5-step7-imagenet": _on(1000, "msdnet", {**_MSDNET5, "base": 7, "step": 7}),
    "ranet6-cifar100": _on(100, "ranet", _RANET6),
    "ranet6-cifar10": _on(10, "ranet", _RANET6),
    "ranet6-even-cifar100": _on(100, "ranet", _RANET6_EVEN),
    "ranet8-cifar10": _on(10, "ranet", _RANET8),
    "ranet8-imagenet": _on(1000, "ranet", _RANET8_IMAGENET),
}
"""Published networks by name: a builder and its arguments."""


_FEW, _MANY = 5_000, 50_000  # images trained on


def fitting(image_shape: tuple[int, int, int], num_images: int | None = None) -> dict[str, Any]:
    """MSDNet's knobs for images `(channels, height, width)`: what `--network auto` builds.

    By the smaller side: below 24, three exits (1, 2 and 3 layers); below 32, four exits (2, 1, 1 and 1 layers); below
    96, the paper's CIFAR network; from there on, the paper's ImageNet network. As many scales as leave the exits a map
    they can read. All of these end on a single scale, so every weight is trained.

    Where the number of images trained on is known, fewer than 5,000 get the four exits (0.6 million parameters),
    and fewer than 50,000 no more than the paper's CIFAR network.
    """
    sides, side = image_shape[1:], min(image_shape[1:])
    stem: StemKind = "imagenet" if side >= 96 else "cifar"
    num_scales = deepest_scales(sides, stem)
    if num_scales == 0:
        raise UsageError(
            f"No network fits images of {sides[0]} x {sides[1]}; the least side is {HEAD_SIDES[0]}. Scale them up."
        )
    if side < 24:
        knobs: dict[str, Any] = {"exits": 3, "head_channels": 64}
    elif side < 32 or (num_images is not None and num_images < _FEW):
        knobs = {"exits": 4, "base": 2, "step_mode": "even", "head_channels": 64} | (
            {"stem": stem} if stem == "imagenet" else {}
        )
    else:
        large = stem == "imagenet" and (num_images is None or num_images >= _MANY)
        knobs = dict(_MSDNET5 if large else _MSDNET7) | {"stem": stem}
        del knobs["image_size"]
    return {**knobs, "growth_factors": (1, 2, *[4] * num_scales)[:num_scales]}
