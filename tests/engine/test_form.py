import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from offramp.engine import PLAIN, Engine, Form, Plan, Program, agreement, usual_forms
from offramp.engine.form import apart
from offramp.errors import UsageError
from offramp.fast.packing import can_pack
from offramp.network import EarlyExitNet
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


class _Grown(nn.Module):
    """Gives a map, and the same with others appended: in a plan both lie in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return x, torch.cat([x, -x], 1)


class _OfSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(y)


def _ending(relu: nn.Module) -> nn.Sequential:
    return nn.Sequential(relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def _written_into() -> EarlyExitNet:
    """The first exit writes into a map; the second stage reads the one that was grown from it before."""
    exits = [_ending(nn.ReLU(inplace=True)), _ending(nn.ReLU())]
    return EarlyExitNet([_Grown(), _OfSecond()], exits, num_classes=2, reads=0).eval()


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN operators")
@pytest.mark.parametrize("channels_last", [True, False])
def test_maps_that_an_exit_writes_into_share_no_memory(channels_last) -> None:
    network, images_BCHW = _written_into(), torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        expected_KBC = network(images_BCHW)
    drawn = torch.get_rng_state()
    program = Program(network, Form(packed=True, channels_last=channels_last))
    for rows in (5, 1, 3):
        torch.testing.assert_close(program.logits(images_BCHW[:rows]), expected_KBC[:, :rows], rtol=0, atol=1e-6)
    assert program.why_not is not None
    assert "writes into a map" in program.why_not
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("form", [PLAIN, Form(), Form(packed=True), Form(bf16=True)], ids=str)
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
    program = Program(EarlyExitNet([nn.Conv2d(3, 4, 1)], [_ending(nn.ReLU())]), Form())
    program.logits(torch.randn(5, 3, 6, 6))
    assert not any(p.is_inference() for part in (*program._stages, *program._heads) for p in part.parameters())


def test_hooks_are_not_called_with_noise(small, images_of) -> None:
    network, seen = small(), []
    network.stages[1].register_forward_hook(lambda module, given, result: seen.append(len(given[0])))
    Program(network, Form(packed=True)).logits(images_of(network, 7))
    assert seen == [7]


@pytest.mark.parametrize("name", ["msdnet", "ranet", "by hand"])
def test_usual_networks_have_plans(small, images_of, name) -> None:
    network = small(name)
    program = Program(network, Form(packed=True))
    program.logits(images_of(network, 2))
    assert program.why_not is None


@pytest.mark.parametrize(
    "form", [PLAIN, Form(), Form(packed=True), Form(bf16=True), Form(bf16=True, packed=True)], ids=str
)
@pytest.mark.parametrize("first", ["first call under autocast", "planned before"])
def test_a_form_has_its_own_precision(small, images_of, form, first) -> None:
    network = small()
    images_BCHW = images_of(network, 5)
    expected_KBC = Program(network, form).logits(images_BCHW)
    program = Program(network, form)
    if first == "planned before":
        program.logits(images_BCHW)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found_KBC = program.logits(images_BCHW)
        assert found_KBC.dtype == program.dtype
        assert torch.equal(found_KBC, expected_KBC)
    assert torch.equal(program.logits(images_BCHW), expected_KBC)
    assert not any(getattr(part, "why_not", None) == "it computes in several types" for part in program._stages)


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


@pytest.mark.parametrize("form", [PLAIN, Form(packed=True)], ids=str)
def test_engines_made_and_called_from_six_threads_at_once_agree(small, images_of, form) -> None:
    """Each traces its network, for which torch.fx stands in the place of methods of all modules, for all threads."""
    network, policy = small(), Policy((0.5, 0.5, EVERYBODY))
    images_BCHW = images_of(network, 40)
    wanted = Engine(network, policy, form=PLAIN)(images_BCHW)
    together = threading.Barrier(6)

    def make_and_call(_: int) -> list[Tensor]:
        together.wait()
        engine = Engine(network, policy, form=form)
        return [engine(images_BCHW).labels_B for _ in range(3)]

    with ThreadPoolExecutor(6) as pool:
        for labels in pool.map(make_and_call, range(6)):
            assert all(torch.equal(labels_B, wanted.labels_B) for labels_B in labels)
