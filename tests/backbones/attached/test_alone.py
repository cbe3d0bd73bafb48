"""Images leave a batch at exits: a model whose answer for one hangs on the others is no model to cut."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from offramp.backbones.attached import attach
from offramp.errors import UsageError

SHAPE = (3, 8, 8)


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.inner = function, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.function(x))


def net(between: nn.Module, scale: float = 1.0) -> nn.Sequential:
    """A classifier; `scale` is how much its logits hang on the images."""
    fc = nn.Linear(6, 5)
    fc.weight.data *= scale
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), between, nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc
    )


def attention_over_images(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return ((rows @ rows.T / 16).softmax(1) @ rows).view_as(x)


def with_capacity(x: Tensor) -> Tensor:
    """Experts with room for two images: a third goes on as it is."""
    place = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    return torch.where(place < 2, x * 2, x)


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0),
    "whitening": lambda x: (x - x.mean((0, 2, 3), True)) / (x.std((0, 2, 3), keepdim=True) + 1),
    "attention": attention_over_images,
    "roll": lambda x: x.roll(1, 0),
    "sorted": lambda x: x.sort(0).values,
    "first": lambda x: x + 0.1 * x[:1],
    "batch and channels confused": lambda x: x.reshape(4, -1, 8, 8).transpose(0, 1),
    "largest": lambda x: x / x.abs().max(),
    "number": lambda x: x * x.shape[0],
    "one is another": lambda x: x * 3 if x.shape[0] == 1 else x,
    "capacity": with_capacity,
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_that_mix_images_are_refused_in_one_line(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="Sequential mixes the images of a batch, or looks at their number") as caught:
        attach(net(Between(MIXING[name])).to(dtype), ["1"], image_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_it_is_seen_where_the_logits_hardly_hang_on_the_images() -> None:
    for scale in (1e-4, 0.0):  # as of a head that starts at zero
        with pytest.raises(UsageError, match="mixes the images"):
            attach(net(Between(MIXING["mean"]), scale), ["1"], image_shape=SHAPE)


def test_statistics_of_the_batch_in_evaluation_mode_are_refused_and_running_ones_are_not() -> None:
    with pytest.raises(UsageError, match="mixes the images"):
        attach(net(nn.BatchNorm2d(4, track_running_stats=False)).eval(), ["1"], image_shape=SHAPE)
    assert attach(net(nn.BatchNorm2d(4)), ["1"], image_shape=SHAPE).num_exits == 2


class Experts(nn.Module):
    """Each image goes to the expert that its own mean picks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.gate(x.mean((2, 3))).argmax(1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().squeeze(1)
            if len(rows):
                out = out.index_copy(0, rows, expert(x[rows]))
        return out


class OfFloats(nn.Module):
    """Written for one precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.eye(8)


class Noise(nn.Module):
    """Random in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if x.abs().sum() > 0 else x


SINGLE: dict[str, Callable[[], nn.Module]] = {
    "experts": Experts,
    "of floats": OfFloats,
    "noise": Noise,
    "dropout": lambda: nn.Dropout(0.5),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "windows": lambda: Between(lambda x: x.unfold(2, 4, 4).reshape(-1, 4, 4).relu().view(x.shape[0], 4, 8, 8)),
    "positions": lambda: Between(lambda x: x + torch.arange(8.0)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_models_that_treat_each_image_by_itself_are_not(name: str) -> None:
    assert attach(net(SINGLE[name]()), ["1"], image_shape=SHAPE).num_exits == 2
