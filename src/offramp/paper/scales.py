"""At which size the paper is reproduced: its own data and recipe, or something that fits a pocket.

A `Scale` holds four `Setting`s by the paper's names for them. Experiments are written for settings, so a scale of your
own (`package.module:Name`) runs all of them on other data.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from offramp.config import DataConfig, Run, Spec, TrainConfig, resolve
from offramp.errors import UsageError

Of = Literal["cifar100", "cifar10", "imagenet", "ranet"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """In what a method is trained otherwise than a setting says.

    Attributes:
        training: Fields of `TrainConfig` by name, but for the epochs and the seed.
    """

    batch_size: int | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)


AS_IT_IS = Recipe()

# What the authors of rivals trained with on CIFAR-100. Their schedules say after which of 300 epochs; that of CGT also
# has RandAugment and random erasing, which are not here. Of few images large batches make few steps: WPN's 1024 and its
# rate are divided by four here, the batches of 500 of the others are the setting's.
_STEPS = {"schedule": "multistep", "milestones": (250 / 300, 280 / 300, 295 / 300)}
_RIVALS: Mapping[str, Recipe] = {
    "cgt": Recipe(training={"weight_decay": 5e-4, "nesterov": True, **_STEPS}),
    "dfs": Recipe(training={"weight_decay": 5e-4, **_STEPS}),
    "wpn": Recipe(batch_size=256, training={"lr": 0.2}),
}
_RIVALS_CIFAR: Mapping[str, Recipe] = {
    **{rule: dataclasses.replace(_RIVALS[rule], batch_size=500) for rule in ("cgt", "dfs")},
    "wpn": Recipe(batch_size=1024, training={"lr": 0.8}),
}
_RIVALS_IMAGENET: Mapping[str, Recipe] = {
    **_RIVALS,
    "dfs": Recipe(training={"weight_decay": 0.0, **_STEPS, "milestones": (70 / 90, 80 / 90, 85 / 90)}),
    "wpn": Recipe(batch_size=4096, training={"lr": 0.8}),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Data, network and recipe of some of the paper's experiments.

    Attributes:
        last_only: The same trunk with the last exit alone.
        num_classes: N; with `image_shape` and `images` what estimates of time go by: no data is read for them.
        images: Training images, with those that are held out.
        epochs: Passes over the training part.
        alpha: The paper's alpha; WPN's epsilon is the same number.
        wpn: WPN's further arguments.
        rivals: What the authors of a rule trained with, by its name. Their batches only on all of CIFAR and ImageNet:
            of few images they make few steps.
        held_out: Training images that are held out where thresholds are needed.
    """

    data: Spec
    network: Spec
    last_only: Spec | None = None
    exits: int
    num_classes: int
    image_shape: tuple[int, int, int]
    images: int
    test_images: int = 10_000
    batch_size: int = 64
    epochs: int
    strength: float
    alpha: float = 0.8
    wpn: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rivals: Mapping[str, Recipe] = dataclasses.field(default_factory=lambda: _RIVALS)
    held_out: int

    def run(
        self,
        objective: Spec,
        rule: Spec | None = None,
        *,
        network: Spec | None = None,
        data: Spec | None = None,
        holdout: int | None = 0,
        epochs: int | None = None,
        recipe: Recipe = AS_IT_IS,
    ) -> Run:
        """The configuration of seed 0; what is not given is this setting's."""
        batch_size = recipe.batch_size or self.batch_size
        return Run(
            data=DataConfig(source=data or self.data, batch_size=batch_size, holdout=holdout),
            objective=objective,
            network=network or self.network,
            rule=rule or Spec("standard"),
            training=TrainConfig(epochs=epochs or self.epochs, **recipe.training),
        )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The settings of a reproduction.

    Attributes:
        name: What `--scale` calls it.
        about: What it is, in a sentence or two, for the page.
        papers: Whether data and networks are the paper's.
        settings: By the paper's names.
        chosen: By method the candidate that the pilot of our own study chose (`pilot.chosen`).
        pilot: Name of the scale whose pilot decides where this one has none of its own.
        factor: How many times the epochs of its own recipe it trains, which for the paper's data is the paper's.
    """

    name: str
    about: str
    papers: bool
    settings: Mapping[str, Setting]
    chosen: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pilot: str = ""
    factor: int = 1

    @property
    def comparable(self) -> bool:
        """Whether the paper's numbers may be compared with ours: data, networks and recipe are the same."""
        return self.papers and self.factor == 1

    @property
    def unlike(self) -> str:
        """What makes it another than the paper's, to be said beside every number: `on fashion-mnist`; else nothing."""
        longer = f"with {self.factor} times the epochs" if self.factor > 1 else ""
        names = dict.fromkeys(setting.data.name for setting in self.settings.values())
        return longer if self.papers else f"on {' and '.join(names)} {longer}".strip()

    def __getitem__(self, of: Of) -> Setting:
        if of not in self.settings:
            raise UsageError(f"The scale {self.name!r} has no setting {of!r}, which this experiment needs.")
        return self.settings[of]

    def times(self, factor: int) -> "Scale":
        """So many times the epochs: to see whether an order changes with the budget. No longer the paper's recipe."""
        if factor < 1:
            raise UsageError(f"times must be at least 1, not {factor}.")
        if factor == 1:
            return self
        longer = {of: dataclasses.replace(s, epochs=factor * s.epochs) for of, s in self.settings.items()}
        about = f"{factor} times the epochs of the scale {self.name}, which is: {self.about}"
        name, factor = f"{self.name}-x{factor}", factor * self.factor
        return dataclasses.replace(self, name=name, about=about, settings=longer, factor=factor)


