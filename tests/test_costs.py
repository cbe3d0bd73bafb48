"""The published integers, to the unit, for every configuration; and counting itself, against PyTorch's counter."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from offramp import backbones
from offramp.config import Spec
from offramp.costs import Cost, Count, cost
from offramp.errors import UsageError
from offramp.network import EarlyExitNet

# name, damping neuron: operations per exit; parameters per exit (cumulative, with all heads on the way)
EXACT = {
    ("msdnet7-cifar100", False): (
        (6859876, 14350024, 27291436, 48448912, 76432628, 108850520, 137280956),
        (299704, 649740, 1111388, 1727200, 2384968, 3052244, 3966664),
    ),
    ("msdnet7-cifar100", True): (
        (6860005, 14350282, 27291823, 48449428, 76433273, 108851294, 137281859),
        (299833, 649998, 1111775, 1727716, 2385613, 3053018, 3967567),
    ),
    ("msdnet7-cifar10", False): (
        (6848266, 14326804, 27256606, 48402472, 76374578, 108780860, 137199686),
        (288094, 626520, 1076558, 1680760, 2326918, 2982584, 3885394),
    ),
    ("msdnet7-cifar10", True): (
        (6848395, 14327062, 27256993, 48402988, 76375223, 108781634, 137200589),
        (288223, 626778, 1076945, 1681276, 2327563, 2983358, 3886297),
    ),
    ("msdnet7-last-cifar100", False): ((111601508,), (1623664,)),
    ("msdnet5-imagenet", False): (
        (339902824, 685456720, 1008156120, 1254472688, 1360529624),
        (4238504, 8772240, 13073272, 16748416, 23958440),
    ),
    ("msdnet5-imagenet", True): (
        (339903209, 685457490, 1008157243, 1254474116, 1360531613),
        (4238889, 8773010, 13074395, 16749844, 23960429),
    ),
    ("ranet6-cifar100", False): (
        (8372324, 21788360, 32878892, 41570192, 53283828, 58990680),
        (358660, 899880, 1304995, 1800711, 2188193, 2617261),
    ),
    ("ranet6-cifar100", True): (
        (8372453, 21788618, 32879279, 41570708, 53284473, 58991454),
        (358789, 900138, 1305382, 1801227, 2188838, 2618035),
    ),
    ("ranet6-cifar10", False): (
        (8360714, 21765140, 32844062, 41523752, 53225778, 58921020),
        (347050, 876660, 1270165, 1754271, 2130143, 2547601),
    ),
    ("ranet8-cifar10", False): (
        (15814410, 31283220, 44655390, 50358312, 60654578, 63647996, 90173958, 94904592),
        (470442, 1073780, 1476756, 1868414, 2165612, 2453494, 2871636, 3261830),
    ),
    ("ranet6-even-cifar100", False): (
        (13450340, 28930760, 42314540, 48029072, 58336948, 61341976),
        (479716, 1094664, 1509250, 1912518, 2221326, 2520818),
    ),
    # No program prints these: counted here, once. With the README's factors it is the published integers, see below.
    ("ranet8-imagenet", False): (
        (235609256, 620300944, 849540086, 1030281774, 1188767453, 1257519877, 1757759332, 1851791136),
        (9889000, 37888720, 48318108, 65093636, 70424472, 77503760, 85422846, 95072324),
    ),
}
# Printed with fewer digits: millions of operations and decimals; millions of parameters and decimals.
ROUNDED = {
    "msdnet7-anytime-cifar100": (
        ((15.14, 25.51, 37.10, 46.33, 57.34, 66.96, 75.94), 2),
        ((0.434, 0.877, 1.275, 1.696, 2.178, 2.603, 3.068), 3),
    ),
    "msdnet5-batch-cifar100": (
        ((6.86, 14.35, 27.54, 41.71, 58.48), 2),
        ((0.300, 0.650, 1.018, 1.492, 2.079), 3),
    ),
    "msdnet7-wide-cifar100": (
        ((56.43, 101.00, 155.31, 198.10, 249.53, 298.05, 340.64), 2),
        ((0.899, 1.836, 2.797, 3.758, 4.916, 6.102, 7.362), 3),
    ),
    "msdnet5-step6-imagenet": (((515, 1171, 1845, 2501, 2742), 0), ((7.08, 15.69, 24.01, 42.19, 56.53), 2)),
    "msdnet5-step7-imagenet": (((616, 1436, 2283, 2967, 3254), 0), ((8.76, 20.15, 31.73, 41.86, 62.31), 2)),
}
HEADS = {  # operations and parameters of each head alone
    "msdnet7-cifar100": (
        (2227812, 3112548, 4439652, 6209124, 5398116, 4292196, 7388772),
        (262244, 317540, 400484, 511076, 460388, 391268, 584804),
    ),
    "ranet6-cifar100": (
        (2670180, 4439652, 3278436, 5047908, 3296868, 4623972),
        (289892, 400484, 327908, 438500, 329060, 412004),
    ),
}
SLOW = {*((name, damping) for name, damping in EXACT if "cifar10" in name.split("-") or "ranet8" in name)}
SLOW |= {("msdnet5-imagenet", True), "msdnet5-step6-imagenet", "msdnet5-step7-imagenet", "msdnet7-wide-cifar100"}
TRUNKS = {"msdnet7-cifar100": (104212736, 1038860), "ranet6-cifar100": (35633664, 419413)}


@functools.cache
def built(name: str, damping: bool) -> EarlyExitNet:
    with torch.device("meta" if "imagenet" in name else "cpu"):  # whichever is faster
        return backbones.build(Spec(name), damping=damping)


@functools.cache
def counted(name: str, damping: bool) -> Cost:
    return cost(built(name, damping))


def operations(counts: tuple[Count, ...]) -> tuple[int, ...]:
    return tuple(c.operations for c in counts)


def parameters(counts: tuple[Count, ...]) -> tuple[int, ...]:
    return tuple(c.parameters for c in counts)


@pytest.mark.parametrize(
    ("name", "damping"), [pytest.param(*key, marks=[pytest.mark.slow] if key in SLOW else []) for key in EXACT]
)
def test_published_counts_to_the_unit(name: str, damping: bool) -> None:
    exits = counted(name, damping).exits
    assert (operations(exits), parameters(exits)) == EXACT[name, damping]


@pytest.mark.slow
def test_published_counts_of_ranet_with_the_factors_of_its_readme() -> None:
    """The original's README has 4-2-2-1 for ImageNet, its script, as the preset, 4-2-1-1."""
    with torch.device("meta"):
        readme = backbones.build(Spec("ranet8-imagenet", {"growth_factors": (4, 2, 2, 1)}))
    exits = cost(readme).exits
    assert (operations(exits), parameters(exits)) == (
        (246472360, 631164048, 860403190, 1041144878, 1869847124, 2160379452, 2734279235, 2828311039),
        (9916712, 37916432, 48345820, 65121348, 85601768, 113060656, 121474513, 131123991),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ROUNDED]
)
def test_published_counts_to_the_printed_digit(name: str) -> None:
    exits = counted(name, False).exits
    (millions, digits), (millions_of_parameters, parameter_digits) = ROUNDED[name]
    assert [round(n / 1e6, digits) for n in operations(exits)] == list(millions)
    assert [round(n / 1e6, parameter_digits) for n in parameters(exits)] == list(millions_of_parameters)


