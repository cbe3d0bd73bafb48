"""The engine run by onnxruntime. Networks are exported once for all tests: it takes seconds."""

import copy
import dataclasses
import functools
import gc
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented
from torch import Tensor, nn

from offramp import export
from offramp.backbones import attach
from offramp.errors import OfframpError, UsageError
from offramp.network import NO_NEURON, EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import FLOAT32, Answers, Engine, Form, Plan, Tally, kept, sessions, usual_forms

ONNX = Form(backend="onnxruntime")
NETWORKS = (("msdnet", True), ("ranet", False), ("by hand", False))
FEW_LAYERS = {"msdnet": {"step_mode": "even"}, "ranet": {"step_mode": "even", "blocks": 2, "block_step": 1}}
BATCHES = (0, 1, 7, 32)
pytestmark = pytest.mark.usefixtures("operators_once")


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[EarlyExitNet, Tensor, Tensor]]:
    return {}


@pytest.fixture
def some(small, images_of, leaving, made) -> Callable[..., tuple[EarlyExitNet, Tensor, Tensor, Policy]]:
    """A function from a network's name to network, 200 images, their logits, and a policy by which some leave."""

    def get(name: str = "msdnet", damping: bool = True, measure: Measure | None = None):
        if name not in made:
            network = small(name, damping=damping, **FEW_LAYERS.get(name, {}))
            images_BCHW = images_of(network, 200)
            with torch.no_grad():
                made[name] = network, images_BCHW, network(images_BCHW)
        network, images_BCHW, logits_KBC = made[name]
        return network, images_BCHW, logits_KBC, leaving(logits_KBC, network.num_classes, (0.4, 0.5, 0.3), measure)

    return get


def bare(stage: nn.Module, **others) -> EarlyExitNet:
    head = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    return EarlyExitNet([stage], [head], **{"image_shape": (3, 4, 4), **others}).eval()


