from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from offramp.engine import PLAIN, Engine, Form, Plan, Program, agreement, usual_forms
from offramp.engine.form import apart
from offramp.policy import EVERYBODY, Policy
from offramp.storage import weights_hash


@pytest.mark.parametrize("name", ["msdnet", "ranet", "by hand"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_folded_is_the_same_function(small, images_of, name, dtype, tolerance) -> None:
    network = small(name).to(dtype)
    images_BCHW = images_of(network, 33).to(dtype)
    with torch.no_grad():
        expected_KBC = network(images_BCHW)
    torch.testing.assert_close(Program(network, PLAIN).logits(images_BCHW), expected_KBC, rtol=0, atol=0)
    for form in (Form(), Form(channels_last=False), Form(fold=False)):
        found_KBC = Program(network, form).logits(images_BCHW)
        assert (found_KBC - expected_KBC).abs().max() <= tolerance * expected_KBC.abs().max()


@pytest.mark.parametrize("form", [PLAIN, Form(), Form(bf16=True)], ids=str)
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


def test_forms_have_names() -> None:
    assert str(PLAIN) == "as it is"
    assert str(Form(bf16=True)) == "folded, channels-last, bf16"


@pytest.mark.slow
def test_compiled_gives_the_same_answers(small, images_of, leaving) -> None:
    network = small()
    images_BCHW = images_of(network, 33)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    policy = leaving(logits_KBC, network.num_classes, (0.4, 0.5))
    engine = Engine(network, policy, form=Form(compiled=True), plan=Plan(sizes=(8, 16, 32), chunk=32))
    found = agreement(engine(images_BCHW), logits_KBC, policy, network.num_classes, 1e-4)
    assert (found.images, found.wrong) == (33, 0)


def test_usual_forms(monkeypatch) -> None:
    onnx = Form(backend="onnxruntime")
    assert onnx in usual_forms(torch.device("cpu"))
    assert onnx not in usual_forms(torch.device("cuda"))
    monkeypatch.setattr("offramp.engine.kept.NEEDED", ("onnx", "no_such_package"))
    assert onnx not in usual_forms(torch.device("cpu"))


@pytest.mark.parametrize("own_code", [True, False])
def test_many_parts_are_all_compiled(own_code) -> None:
    """More than torch compiles of one function; without code of their own the last run as they are."""
    torch.compiler.reset()
    compiled = []

    def compiler(graph: fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    parts = [nn.Sequential(nn.Linear(2, n + 1), nn.ReLU()) for n in range(12)]
    for part in parts:
        run = torch.compile(apart(part) if own_code else part, backend=compiler)
        for rows in (4, 3):
            assert torch.equal(run(torch.ones(rows, 2)), part(torch.ones(rows, 2)))
    torch.compiler.reset()
    of_each = 2  # for four rows, and for any number
    assert (len(compiled) == of_each * len(parts)) == own_code
