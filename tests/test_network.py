"""Stages and exits of one's own, links, class log-probabilities, recipes."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet, builder, class_log_probs, plain_link, rebuild


class Split(nn.Module):
    """Two tensors out of one or two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, 3), nn.Linear(width, 4)

    def forward(self, *carry: Tensor) -> Carry:
        x = torch.cat(carry, 1)
        return self.left(x).tanh(), self.right(x).tanh()


def plain() -> EarlyExitNet:
    stages = [nn.Sequential(nn.Linear(5, 6), nn.ReLU()), nn.Sequential(nn.Linear(6, 7), nn.ReLU()), nn.Linear(7, 8)]
    return EarlyExitNet(stages, [nn.Linear(width, 4) for width in (6, 7, 8)], damping=True)


def tuples(reads: Any) -> EarlyExitNet:
    width = {0: 3, 1: 4, -1: 4, -2: 3}
    each = (reads, reads) if isinstance(reads, int) else reads
    return EarlyExitNet([Split(5), Split(7)], [nn.Linear(width[r], 2) for r in each], reads=reads)


def test_logits_have_three_dimensions_also_with_one_exit() -> None:
    assert plain()(torch.zeros(6, 5)).shape == (3, 6, 4)
    assert EarlyExitNet([nn.Identity()], [nn.Linear(5, 2)])(torch.zeros(6, 5)).shape == (1, 6, 2)


@pytest.mark.parametrize("network", [plain(), tuples(-1), tuples(0), tuples((0, 1)), tuples((-1, -2))])
def test_stage_by_stage_is_the_whole_forward(network: EarlyExitNet) -> None:
    images = torch.randn(6, 5)
    carry: Carry = (images,)
    for k, logits_BC in enumerate(network(images)):
        carry = network.run_stage(k, carry)
        assert torch.equal(network.run_exit(k, carry), logits_BC)


def test_exits_read_the_tensor_they_name() -> None:
    network, images = tuples((0, 1)), torch.randn(6, 5)
    carry = network.run_stage(0, (images,))
    assert torch.equal(network(images)[0], network.exits[0](carry[0]))
    assert torch.equal(network(images)[1], network.exits[1](network.run_stage(1, carry)[1]))


def test_the_number_of_classes_is_read_off_the_last_linear() -> None:
    network = plain()
    assert (network.num_classes, network.num_outputs, network.num_exits) == (3, 4, 3)
    assert EarlyExitNet([nn.Identity()], [nn.Conv1d(1, 2, 1)], num_classes=2).num_classes == 2
    with pytest.raises(UsageError, match="pass `num_classes`"):
        EarlyExitNet([nn.Identity()], [nn.Conv1d(1, 2, 1)])


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (2, 3)])
def test_stages_and_exits_are_as_many(counts: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"found {counts[0]} stages and {counts[1]} exits"):
        EarlyExitNet([nn.Identity()] * counts[0], [nn.Linear(5, 2)] * counts[1])