def test_every_preset_is_among_the_published() -> None:
    tested = {name for name, _ in EXACT} | set(ROUNDED)
    assert set(backbones.PRESETS) - tested == {"msdnet7-last-cifar10"}


@pytest.mark.parametrize("name", HEADS)
def test_heads_and_trunk_alone(name: str) -> None:
    parts = counted(name, False)
    assert (operations(parts.heads), parameters(parts.heads)) == HEADS[name]
    assert (sum(operations(parts.stages)), sum(parameters(parts.stages))) == TRUNKS[name]


def test_the_path_to_the_last_exit_is_the_network_with_the_last_head_only() -> None:
    assert counted("msdnet7-cifar100", False).path[-1] == counted("msdnet7-last-cifar100", False).exits[-1]


@pytest.mark.parametrize("name", ["msdnet7-cifar100", "ranet6-cifar100"])
def test_multiply_adds_are_half_of_what_pytorch_counts(name: str) -> None:
    network = built(name, False).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    assert 2 * counted(name, False).exits[-1].multiply_adds == counter.get_total_flops()


def test_exits_and_paths_are_sums_of_stages_and_heads() -> None:
    c = counted("ranet6-cifar100", False)
    for field in ("operations", "multiply_adds", "parameters"):
        stages, heads = ([getattr(part, field) for part in parts] for parts in (c.stages, c.heads))
        assert [getattr(e, field) for e in c.exits] == [sum(stages[: k + 1] + heads[: k + 1]) for k in range(6)]
        assert [getattr(e, field) for e in c.path] == [sum(stages[: k + 1]) + heads[k] for k in range(6)]


