"""Exits on models of different make: the parts are the model, in both modes, for any number of rows."""

import contextlib
import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import offramp
from offramp import backbones
from offramp.backbones.attached import attach, zoo
from offramp.config import Spec
from offramp.network import NO_NEURON, Carry, EarlyExitNet, rebuild
from offramp.objectives import Damping, PowerSqrt, dynamic
from offramp.policy import EVERYBODY, Policy
from offramp.rules import DFS, GradientEquilibrium, Standard
from offramp.rules.pcgrad import PCGrad
from offramp.runtime.agreement import FLOAT32, agreement
from offramp.storage import load_tensors, save_tensors

N = 5
TINY_VIT = {"depth": 4, "embed_dim": 24, "num_heads": 2, "drop_path_rate": 0.3, "attn_drop_rate": 0.2}


class Row(NamedTuple):
    name: str
    side: int
    arguments: dict[str, Any] = {}  # noqa: RUF012 - never changed
    neuron: bool = True
    """Whether the last exit can be given the damping neuron."""
    exits: int = 4
    """How many `at="auto"` finds places for; it warns where these are fewer."""

    def __str__(self) -> str:
        return self.name


ORDINARY = [
    Row("timm/test_resnet", 32),
    Row("torchvision/squeezenet1_1", 32, neuron=False),
    Row("timm/vit_tiny_patch16_224", 64, TINY_VIT),
    Row("timm/convnext_atto", 64, {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.3}),
]
SLOW = [
    Row("torchvision/resnet18", 32),
    Row("timm/mobilenetv3_small_050", 64, {"drop_rate": 0.2}),
    Row("torchvision/regnet_x_400mf", 64),
    Row("torchvision/densenet121", 64),
    Row("torchvision/efficientnet_b0", 64),
    Row("torchvision/vgg11_bn", 32, exits=3),  # its hidden Linear layers have most of the operations
    Row("torchvision/swin_t", 64),
    Row("torchvision/swin_v2_t", 64),
    Row("torchvision/vit_b_32", 64),
    Row("torchvision/maxvit_t", 224),
    Row("torchvision/shufflenet_v2_x0_5", 64),
    Row("torchvision/googlenet", 64),
    Row("torchvision/inception_v3", 96),
    Row("timm/resnet18", 64, {"drop_path_rate": 0.2, "drop_rate": 0.1}),
    Row("timm/deit_tiny_distilled_patch16_224", 64, TINY_VIT, neuron=False),
    Row("timm/swin_tiny_patch4_window7_224", 224, {"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}),
    Row("timm/mixer_s32_224", 64, {"drop_path_rate": 0.2}),
    Row("timm/maxvit_rmlp_pico_rw_256", 256),
    Row("timm/beit_base_patch16_224", 64, {**TINY_VIT, "init_values": 0.1}),
    Row("timm/cait_xxs24_224", 64, {"depth": 4, "embed_dim": 24, "num_heads": 2, "drop_path_rate": 0.2}),
    Row("timm/tf_efficientnet_lite0", 64, {"drop_path_rate": 0.2}),
    Row("timm/regnety_002", 64),
    Row("timm/nf_resnet26", 64),
    Row("timm/hrnet_w18_small", 64),
    Row("timm/ghostnet_050", 64),
    Row("timm/coatnet_pico_rw_224", 224),
    Row("timm/mobilevit_xxs", 64),
    Row("timm/edgenext_xx_small", 64),
    Row("timm/levit_128s", 224, neuron=False),
]
ROWS = [*ORDINARY, *(pytest.param(row, marks=pytest.mark.slow) for row in SLOW)]


class Pair(NamedTuple):
    row: Row
    model: nn.Module
    network: EarlyExitNet  # damping off, the model's own head

    def images(self, number: int) -> Tensor:
        return torch.randn(number, 3, self.row.side, self.row.side)


def with_exits(row: Row, model: nn.Module, *, damping: bool = False) -> EarlyExitNet:
    few = pytest.warns(UserWarning, match="has no place to cut near") if row.exits < 4 else contextlib.nullcontext()
    with few:
        network = attach(model, image_shape=(3, row.side, row.side), damping=damping)
    assert network.num_exits == row.exits
    return network


@pytest.fixture(scope="module", params=ROWS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    row: Row = request.param
    model = zoo.named_model(row.name, num_classes=N, image_size=row.side, **row.arguments)
    for norm in model.modules():  # as if it had been trained: statistics and scales of its own
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = 0.1 * torch.randn_like(norm.running_mean)
            norm.running_var = norm.running_var + torch.rand_like(norm.running_var)
    return Pair(row, model, with_exits(row, model))


def path_of_last(network: EarlyExitNet, images: Tensor) -> Tensor:
    carry: Carry = (images,)
    for k in range(network.num_exits):
        carry = network.run_stage(k, carry)
    return network.run_exit(network.num_exits - 1, carry)


def own(network: EarlyExitNet, named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What is of the model, by the names it has there."""
    last = f"exits.{network.num_exits - 1}."
    return {name.split(".", 2)[2]: x for name, x in named if name.startswith(("stages.", last))}


def test_the_last_exit_gives_the_logits_of_the_model(pair: Pair) -> None:
    for number in (1, 3):
        images = pair.images(number)
        with torch.no_grad():
            torch.testing.assert_close(pair.network.eval()(images)[-1], pair.model.eval()(images))


def test_it_trains_as_the_model_does(pair: Pair) -> None:
    model, network = copy.deepcopy(pair.model).train(), copy.deepcopy(pair.network).train()
    images = pair.images(4)
    found = []
    for run in (model, lambda x: path_of_last(network, x)):
        torch.manual_seed(1)
        logits = run(images.clone())
        (logits * torch.linspace(-1, 1, N)).sum().backward()
        found.append((logits.detach(), torch.get_rng_state()))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])  # as many random numbers
    torch.testing.assert_close(own(network, network.state_dict().items()), dict(model.state_dict()))
    named = own(network, network.named_parameters())
    for name, parameter in model.named_parameters():
        message = name + ": {}"
        torch.testing.assert_close(named[name].grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=message.format)


def test_the_tensors_have_the_names_of_the_model(pair: Pair) -> None:
    for network in (pair.network, copy.deepcopy(pair.network)):
        assert own(network, network.state_dict().items()).keys() == pair.model.state_dict().keys()


def takes_no_rows(model: nn.Module, images: Tensor) -> bool:
    """Many models guess a side from the number of elements, which they cannot do of nothing."""
    try:
        return len(model(images[:0])) == 0
    except RuntimeError:
        return False


def test_rows_may_be_dropped_at_every_cut(pair: Pair) -> None:
    network, images = pair.network.eval(), pair.images(6)
    with torch.no_grad():
        wanted = network(images)
        rows, carry = torch.arange(6), (images,)
        for k in range(network.num_exits):
            carry = network.run_stage(k, carry)
            assert all(len(x) == len(rows) for x in carry)
            torch.testing.assert_close(network.run_exit(k, carry), wanted[k, rows], rtol=1e-4, atol=1e-5)
            kept = torch.arange(len(rows)) % 3 != 1
            rows, carry = rows[kept], tuple(x[kept] for x in carry)
        assert network.run_exit(0, network.run_stage(0, (images[:1],))).shape == (1, N)
        if takes_no_rows(pair.model.eval(), images):
            assert network(images[:0]).shape == (network.num_exits, 0, N)


def test_the_neuron_leaves_the_class_logits_alone(pair: Pair) -> None:
    images = pair.images(2)
    network = with_exits(pair.row, pair.model, damping=True).eval()
    with torch.no_grad():
        logits = network(images)
        torch.testing.assert_close(logits[-1, :, :N], pair.model.eval()(images))
        assert (logits[-1, :, N] == (0 if pair.row.neuron else NO_NEURON)).all()
        assert network.class_log_probs(logits).isfinite().all()


def test_it_is_saved_and_built_again(pair: Pair, tmp_path: Path) -> None:
    arguments = {**pair.row.arguments, "at": pair.network.origin["at"]}
    shape = (3, pair.row.side, pair.row.side)
    built = backbones.build(Spec(pair.row.name, arguments), num_classes=N, image_shape=shape)
    assert built.origin["model"] == pair.row.name
    built.load_state_dict(pair.network.state_dict())
    save_tensors(tmp_path / "weights.safetensors", built.state_dict())
    again = rebuild(Spec.from_json(built.spec.to_json()))
    again.load_state_dict(load_tensors(tmp_path / "weights.safetensors")[0])
    images = pair.images(2)
    with torch.no_grad():
        wanted = pair.network.eval()(images)
        assert torch.equal(again.eval()(images), wanted)
        assert torch.equal(copy.deepcopy(again)(images), wanted)


def test_what_it_costs_rises_from_exit_to_exit(pair: Pair) -> None:
    operations = [count.operations for count in offramp.cost(pair.network).exits]
    assert operations == sorted(operations)
    assert offramp.cost(pair.network).exits[-1].parameters > sum(p.numel() for p in pair.model.parameters())


def test_the_engine_answers_as_the_policy(pair: Pair) -> None:
    network, images = pair.network.eval(), pair.images(6)
    with torch.no_grad():
        logits = network(images)
    confidence = logits.softmax(-1).amax(-1)
    policy = Policy((*confidence[:-1].median(1).values.tolist(), EVERYBODY))
    answers = offramp.Engine(network, policy)(images)
    assert agreement(answers, logits, policy, N, FLOAT32).wrong == 0


STEPS: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (dynamic, GradientEquilibrium),
    (lambda: dynamic("damping"), PCGrad),
    (PowerSqrt, DFS),  # needs a Linear at every exit
    (Damping, Standard),
]
MODELS = [*ORDINARY, *SLOW]


def test_a_step_of_training(pair: Pair, tmp_path: Path) -> None:
    """Each model under one pair of an objective and a rule, in turn."""
    number = MODELS.index(pair.row) % len(STEPS)
    objective, rule = STEPS[number - 1 if STEPS[number][1] is DFS and not pair.row.neuron else number]
    shape = (3, pair.row.side, pair.row.side)
    network = with_exits(pair.row, pair.model, damping=objective().damping_neuron == "required")
    before = copy.deepcopy(network.state_dict())
    images = torch.randint(0, 255, (20, *shape), dtype=torch.uint8).numpy()
    train, _, _ = offramp.data.arrays(images, (torch.arange(20) % N).numpy(), batch_size=16, holdout=0)
    config = offramp.TrainConfig(epochs=1, lr=0.01)
    trained = offramp.fit(network, objective(), train, config=config, out=tmp_path, rule=rule())
    after = trained.state_dict()
    assert all(x.isfinite().all() for x in after.values())
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    exits = {name.split(".")[1] for name in changed if name.startswith("exits.")}
    assert exits == set(map(str, range(network.num_exits)))
    assert any(name.startswith("stages.0.") for name in changed)
