"""A form is its network, whatever is asked of it."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.fast import Merged, training_form
from offramp.network import EarlyExitNet, plain_link


def test_other_batches_and_image_sizes(small, images, equal, both) -> None:
    form, twin = both(small())
    for batch, side in [(4, 6), (3, 6), (1, 6), (2, 9), (4, 6)]:
        equal(form, images(batch, side), twin)
    assert not form.why_not


def test_one_exit_alone_reaches_the_same_parameters(small, images) -> None:
    network = small()
    form, twin, x = Merged(network), copy.deepcopy(network), images()
    for k in range(2):
        found = network.exit_logits(x, form.stages, form.exits)[k]
        wanted = twin.exit_logits(x)[k]
        ours = torch.autograd.grad(found.square().sum(), [*network.parameters()], allow_unused=True)
        theirs = torch.autograd.grad(wanted.square().sum(), [*twin.parameters()], allow_unused=True)
        assert [g is None for g in ours] == [g is None for g in theirs]
        assert any(g is None for g in ours)
        torch.testing.assert_close([g for g in ours if g is not None], [g for g in theirs if g is not None])


def test_evaluation_and_no_gradients_run_the_network_itself(small, images, equal, both) -> None:
    form, twin = both(small())
    x = images()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(form(x), twin(x))
    equal(form, x, twin)
    form.network.eval()
    assert torch.equal(form(x), form.network(x))


def test_second_backward_passes(small, images) -> None:
    form = Merged(small())
    parameters = [*form.network.parameters()]
    loss = form(images()).square().sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, first, again))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_of_gradients_are_refused(small, images) -> None:
    form, x = Merged(small()), images().requires_grad_()
    with pytest.raises(UsageError, match="use form plain"):
        torch.autograd.grad(form(x).sum(), x, create_graph=True)


def test_inputs_that_are_no_maps(unit, small, images, equal, both) -> None:
    stages = [nn.Sequential(unit(3, 2), nn.Flatten(), nn.Linear(72, 5)), nn.Linear(5, 4)]
    form, twin = both(small(*stages, exits=[nn.Linear(5, 2), nn.Linear(4, 2)]))
    equal(form, images(), twin)


@pytest.mark.parametrize("dropout", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.RReLU()])
@pytest.mark.parametrize("place", ["map", "exit"])
def test_random_numbers_are_the_modules(unit, head, small, images, equal, both, dropout: nn.Module, place: str) -> None:
    """The same bits of the same generator fall on the same values."""
    stage, end = nn.Sequential(unit(3, 4), unit(4, 4)), head(4)
    if place == "map":
        stage.insert(1, dropout)
    else:
        end = nn.Sequential(dropout, nn.Flatten(), nn.Linear(144, 2))
    form, twin = both(small(stage, exits=[end]))
    for _ in range(2):
        equal(form, images(), twin)
    torch.manual_seed(3)
    form(images(3))
    ours = torch.get_rng_state()
    torch.manual_seed(3)
    twin(images(3))
    assert torch.equal(ours, torch.get_rng_state())


def test_one_value_a_channel_is_an_error_as_in_the_module(unit, head, small, images, equal, both) -> None:
    form, twin = both(small(unit(3, 4), exits=[head(4)]))
    x = images(1, 1)
    for module in (form, twin):
        with pytest.raises(ValueError, match=r"single value|more than 1 value"):
            module(x)
    twin.load_state_dict(form.network.state_dict())
    equal(form, images(2, 1), twin)


def test_types_that_do_not_fit_are_an_error_as_in_the_module(small, images) -> None:
    form = Merged(small())
    for x in (images().float(), images().bfloat16()):
        with pytest.raises(RuntimeError, match="type"):
            form(x)


def test_networks_are_copied_and_pickled_while_a_form_exists(small, images, equal, both) -> None:
    form, twin = both(small())
    equal(form, images(), twin)
    buffer = io.BytesIO()
    torch.save(form.network, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    for network in (again, copy.deepcopy(form.network)):
        equal(Merged(network), images(), copy.deepcopy(twin))


def test_links_are_called_between_parts(small, images, equal, both) -> None:
    network = small()

    def link(k: int, K: int, carry: Any, reads: int) -> Any:
        return plain_link(k, K, tuple(x.detach() for x in carry), reads)

    network.link = link
    form, twin = both(network)
    equal(form, images(), twin)
    network.zero_grad()
    form(images())[1].sum().backward()
    assert network.stages[0].one[0].weight.grad is None


def test_shared_stages_and_parameters(unit, head, small, images, equal, both) -> None:
    shared = unit(3, 3, 3)
    network = small(nn.Sequential(shared, unit(3, 3)), shared, nn.Sequential(shared, shared), exits=[head(3)] * 3)
    network.stages[0][1][0].weight = nn.Parameter(torch.randn(3, 3, 1, 1, dtype=torch.float64))
    network.exits[0][0][1].bias = network.stages[0][1][1].bias
    form, twin = both(network)
    equal(form, images(), twin)


class Stream(nn.Module):
    """Adds to its map what a unit makes of it: under autocast a sum in float32, of bfloat16."""

    def __init__(self, unit: nn.Module, joins: bool) -> None:
        super().__init__()
        self.unit, self.joins = unit, joins

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.unit(x)
        x = x.float() + 0.001
        return torch.cat([x, x * 3], 1)[:, 3:] / 3 if self.joins else x


@pytest.mark.parametrize("joins", [False, True])
def test_a_stream_stays_as_exact_as_the_modules_keep_it(unit, head, small, images, both, joins: bool) -> None:
    network = small(*(Stream(unit(3, 3, 3), joins) for _ in range(3)), exits=[head(3)] * 3).float()
    form, twin = both(network)
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        carry = other = (x,)
        for stage, module in zip(form.stages, twin.stages, strict=True):
            carry, other = (stage(*carry),), (module(*other),)
    assert carry[0].dtype == other[0].dtype == torch.float32
    assert (carry[0] - carry[0].bfloat16()).abs().max() > 1e-4
    torch.testing.assert_close(carry, other, rtol=2e-2, atol=2e-2)


def test_auto_is_plain_where_others_decide(unit, head, small) -> None:
    network = small(nn.Sequential(unit(3, 4)), exits=[head(4)])
    assert isinstance(training_form(network, "auto", torch.device("cpu")), Merged)
    assert training_form(network, "auto", torch.device("cuda")) is network
    assert not isinstance(training_form(small(), "auto", torch.device("cpu")), Merged)
    assert training_form(network, "plain", torch.device("cpu")) is network
    with pytest.raises(UsageError, match="for a CPU, not for cuda"):
        training_form(network, "kernels", torch.device("cuda"))


def test_networks_with_a_forward_of_their_own_are_refused(unit, head) -> None:
    class Own(EarlyExitNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 2

    network = Own([unit(3, 4)], [head(4)])
    assert training_form(network, "auto", torch.device("cpu")) is network
    for name in ("merged", "kernels"):
        with pytest.raises(UsageError, match="use plain"):
            training_form(network, name, torch.device("cpu"))