class Deciding(nn.Module):
    """Its way depends on what it is given, which no trace can say."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool((x > 0).all()) else x


def agree(engine: Engine, answers: Answers, logits_KBC: Tensor, plan: Plan) -> None:
    found = engine.agreement(answers, logits_KBC, engine.policy_under(plan))
    assert (found.images, found.wrong, found.tolerance) == (logits_KBC.shape[1], 0, FLOAT32)
    assert found.flips <= 1


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
def test_answers_are_those_of_the_policy(some, name, damping) -> None:
    network, images_BCHW, logits_KBC, policy = some(name, damping)
    assert len(policy.choose(logits_KBC, network.num_classes).exits_S.unique()) >= 3
    engine = Engine(network, policy, backend="onnxruntime")
    torch.testing.assert_close(engine.program.logits(images_BCHW), logits_KBC, rtol=1e-4, atol=1e-4)
    for size in (*BATCHES, 200):
        agree(engine, engine(images_BCHW[:size]), logits_KBC[:, :size], engine.plan_for(size))


@pytest.mark.parametrize(("name", "damping"), NETWORKS)
def test_no_image_is_no_trouble(some, name, damping) -> None:
    network, images_BCHW, logits_KBC, policy = some(name, damping)
    engine = Engine(network, policy, backend="onnxruntime")
    assert engine.program.logits(images_BCHW[:0]).shape == logits_KBC[:, :0].shape
    assert [len(answers.labels_B) for answers in engine.stream([images_BCHW[:0], images_BCHW[:3]])] == [0, 3]


@pytest.mark.parametrize(
    "plan",
    [Plan(sizes=(), chunk=None), Plan(chunk=5), Plan(compacts=()), Plan(asks=(1,)), Plan(straight=True)],
    ids=str,
)
def test_plans_streams_and_tallies(some, plan) -> None:
    network, images_BCHW, logits_KBC, policy = some()
    engines = [Engine(network, policy, form=form, plan=plan) for form in (ONNX, Form())]
    tallies = []
    for engine in engines:
        tally = engine.tally(timed=True)
        agree(engine, engine(images_BCHW, tally=tally), logits_KBC, plan)
        streamed = engine.stream(torch.split(images_BCHW, 7), window=40, tally=tally)
        agree(engine, Answers(*map(torch.cat, zip(*streamed, strict=True))), logits_KBC, plan)
        assert sum(tally.seconds_K) > 0
        tallies.append(tally)
    assert _counts(tallies[0]) == _counts(tallies[1])


def _counts(tally: Tally) -> list[list[int]]:
    return [tally.exits_K, tally.stage_rows_K, tally.head_rows_K]


def test_as_ready_anytime_and_exit_by_exit(some) -> None:
    network, images_BCHW, logits_KBC, policy = some("ranet", False)
    engine = Engine(network, policy, backend="onnxruntime")
    pieces = list(engine.as_ready(torch.split(images_BCHW, 9)))
    positions_B = torch.cat([positions_B for positions_B, _ in pieces])
    assert positions_B.sort().values.tolist() == [*range(200)]
    columns = (torch.cat(column)[positions_B.argsort()] for column in zip(*(one for _, one in pieces), strict=True))
    agree(engine, Answers(*columns), logits_KBC, engine.stream_plan)
    *_, last = engine.each_exit(images_BCHW)
    agree(engine, last, logits_KBC, Plan())
    first = engine.anytime(images_BCHW, deadline_ms=0)
    assert first.exits_B.unique().tolist() == [0]
    torch.testing.assert_close(first.confidence_B, policy.measure.over(logits_KBC, 5)[0][0], rtol=0, atol=FLOAT32)


def test_patience(some) -> None:
    network, images_BCHW, logits_KBC, _ = some("ranet", False)
    policy = Policy((*[1.0] * (network.num_exits - 1), EVERYBODY), Measure("patience"))
    engine = Engine(network, policy, backend="onnxruntime")
    agree(engine, engine(images_BCHW), logits_KBC, Plan())


def test_only_exits_that_may_answer_run(some, monkeypatch) -> None:
    network, images_BCHW, _, policy = some()
    thresholds = (policy.thresholds[0], NOBODY, EVERYBODY)
    engine = Engine(network, dataclasses.replace(policy, thresholds=thresholds), backend="onnxruntime")
    ran = []
    call = sessions._Session.__call__

    def noted(session, *carry: Tensor):
        ran.append((session, len(carry[0])))
        return call(session, *carry)

    monkeypatch.setattr(sessions._Session, "__call__", noted)
    tally = engine.tally()
    exits_B = engine(images_BCHW[:32], tally=tally).exits_B
    loaded = engine.program._loaded
    rows = [[sum(n for one, n in ran if one is part) for part in kind] for kind in (loaded.stages, loaded.exits)]
    assert rows == [tally.stage_rows_K, tally.head_rows_K]
    assert rows[1][1] == 0
    assert 0 < (exits_B == 2).sum() <= rows[0][2] < 32
    ran.clear()
    one = images_BCHW[:32][exits_B == 0][:1]
    engine(one)
    assert [session for session, _ in ran] == [loaded.stages[0], loaded.exits[0]]


def test_tensors_are_not_copied_and_answers_are_ours(some, monkeypatch) -> None:
    network, images_BCHW, _, policy = some()
    program = Engine(network, policy, backend="onnxruntime").program
    given = []
    session = program._stages[0]
    inner = session.session

    class Noted:
        def run(self, outputs, feeds):
            given.append({name: array.ctypes.data for name, array in feeds.items()})
            return inner.run(outputs, feeds)

    session.session = Noted()
    try:
        carry = program.enter(images_BCHW[:7])
        first = program.stage(0, carry)
        before = [tensor.clone() for tensor in first]
        for size in (1, 7, 64, 7):
            program.stage(0, program.enter(images_BCHW[-size:]))
    finally:
        session.session = inner
    assert given[0] == {"images": images_BCHW.data_ptr()}
    assert all(torch.equal(*pair) for pair in zip(first, before, strict=True))
    assert all(torch.equal(*pair) for pair in zip(program.stage(0, carry), before, strict=True))
    first[0].zero_()  # nor is it another's
    assert torch.equal(program.stage(0, carry)[0], before[0])


def test_images_as_they_come(some) -> None:
    """Channels innermost, double, with a gradient wanted: as every other form takes them."""
    network, images_BCHW, logits_KBC, policy = some()
    engine = Engine(network, policy, backend="onnxruntime")
    for given in (
        images_BCHW.contiguous(memory_format=torch.channels_last),
        images_BCHW.double(),
        images_BCHW.clone().requires_grad_(),
        images_BCHW.flip(0).flip(0),
        images_BCHW[:, :, :, :],
    ):
        agree(engine, engine(given), logits_KBC, Plan())
    with pytest.raises(UsageError, match=r"Images must be a batch \[B, 3, 16, 16\]"):
        engine(images_BCHW[:, :1])


def test_a_second_engine_shares_the_sessions_and_a_third_finds_the_files(some, monkeypatch) -> None:
    network, _, _, policy = some()
    first = Engine(network, policy, backend="onnxruntime")
    monkeypatch.setattr(kept, "make", None)
    again = Engine(network, policy, form=ONNX)
    assert again.program._stages[0] is first.program._stages[0]
    del first, again
    gc.collect()
    assert (kept.place(network), torch.get_num_threads()) not in sessions._alive
    Engine(network, policy, backend="onnxruntime")


def test_files_that_are_not_the_networks_are_made_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    network, images_BCHW = bare(nn.ReLU()), torch.randn(7, 3, 4, 4)
    policy, folder = Policy((EVERYBODY,)), kept.place(network)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    parts = export.parts(network)
    monkeypatch.setattr(export, "stages", functools.partial(export.stages, made=parts))
    others = copy.deepcopy(parts.exits[0].model)
    for tensor in (one for one in others.graph.initializer if one.data_type == TensorProto.FLOAT):
        tensor.raw_data = bytes(len(tensor.raw_data))
    for content in (others.SerializeToString(), b"damaged"):
        kept.make(network, folder)
        (folder / "exit-1.onnx").write_bytes(content)
        engine = Engine(network, policy, backend="onnxruntime")
        agree(engine, engine(images_BCHW), logits_KBC, Plan())
        del engine


def test_files_that_load_and_fail_when_they_are_run_are_made_anew(some, monkeypatch) -> None:
    network, images_BCHW, logits_KBC, policy = some()
    files = kept.find(kept.place(network)) or kept.make(network, kept.place(network))

    class Failing:
        def logits(self, images_BCHW: Tensor) -> list[Tensor]:
            raise RuntimeError("onnxruntime's own error")

    monkeypatch.setattr(sessions, "_alive", {})
    monkeypatch.setattr(sessions, "_from_kept", lambda *_: Failing())
    monkeypatch.setattr(kept, "make", lambda *_: files)
    engine = Engine(network, policy, backend="onnxruntime")
    agree(engine, engine(images_BCHW), logits_KBC, Plan())


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (NotImplemented("no kernel for Resize"), OfframpError, "onnxruntime cannot run this network: no kernel for Re"),
        (TypeError("a bug of ours"), TypeError, "^a bug of ours$"),
    ],
)
def test_what_onnxruntime_cannot_run_is_said_in_a_line(some, monkeypatch, error, raised, says: str) -> None:
    network, _, _, policy = some()
    files = kept.find(kept.place(network)) or kept.make(network, kept.place(network))

    def fail(*_) -> None:
        raise error

    monkeypatch.setattr(sessions, "_alive", {})
    monkeypatch.setattr(kept, "make", lambda *_: files)
    monkeypatch.setattr(sessions._Session, "__call__", fail)
    with pytest.raises(raised, match=says):
        Engine(network, policy, backend="onnxruntime")


def test_answers_of_another_network_are_refused(some, monkeypatch) -> None:
    network, _, _, policy = some()
    other = copy.deepcopy(network)
    nn.init.zeros_(other.exits[1][-1].weight)
    files = kept.find(kept.place(network)) or kept.make(network, kept.place(network))
    monkeypatch.setattr(kept, "find", lambda folder: None)
    monkeypatch.setattr(kept, "make", lambda *_: files)
    with pytest.raises(UsageError, match="exit 2 gives other logits than run by torch"):
        Engine(other, dataclasses.replace(policy, network=None), backend="onnxruntime")


class Elsewhere(nn.ReLU):
    """As if it lay on another device: it computes only where it was brought to the processor."""

    here = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.here = fn(torch.empty(0)).device.type == "cpu"
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        assert self.here
        return super().forward(x)


def test_a_network_that_lies_elsewhere_is_compared_on_the_cpu() -> None:
    network = bare(Elsewhere())
    same = EarlyExitNet([nn.ReLU()], network.exits).eval()
    assert sessions.differs(network, SimpleNamespace(logits=same.exit_logits)) is None
    assert not network.stages[0].here  # a copy was brought


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_network_on_a_gpu_is_run_on_the_cpu(some) -> None:
    network, images_BCHW, logits_KBC, policy = some()
    engine = Engine(network.cuda(), policy, backend="onnxruntime", device="cpu")
    agree(engine, engine(images_BCHW), logits_KBC, Plan())
    tuning = Engine(network, policy, device="cpu").tune(images_BCHW, batch_sizes=(8,), forms=[ONNX], seconds=0.1)
    assert tuning.form == ONNX


class WithoutNeuron(nn.Module):
    """An exit without the damping neuron where others have it: its output is far from all others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(self.linear(x.flatten(1)), (0, 1), value=NO_NEURON)