_CIFAR = Setting(
    data=Spec("cifar100"),
    network=Spec("msdnet7-cifar100"),
    last_only=Spec("msdnet7-last-cifar100"),
    exits=7,
    num_classes=100,
    image_shape=(3, 32, 32),
    images=50_000,
    epochs=300,
    strength=0.005,
    rivals=_RIVALS_CIFAR,
    held_out=5000,
)

PAPER = Scale(
    name="paper",
    about=(
        "The paper's data and recipe: CIFAR-10 and CIFAR-100 (300 epochs, batches of 64), ImageNet (100 epochs, "
        "batches of 256); SGD with momentum 0.9, rate 0.1 on a cosine, weight decay 1e-4."
    ),
    papers=True,
    settings={
        "cifar100": _CIFAR,
        "cifar10": dataclasses.replace(
            _CIFAR,
            data=Spec("cifar10"),
            network=Spec("msdnet7-cifar10"),
            last_only=Spec("msdnet7-last-cifar10"),
            num_classes=10,
            strength=0.075,
        ),
        "imagenet": Setting(
            data=Spec("imagenet"),
            network=Spec("msdnet5-imagenet"),
            exits=5,
            num_classes=1000,
            image_shape=(3, 224, 224),
            images=1_281_167,
            test_images=50_000,
            batch_size=256,
            epochs=100,
            strength=0.01,
            alpha=0.3,
            wpn={"centre": "mat", "interval": 100},  # its own settings for ImageNet
            rivals=_RIVALS_IMAGENET,
            held_out=50_000,
        ),
        # The paper does not say lambda for RANet; as for MSDNet on the same data.
        "ranet": dataclasses.replace(_CIFAR, network=Spec("ranet6-cifar100"), last_only=None, exits=6),
    },
)

# Narrow enough that 100 passes over 2,000 images take some four minutes on two cores. Few images and many passes rather
# than the reverse: what the paper is about, gradients that are no longer needed, comes with networks that are fitted.
_NARROW: dict[str, Any] = {"channels": 8, "growth": 4, "head_channels": 32}
_MSDNET: dict[str, Any] = {**_NARROW, "step_mode": "even", "growth_factors": [1, 2, 4]}
_MSDNET7: dict[str, Any] = {**_MSDNET, "exits": 7, "base": 1, "step": 1}
_POCKET = Setting(
    data=Spec("fashion-mnist", {"limit": 2000}),
    network=Spec("msdnet", _MSDNET7),
    last_only=Spec("msdnet", {**_MSDNET7, "last_only": True}),
    exits=7,
    num_classes=10,
    image_shape=(1, 28, 28),
    images=2000,
    epochs=100,
    strength=0.005,
    held_out=4000,
)

POCKET = Scale(
    name="pocket",
    about=(
        "Fashion-MNIST, 2,000 training images, 100 epochs, narrow networks for 28 pixels: the same experiments at a "
        "budget of minutes. Not the paper's data: nothing here is one of its numbers, nor comparable with them."
    ),
    papers=False,
    settings={
        "cifar100": _POCKET,
        "cifar10": dataclasses.replace(_POCKET, strength=0.075),
        # Five even exits in the place of the ImageNet network, and that setting's lambda and alpha.
        "imagenet": dataclasses.replace(
            _POCKET,
            network=Spec("msdnet", {**_MSDNET, "exits": 5, "base": 2, "step": 2}),
            last_only=None,
            exits=5,
            strength=0.01,
            alpha=0.3,
            wpn={"centre": "mat"},
            held_out=2000,
        ),
        "ranet": dataclasses.replace(
            _POCKET, network=Spec("ranet", {**_NARROW, "step_mode": "even"}), last_only=None, exits=6
        ),
    },
)

_ARE = "of 3 x 32 x 32 in 100 classes, two garments of Fashion-MNIST each. Not CIFAR-100, nor comparable with it"


def _pairs(name: str, what: str, images: int, epochs: int, **settings: Any) -> Scale:
    setting = dataclasses.replace(
        _POCKET,
        data=Spec("fashion-pairs", {"limit": images}),
        num_classes=100,
        image_shape=(3, 32, 32),
        images=images,
        epochs=epochs,
        **settings,
    )
    about = f"Fashion-pairs: images {_ARE}. {images:,} training images, {epochs} epochs, {what}."
    return Scale(name=name, about=about, papers=False, settings={"cifar100": setting}, pilot="pairs-short")


PAIRS = _pairs("pairs", "a narrow MSDNet: about 3,100 steps", 4000, 50)
# For the pilot, whose 29 candidates would otherwise take longer than the study.
PAIRS_SHORT = _pairs("pairs-short", "a narrow MSDNet: two fifths of the steps of pairs", 4000, 20)
# As many steps, on fewer images: `pairs` has few gradients of fitted images (measured: 0.3 % of the push), here there
# should be many. Few are held out of few: half of them are watched after every epoch, of 4,000 a third of the work.
PAIRS_FEW = _pairs("pairs-few", "a narrow MSDNet: few images, seen often", 1250, 160, held_out=1000)
PAIRS_WIDE = _pairs(
    "pairs-wide",
    "the paper's MSDNet-7 for CIFAR-100",
    4000,
    50,
    network=_CIFAR.network,
    last_only=_CIFAR.last_only,
)

SCALES: Mapping[str, Scale] = {
    scale.name: scale for scale in (PAPER, POCKET, PAIRS, PAIRS_SHORT, PAIRS_FEW, PAIRS_WIDE)
}


def scale(name: str) -> Scale:
    """The scale of this name, or a `Scale` of your own, `package.module:Name`."""
    chosen = resolve(name, SCALES, "scale")
    if not isinstance(chosen, Scale):
        raise UsageError(f"scale {name!r} is a {type(chosen).__name__}, not an offramp.paper.Scale.")
    return chosen