@pytest.mark.parametrize(
    ("outputs", "more", "message"),
    [
        ((10, 9), {}, r"Exit 2 ends with 9 outputs, not 10 \(num_classes=10\)"),
        ((3, 4), {"damping": True}, r"Exit 2 ends with 4 outputs, not 3 \(num_classes=2 and the damping neuron\)"),
        ((3, 3), {"num_classes": 0}, "num_classes must be a whole number of at least 1, not 0"),
        ((1, 1), {"damping": True}, "num_classes must be a whole number of at least 1, not 0"),
        ((3, 3), {"num_classes": "3"}, "num_classes must be a whole number of at least 1, not '3'"),
        ((3, 3), {"num_classes": 5}, "Exit 1 ends with 3 outputs, not 5"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda linear: linear, lambda linear: nn.Sequential(nn.ReLU(), linear)])
def test_exits_that_end_with_other_outputs_are_refused(
    outputs: tuple[int, ...], more: dict[str, Any], message: str, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    exits = [wrap(nn.Linear(5, number)) for number in outputs]
    with pytest.raises(UsageError, match=message):
        EarlyExitNet([nn.Identity()] * 2, exits, **more)


def test_reads_are_as_many_as_exits() -> None:
    with pytest.raises(UsageError, match="names 1 tensors for 2 exits"):
        EarlyExitNet([nn.Identity()] * 2, [nn.Linear(5, 2)] * 2, reads=(0,))


class Half(torch.autograd.Function):
    """The identity, with half the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


def detach_exits(k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
    return carry[reads].detach(), carry


def halve_what_goes_on(k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
    return carry[reads], tuple(Half.apply(x) for x in carry)


@pytest.mark.parametrize("link", [detach_exits, halve_what_goes_on])
@pytest.mark.parametrize("make", [plain, lambda: tuples((0, 1))])
def test_a_link_changes_gradients_and_never_logits(link: Any, make: Any) -> None:
    network, images = make(), torch.randn(6, 5)
    gradients, logits = [], []
    for network.link in (plain_link, link):
        logits.append(network(images))
        gradients.append(torch.autograd.grad(logits[-1].square().sum(), list(network.stages[0].parameters())))
    assert torch.equal(*logits)
    assert not all(torch.equal(p, q) for p, q in zip(*gradients, strict=True))


def test_the_link_of_the_last_exit_is_the_identity() -> None:
    network, images = plain(), torch.randn(6, 5)
    seen = []

    def note(k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
        seen.append((k, K, len(carry), reads))
        return plain_link(k, K, carry, reads)

    network.link = note
    network(images)
    assert seen == [(0, 3, 1, -1), (1, 3, 1, -1)]
    network.link = detach_exits
    network(images)[-1].sum().backward()
    assert all(p.grad is not None for p in network.stages.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_class_log_probs_in_both_readings(dtype: torch.dtype) -> None:
    network = plain()
    logits_KBC = torch.randn(3, 6, 4).to(dtype)
    exact = logits_KBC.double()
    jointly, among_classes = exact.softmax(-1)[..., :3], exact[..., :3].softmax(-1)
    tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(network.class_log_probs(logits_KBC).exp(), jointly, **tolerance)
    torch.testing.assert_close(network.class_log_probs(logits_KBC, renormalise=True).exp(), among_classes, **tolerance)
    # The classes lack the share of the damping neuron, F[N+1].
    torch.testing.assert_close(jointly.sum(-1), 1 - exact.softmax(-1)[..., 3])
    assert torch.equal(jointly.argmax(-1), among_classes.argmax(-1))
    assert network.class_log_probs(logits_KBC).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_without_a_damping_neuron_the_readings_agree() -> None:
    logits = torch.randn(2, 5, 3)
    assert torch.equal(class_log_probs(logits, 3), class_log_probs(logits, 3, renormalise=True))
    assert torch.equal(class_log_probs(logits, 3), logits.log_softmax(-1))


def test_class_log_probs_stay_finite_for_large_logits() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0, 1e4]]])
    expected = [[[-math.log(2), -2e4 - math.log(2), -1e4 - math.log(2)]]]
    torch.testing.assert_close(class_log_probs(logits, 3), torch.tensor(expected))


@builder
def recipe(width: int = 5, *, exits: int = 2, **more: Any) -> EarlyExitNet:
    stages = [nn.Linear(width, width) for _ in range(exits)]
    return EarlyExitNet(stages, [nn.Linear(width, 3) for _ in range(exits)], **more)


def test_a_builder_leaves_its_recipe_and_rebuild_follows_it() -> None:
    network = recipe(4, damping=True, image_shape=(1, 2, 2))
    assert network.spec is not None
    assert network.spec.args == {"width": 4, "exits": 2, "damping": True, "image_shape": [1, 2, 2]}
    again = rebuild(Spec.from_json(json.loads(json.dumps(network.spec.to_json()))))
    assert again.spec == network.spec
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(torch.ones(1, 4)), network(torch.ones(1, 4)))


def test_a_recipe_holds_json_values_only() -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        recipe(image_shape=object())
    assert EarlyExitNet([nn.Identity()], [nn.Linear(1, 1)]).spec is None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("os:system", {"command": "touch {}"}),
        ("posix:system", {"command": "touch {}"}),
        ("numpy:savetxt", {"fname": "{}", "X": [1]}),
        ("offramp.network:Path", {}),
        ("offramp.cli:main", {"arguments": ["example", "--out", "{}"]}),
        ("offramp.files:RunFolder", {"path": "{}"}),
    ],
)
def test_a_recipe_that_was_not_made_for_offramp_is_refused(tmp_path: Path, name: str, args: dict[str, Any]) -> None:
    args = {key: value.format(tmp_path / "x") if isinstance(value, str) else value for key, value in args.items()}
    with pytest.raises(UsageError, match=r"is refused|is code that is not offramp.s.*--allow-code numpy"):
        rebuild(Spec(name, args))
    assert not any(tmp_path.iterdir())


def test_networks_of_ones_own_are_built_again_without_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OFFRAMP_ALLOW_CODE", "my_recipes, my_late_recipes")
    (tmp_path / "my_recipes.py").write_text(
        "import functools\n"
        "from torch import nn\n"
        "from offramp.network import EarlyExitNet\n"
        "def plain(width=4):\n"
        "    return EarlyExitNet([nn.Linear(width, 3)], [nn.Linear(3, 2)])\n"
        "wide = functools.partial(plain, width=9)\n"
        "class Fixed(EarlyExitNet):\n"
        "    def __init__(self):\n"
        "        super().__init__([nn.Linear(5, 3)], [nn.Linear(3, 2)])\n"
        "class Maker:\n"
        "    def __call__(self):\n"
        "        return plain(7)\n"
        "made = Maker()\n"
        "def other():\n"
        "    return nn.Linear(1, 1)\n"
    )
    (tmp_path / "my_late_recipes.py").write_text(
        "def plain():\n"
        "    from offramp.network import EarlyExitNet\n"
        "    from torch import nn\n"
        "    return EarlyExitNet([nn.Linear(6, 3)], [nn.Linear(3, 2)])\n"
    )
    for name, width in (("plain", 4), ("wide", 9), ("Fixed", 5), ("made", 7)):
        assert rebuild(Spec(f"my_recipes:{name}")).stages[0].in_features == width
    assert rebuild(Spec("my_late_recipes:plain")).stages[0].in_features == 6
    with pytest.raises(UsageError, match="gives a Linear"):
        rebuild(Spec("my_recipes:other"))
    sys.modules.pop("my_recipes"), sys.modules.pop("my_late_recipes")
