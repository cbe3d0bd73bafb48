"""The prefix of a head and the rest: together they are the head, and only the rest has weights."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from offramp.graphs.head_prefix import split_head


class Subclassed(nn.Flatten):
    pass


class Functional(nn.Module):
    """Its own pooling, by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class Meaning(Functional):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean([2, 3]))
        return logits


class Twice(Functional):
    """Reads its map twice."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean([2, 3]) + x.amax((2, 3)))
        return logits


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Linear(4, 2))


def hooked() -> nn.Module:
    head = sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head.register_forward_hook(lambda *_: None)
    return head


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (4,)),
        (sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten()), (4, 1, 1)),
        (sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (4, 6, 6)),
        (sequential(nn.AdaptiveAvgPool2d(1), Subclassed()), (4, 1, 1)),
        (hooked(), (4, 6, 6)),
        (Functional(), (4, 6, 6)),
        (fx.symbolic_trace(Functional()), (4,)),
        (fx.symbolic_trace(Meaning()), (4,)),
        (fx.symbolic_trace(Twice()), (4, 6, 6)),
        (fx.symbolic_trace(sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten())), (4, 1, 1)),
    ],
)
def test_the_prefix_of_a_head_is_what_it_does_before_anything_is_trained(
    head: nn.Module, size: tuple[int, ...]
) -> None:
    prefix, rest = split_head(head.eval())
    x = torch.randn(5, 4, 6, 6)
    assert prefix(x).shape[1:] == size
    assert torch.equal(rest(prefix(x)), head(x))
    assert not list(prefix.parameters())
    own = dict(head.named_parameters())
    assert {name: id(p) for name, p in rest.named_parameters()} == {name: id(p) for name, p in own.items()}
    names: Iterable[str] = [n for n, m in rest.named_modules() if isinstance(m, nn.Dropout)]
    rest.train()
    assert all(head.get_submodule(name).training for name in names)