def test_real_weights_give_the_same_counts_and_stay_as_they_are() -> None:
    network = backbones.msdnet(exits=3, growth_factors=(1, 2), image_size=16).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.stages[1].eval()
    counts = cost(network)
    with torch.device("meta"):
        assert counts == cost(backbones.msdnet(exits=3, growth_factors=(1, 2), image_size=16))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [network.training, *(stage.training for stage in network.stages)] == [True, True, False, True]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


class Odd(nn.Module):
    """Everything that counts, as modules and as functions, with a weight that is used twice and a tensor not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.linear = nn.Linear(6, 6)
        self.scale = torch.tensor(2.0)  # no buffer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2) * self.scale  # 4 x 4 from 8 x 8
        x = nn.functional.adaptive_avg_pool2d(x, 2)
        pooled = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return x, self.linear(self.linear(pooled))


def test_a_network_of_ones_own_with_plain_modules() -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    first = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(inplace=True))
    network = EarlyExitNet([first, Odd()], [nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), head], reads=(0, 0))
    c = cost(network, (3, 8, 8))
    assert c.stages[0] == Count(12 * 64 + 4 * 64, 12 * 64, 12)
    conv, relu, pool, adaptive, average, linear = 2 * 6 * 9 * 64, 6 * 64, 6 * 16 * 4, 6 * 16, 6 * 4, 36
    rest = relu + pool + adaptive + average
    assert c.stages[1] == Count(conv + rest + 2 * (linear + 6), conv + 2 * linear, 2 * 6 * 9 + 6 + 36 + 6)
    assert c.heads[1] == Count(24 * 3 + 3, 24 * 3, 24 * 3 + 3)


def test_shared_parameters_count_once() -> None:
    shared = nn.Linear(5, 3)
    network = EarlyExitNet([nn.Linear(4, 5), nn.Identity()], [shared, shared])
    c = cost(network, (4,))  # type: ignore[arg-type]
    assert parameters(c.exits) == (43, 43)
    assert operations(c.exits) == (20 + 5 + 18, 20 + 5 + 18 + 18)
    assert operations(c.path) == (20 + 5 + 18, 20 + 5 + 18)


def test_a_network_that_does_not_say_what_it_reads_needs_a_shape() -> None:
    network = EarlyExitNet([nn.Linear(4, 5)], [nn.Linear(5, 3)])
    with pytest.raises(UsageError, match="pass image_shape"):
        cost(network)


class Attending(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        tokens = x_BCHW.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_attention_counts_its_projections_and_both_its_products() -> None:
    width, tokens = 32, 64
    exit_ = nn.Sequential(nn.Flatten(), nn.Linear(tokens * width, 5))
    network = EarlyExitNet([Attending(width, 4)], [exit_], image_shape=(width, 8, 8))
    before = torch.backends.mha.get_fastpath_enabled()
    assert cost(network).stages[0].multiply_adds == 4 * tokens * width**2 + 2 * tokens**2 * width
    assert torch.backends.mha.get_fastpath_enabled() == before