def test_an_exit_without_a_neuron_is_compared_by_its_classes() -> None:
    first, second = (EarlyExitNet([nn.ReLU()], [WithoutNeuron()], damping=True, image_shape=(3, 4, 4)) for _ in "ab")
    loaded = SimpleNamespace(logits=first.exit_logits)
    assert sessions.differs(first, loaded) is None
    assert sessions.differs(second, loaded) == 0


def test_exits_attached_to_a_model() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(a, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for a in (3, 8, 8)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    network = attach(model, at=["0", "1"], image_shape=(3, 12, 12))
    images_BCHW = torch.randn(33, 3, 12, 12)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    confidence_KB, _ = Policy((EVERYBODY,)).measure.over(logits_KBC, 5)
    engine = Engine(network, Policy((*confidence_KB[:2].median(-1).values.tolist(), EVERYBODY)), backend="onnxruntime")
    for size in (1, 7, 33):
        answers = engine(images_BCHW[:size])
        agree(engine, answers, logits_KBC[:, :size], Plan())
    assert answers.exits_B.unique().tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_resnet_with_exits() -> None:
    import torchvision

    torch.manual_seed(0)
    network = attach(torchvision.models.resnet18(), "auto", num_classes=10, image_shape=(3, 64, 64)).eval()
    images_BCHW = torch.randn(32, 3, 64, 64)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    confidence_KB, _ = Policy((EVERYBODY,)).measure.over(logits_KBC, 10)
    policy = Policy((*confidence_KB[:-1].median(-1).values.tolist(), EVERYBODY))
    engine = Engine(network, policy, backend="onnxruntime")
    for size in (1, 7, 32):
        agree(engine, engine(images_BCHW[:size]), logits_KBC[:, :size], Plan())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: bare(nn.ReLU()).double(), r"in float32, and the network in torch.float64: give it network.float\(\)"),
        (lambda: bare(nn.ReLU(), image_shape=None), "made for images of one shape, and this network does not say"),
        (lambda: bare(Deciding()), "Stage 1 cannot be traced"),
    ],
)
def test_networks_that_cannot_be_run_say_why(network, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(network(), Policy((EVERYBODY,)), backend="onnxruntime")


def test_another_device_is_refused() -> None:
    with pytest.raises(UsageError, match="runs on the CPU here, not on meta"):
        Engine(bare(nn.ReLU()), Policy((EVERYBODY,)), backend="onnxruntime", device=torch.device("meta"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tensorrt"}, "backend must be torch or onnxruntime, not 'tensorrt'"),
        ({"backend": "onnxruntime", "bf16": True}, "bf16 can be had with backend='torch' only"),
        ({"backend": "onnxruntime", "compiled": True, "packed": True}, "compiled and packed can be had"),
    ],
)
def test_forms_that_cannot_be(arguments, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Form(**arguments)


def test_the_form() -> None:
    assert str(ONNX) == "onnxruntime"
    assert ONNX == Form(backend="onnxruntime", fold=False) != Form(fold=False, channels_last=False)
    with pytest.raises(UsageError, match="a form or a backend, not both"):
        Engine(bare(nn.ReLU()), Policy((EVERYBODY,)), form=ONNX, backend="onnxruntime")


def test_without_the_package_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(sessions, "_runtime", sessions._runtime.__wrapped__)
    with pytest.raises(UsageError, match=r"^onnxruntime is not installed: pip install 'offramp\[onnx\]'.$"):
        Engine(bare(nn.ReLU()), Policy((EVERYBODY,)), backend="onnxruntime")
    assert ONNX not in usual_forms(torch.device("cpu"))
