"""Where a model can be cut, and what it says where it cannot."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp.backbones.attached import Sites, attach
from offramp.errors import UsageError
from offramp.graphs.tracing import trace

SHAPE = (3, 16, 16)


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = unit(width, width), unit(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


class Opaque(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.abs().sum() > 0 else x


class Net(nn.Module):
    def __init__(self, block: type[Residual] = Residual) -> None:
        super().__init__()
        self.stem = unit(3, 8, 2)
        self.a, self.b, self.c = block(8), block(8), block(8)
        self.unused = nn.Linear(2, 2)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.c(self.b(self.a(self.stem(x))))).flatten(1))


def sites(model: nn.Module) -> Sites:
    return Sites(trace(model, SHAPE))


def test_operations_are_those_that_cost_counts() -> None:
    model = Net()
    found = sites(model)
    total, upto = found.operations()
    network = attach(model, [site.name for site in found.good], image_shape=SHAPE)
    counted = offramp.cost(network)
    stages = [count.operations for count in counted.stages]
    assert [upto[site.place] for site in found.good] == [sum(stages[: k + 1]) for k in range(len(stages) - 1)]
    assert total == sum(stages) + counted.heads[-1].operations
    assert [count.parameters for count in counted.heads][-1] == 4 * 9


def test_auto_takes_single_tensors_near_the_shares() -> None:
    blocks = [nn.Sequential(Residual(8), Residual(8)) for _ in range(5)]
    model = nn.Sequential(unit(3, 8, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    found = sites(model)
    total, upto = found.operations()
    for shares in ((0.25, 0.5, 0.75), (0.5,), (0.4, 0.7)):
        chosen = found.near_shares(shares)
        assert len({site.place for site in chosen}) == len(shares)
        assert all(len(site.carry) == 1 for site in chosen)
        assert all(abs(upto[site.place] / total - share) < 0.2 for site, share in zip(chosen, shares, strict=True))
    network = attach(model, [0.3, 0.6], image_shape=SHAPE)
    assert network.origin["at"] == [site.name for site in found.near_shares([0.3, 0.6])]


def lopsided() -> nn.Sequential:
    """Nothing lies between a quarter of the operations and all but the last of them; `10` is as good as `11`."""
    layers = [nn.Flatten(2), nn.Unflatten(2, (16, 16)), *unit(3, 8), nn.Identity(), *unit(8, 12)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Hardtanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


def test_auto_takes_fewer_exits_where_nothing_lies_near_and_says_so() -> None:
    found = sites(lopsided())
    total, upto = found.operations()
    assert not any(0.3 < upto[site.place] / total < 0.95 for site in found.good)
    assert [site.name for site in found.good if not upto[site.place]] == ["0", "1"]
    with pytest.warns(UserWarning, match="Sequential gets 2 exits: it has no place to cut near 0.5 or 0.75 of"):
        network = attach(lopsided(), image_shape=SHAPE)
    assert network.num_exits == 2
    with pytest.raises(UsageError, match=r"no place to cut near 0.5 of .*; the nearest lies after 4 at 0.199"):
        attach(lopsided(), [0.25, 0.5], image_shape=SHAPE)
    with pytest.raises(UsageError, match=r"no place to cut near 0.25, 0.5, 0.75 of its operations"):
        attach(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(768, 4)), image_shape=SHAPE)


def test_no_two_cuts_have_the_same_weights_before_them() -> None:
    free = [nn.AvgPool2d(9, 1, 4) for _ in range(4)]  # operations without weights
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *free, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    found = sites(model)
    _, upto = found.operations()
    with pytest.raises(UsageError, match="no place to cut near"):
        found.near_shares([upto[site.place] / found.operations()[0] for site in found.good[:2]])


def test_within_a_module_of_torchs_own_the_error_names_it() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    stem = [nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Unflatten(2, (16, 1)), nn.Flatten(2)]
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.encoder, self.head = nn.Sequential(*stem), encoder, nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.stem(x).transpose(1, 2)).mean(1))

    message = "cannot be cut after encoder.layers.0: it is called within encoder, which is run as a whole. The nearest"
    with pytest.raises(UsageError, match=message):
        attach(Encoded(), ["encoder.layers.0"], image_shape=SHAPE)


def test_a_single_share_is_a_list_of_one() -> None:
    one, listed = (attach(Net(), at, image_shape=SHAPE).origin for at in (0.5, [0.5]))
    assert one == listed


def test_a_cut_carries_what_is_read_later_and_the_exit_reads_what_the_module_gives() -> None:
    site = sites(Net()).find(["b.one"])[0]
    assert site.carry == ((8, 8, 8), (8, 8, 8))
    assert site.reads == 1
    images = torch.randn(2, *SHAPE)
    network = attach(model := Net(), ["b.one"], image_shape=SHAPE).eval()
    model.eval()
    carry = network.run_stage(0, (images,))
    stem = model.a(model.stem(images))
    torch.testing.assert_close(carry, (stem, model.b.one(stem)))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (["bb"], r"Net has no module 'bb' to cut after. `offramp layers` lists them all.$|Did you mean"),
        (["b.on"], "no module 'b.on' to cut after. Did you mean b.one"),
        (["b", "a"], "out of order: a ends before b"),
        (["b", "b.two"], "b and b.two end at the same place|b.two"),
        (["c"], "cannot be cut after c: nothing but the last exit follows. The nearest cut that works: c"),
        (["fc"], "cannot be cut after fc: nothing but the last exit follows"),
        (["unused"], "cannot be cut after unused: it is not called by itself"),
        ([], "names no module"),
        ([3], "must be 'auto', names of modules or shares"),
        (3, "must be 'auto', names of modules or shares of the operations, not 3"),
        (True, "must be 'auto', names of modules or shares of the operations, not True"),
        (None, "must be 'auto', names of modules or shares of the operations, not None"),
        (1.5, "must rise between 0 and 1"),
        ([0.5, 0.2], "must rise between 0 and 1"),
        ([1.5], "must rise between 0 and 1"),
        ([k / 100 for k in range(1, 100)], "no place to cut near 0.0"),
    ],
)
def test_what_is_no_cut_is_refused_in_one_line(at: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        attach(Net(), at, image_shape=SHAPE)
    assert "\n" not in str(caught.value)


def test_inside_of_what_runs_as_a_whole_there_is_no_cut() -> None:
    message = r"after b.one: it is called within b, which is run as a whole \(.*\). The nearest cut that works: b.$"
    with pytest.raises(UsageError, match=message):
        attach(Net(Opaque), ["b.one"], image_shape=SHAPE)
    assert attach(Net(Opaque), ["b"], image_shape=SHAPE).num_exits == 2


def test_auto_gives_the_reason_that_naming_a_place_gives() -> None:
    """Such as a transformer of another library, whose body torch.fx cannot follow."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(unit(3, 8, 2), Residual(8), Residual(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) if x.abs().sum() >= 0 else x

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit, self.head = Body(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.vit(x).mean((2, 3)))

    for at in (["vit.layers.1"], "auto", 0.5):
        with pytest.raises(UsageError, match=r"vit.* is run as a whole \(its control flow depends on values"):
            attach(Wrapped(), at, image_shape=SHAPE)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(unit(3 * (i + 1), 3) for i in range(6))
        self.fc = nn.Linear(21, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.fc(torch.cat(maps, 1).mean((2, 3)))


def test_a_carry_of_many_tensors_is_refused_with_the_nearest_that_is_not() -> None:
    assert attach(Dense(), ["layers.3"], image_shape=SHAPE).num_exits == 2
    message = "after layers.3: 5 tensors would have to be carried, and at most 3 may be. The nearest cut .*: layers.1"
    with pytest.raises(UsageError, match=message):
        attach(Dense(), ["layers.3"], image_shape=SHAPE, max_carry=3)


class Shared(nn.Module):
    """One convolution called twice; a parameter that both halves read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.again(self.act(self.stem(x))))
        x = self.act(self.norm(x))
        return self.fc(self.again(x).mean((2, 3)))


def test_weights_used_on_both_sides_of_a_cut_are_refused_and_modules_without_weights_are_not() -> None:
    with pytest.raises(UsageError, match=r"after norm: the weights again.\w+ are used both before and after it"):
        attach(Shared(), ["norm"], image_shape=SHAPE)
    network = attach(Shared(), ["stem"], image_shape=SHAPE)
    names = [name.split(".", 2)[2] for name in network.state_dict() if not name.startswith("exits.0.")]
    assert sorted(names) == sorted(Shared().state_dict())


class Windows(nn.Module):
    """Between two of its modules the windows of all images are rows of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inside, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Identity()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        B, C, H, W = x.shape
        windows = x.view(B, C, H // 4, 4, W // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, C)
        windows = self.inside(windows)
        x = windows.view(B, H // 4, W // 4, 4, 4, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
        return self.fc(self.after(x).mean((1, 2)))


def test_rows_that_are_no_images_cannot_be_carried() -> None:
    with pytest.raises(UsageError, match=r"a tensor \[16, 16, 4\] that does not have the images first"):
        attach(Windows(), ["inside"], image_shape=SHAPE)
    network = attach(Windows(), ["conv"], image_shape=SHAPE)
    # The number of images crosses no cut: the second stage takes it from what it is given.
    assert network(torch.randn(5, *SHAPE)).shape == (2, 5, 3)


class Guesses(Windows):
    """Sides given as -1, which nothing can be guessed from where there are no rows."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.conv(x).flatten(2).transpose(1, 2))
        x = x.reshape(x.shape[0], -1, 2, 2).view((x.shape[0], 16 * 16, -1))
        return self.fc(x.mean(1))


def test_no_row_is_as_good_as_one() -> None:
    network = attach(Guesses(), ["conv"], image_shape=SHAPE)
    with pytest.raises(RuntimeError, match="ambiguous"):
        Guesses()(torch.randn(0, *SHAPE))
    for number in (0, 1, 4):
        assert network(torch.randn(number, *SHAPE)).shape == (2, number, 3)
