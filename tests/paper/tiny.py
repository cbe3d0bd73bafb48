"""A scale of digits, small enough for a test: what `--scale` of one's own looks like."""

from offramp import Spec
from offramp.paper import Scale, Setting

NETWORK = {
    "exits": 3,
    "base": 1,
    "step": 1,
    "step_mode": "even",
    "channels": 4,
    "growth": 2,
    "growth_factors": [1, 2],
    "head_channels": 8,
}
SETTING = Setting(
    data=Spec("digits", {"limit": 200}),
    network=Spec("msdnet", NETWORK),
    last_only=Spec("msdnet", {**NETWORK, "last_only": True}),
    exits=3,
    num_classes=10,
    image_shape=(1, 16, 16),
    images=200,
    test_images=355,
    epochs=1,
    strength=0.005,
    held_out=200,
)
SCALE = Scale(
    name="tiny", about="Digits, for tests.", papers=False, settings={"cifar100": SETTING, "imagenet": SETTING}
)
