import pytest
import torch
from torch import nn

from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine, Form
from offramp.runtime.torch_ import TorchProgram
from offramp.storage import weights_hash

BF16 = Form(precision="bf16")


@pytest.mark.parametrize("name", ["msdnet", "ranet", "by hand"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_folded_is_the_same_function(small, images_of, name, dtype, tolerance) -> None:
    network = small(name).to(dtype)
    images_BCHW = images_of(network, 33).to(dtype)
    with torch.no_grad():
        expected_KBC = network(images_BCHW)
    as_it_is = TorchProgram(network, Form(), as_it_is=True)
    torch.testing.assert_close(as_it_is.logits(images_BCHW), expected_KBC, rtol=0, atol=0)
    found_KBC = TorchProgram(network, Form()).logits(images_BCHW)
    assert (found_KBC - expected_KBC).abs().max() <= tolerance * expected_KBC.abs().max()


@pytest.mark.parametrize("name", ["msdnet", "ranet", "by hand"])
def test_segments_and_straight_are_the_networks(small, images_of, name) -> None:
    network = small(name)
    images_BCHW, last = images_of(network, 7), network.num_exits - 1
    program = TorchProgram(network, Form())
    with torch.inference_mode():
        logits_KBC = network(images_BCHW)
        nothing, carry = program.segment(0, 0, program.enter(images_BCHW), head=False)
        found_BC, _ = program.segment(1, last, carry)
        assert nothing is None
        torch.testing.assert_close(found_BC, logits_KBC[last], rtol=1e-4, atol=1e-5)
        for k in range(network.num_exits):
            torch.testing.assert_close(program.straight(images_BCHW, k), logits_KBC[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [Form(), BF16], ids=str)
def test_the_network_given_is_untouched(small, images_of, form) -> None:
    network = small().train()
    network.exits[0].eval()
    network.stages[0].requires_grad_(False)

    def state() -> list:
        modes = [module.training for module in network.modules()]
        grads = [(parameter.requires_grad, parameter.stride()) for parameter in network.parameters()]
        return [weights_hash(network.state_dict()), modes, grads, [*map(type, network.modules())]]

    before = state()
    images_BCHW = images_of(network, 7)
    kept_BCHW = images_BCHW.clone()
    engine = Engine(network, Policy((0.5, 0.5, EVERYBODY)), form=form)
    engine(images_BCHW)
    list(engine.stream([images_BCHW]))
    assert state() == before
    assert torch.equal(images_BCHW, kept_BCHW)
    assert images_BCHW.is_contiguous()


def test_an_engine_keeps_the_weights_it_was_made_with(small, images_of) -> None:
    network = small()
    images_BCHW = images_of(network, 7)
    engine = Engine(network, Policy((0.5, 0.5, EVERYBODY)))
    before = engine(images_BCHW)
    nn.init.zeros_(network.exits[2][-1].weight)
    assert torch.equal(engine(images_BCHW).confidence_B, before.confidence_B)


def _ending(relu: nn.Module) -> nn.Sequential:
    return nn.Sequential(relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("form", [Form(), BF16], ids=str)
def test_an_exit_that_changes_later_answers_is_refused(form) -> None:
    stages, exits = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)], [_ending(nn.ReLU(inplace=True)), _ending(nn.ReLU())]
    network, images_BCHW = EarlyExitNet(stages, exits), torch.randn(5, 3, 6, 6)
    says = r"^Exit 1 writes into a map that stage 2 reads \(in place\)"
    engine = Engine(network, Policy((0.6, EVERYBODY)), form=form)
    for _ in range(2):
        for call in (engine, engine.straight(5), engine.program.logits):
            with pytest.raises(UsageError, match=says):
                call(images_BCHW)
    network.image_shape = (3, 6, 6)
    with pytest.raises(UsageError, match=says):
        Engine(network, Policy((0.6, EVERYBODY)), form=form)
    network.exits[0][0].inplace = False
    Engine(network, Policy((0.6, EVERYBODY)), form=form)(images_BCHW)


def test_weights_of_a_network_without_image_shape_are_no_tensors_of_inference_mode() -> None:
    program = TorchProgram(EarlyExitNet([nn.Conv2d(3, 4, 1)], [_ending(nn.ReLU())]), Form())
    program.logits(torch.randn(5, 3, 6, 6))
    assert not any(p.is_inference() for p in program._twin.parameters())


def test_hooks_are_not_called_with_noise(small, images_of) -> None:
    network, seen = small(), []
    network.stages[1].register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    TorchProgram(network, Form()).logits(images_of(network, 7))
    assert seen == [7]


@pytest.mark.parametrize("form", [Form(), BF16], ids=str)
def test_a_form_has_its_own_precision(small, images_of, form) -> None:
    network = small()
    images_BCHW = images_of(network, 5)
    program = TorchProgram(network, form)
    expected_KBC = program.logits(images_BCHW)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found_KBC = program.logits(images_BCHW)
        assert found_KBC.dtype == program.dtype
        assert torch.equal(found_KBC, expected_KBC)


def test_weights_with_five_axes() -> None:
    """Channels innermost is for maps of four axes; a network of three-dimensional convolutions could not be made."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x[:, None]).amax(2)

    network = EarlyExitNet([Deep()], [_ending(nn.ReLU())], image_shape=(3, 6, 6)).eval()
    images_BCHW = torch.randn(5, 3, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(TorchProgram(network, Form()).logits(images_BCHW), network(images_BCHW))
