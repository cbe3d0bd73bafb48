"""The engine run by onnxruntime and OpenVINO. Networks are exported once for all tests: it takes seconds."""

import copy
import dataclasses
import functools
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

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
from offramp.runtime import SIZES, Answers, Engine, Form, Plan, Tally, backends, file_cache, usual_forms
from offramp.runtime.library import LibraryProgram, Segment
from offramp.runtime.onnxruntime_ import OnnxRuntime, onnxruntime
from offramp.runtime.openvino_ import OpenVino, openvino
from offramp.runtime.rows import joined

ONNX, VINO, VINO_BF16 = Form("onnxruntime"), Form("openvino"), Form("openvino", "bf16")
FORMS = (ONNX, VINO, VINO_BF16)
NETWORKS = (("msdnet", True), ("ranet", False), ("by hand", False))
FEW_LAYERS = {"msdnet": {"step_mode": "even", "step": 1}, "ranet": {"step_mode": "even", "blocks": 2, "block_step": 1}}
BATCHES = (0, 1, 7, 32)
pytestmark = pytest.mark.usefixtures("operators_once")
of_each = pytest.mark.parametrize("form", FORMS, ids=str)
SOME = [("msdnet", True, ONNX), ("msdnet", True, VINO_BF16), ("by hand", False, VINO)]
some_of_each = pytest.mark.parametrize(("name", "damping", "form"), SOME)
mostly_float32 = pytest.mark.parametrize(  # that bf16 answers as the policy says is tested quickly in the first tests
    "form", [ONNX, VINO, pytest.param(VINO_BF16, marks=pytest.mark.slow)], ids=str
)


@pytest.fixture(autouse=True, scope="module")
def _compiled_once() -> Iterator[None]:
    """What a library has compiled stays for all tests here, which takes seconds; else it goes with its last engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_alive", {})
        yield


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
    form = engine.program.form
    assert (found.images, found.wrong, found.tolerance) == (logits_KBC.shape[1], 0, form.tolerance)
    assert found.is_rounding(engine.num_exits)


@pytest.mark.parametrize(
    ("name", "damping", "form"),
    [
        *SOME,
        *(
            pytest.param(*one, form, marks=pytest.mark.slow)
            for one in NETWORKS
            for form in FORMS
            if (*one, form) not in SOME
        ),
    ],
)
def test_answers_are_those_of_the_policy(some, name, damping, form) -> None:
    network, images_BCHW, logits_KBC, policy = some(name, damping)
    assert len(policy.choose(logits_KBC, network.num_classes).exits_S.unique()) >= 3
    engine = Engine(network, policy, form=form)
    close = 0.1 * logits_KBC[..., :5].abs().max().item() if form == VINO_BF16 else 1e-4
    torch.testing.assert_close(engine.program.logits(images_BCHW), logits_KBC, rtol=1e-4, atol=close)
    for size in (*BATCHES, 200):
        agree(engine, engine(images_BCHW[:size]), logits_KBC[:, :size], engine.plan_for(size))


@some_of_each
def test_segments_of_several_stages_and_straight_are_the_chain_of_stages(some, name, damping, form) -> None:
    network, images_BCHW, logits_KBC, policy = some(name, damping)
    program, last = Engine(network, policy, form=form).program, network.num_exits - 1
    close = 0.1 * logits_KBC[..., :5].abs().max().item() if form == VINO_BF16 else 1e-4
    for size in (5, 8, 131):
        with torch.inference_mode():
            nothing, carry = program.segment(0, 0, program.enter(images_BCHW[:size]), head=False)
            found_BC, onward = program.segment(1, last, carry)
        assert nothing is None
        assert {len(tensor) for tensor in (*carry, *onward)} == {size}
        torch.testing.assert_close(found_BC, logits_KBC[last, :size], rtol=1e-4, atol=close)
        for k in range(last + 1):
            straight_BC = program.straight(images_BCHW[:size], k)
            torch.testing.assert_close(straight_BC, logits_KBC[k, :size], rtol=1e-4, atol=close)


@some_of_each
def test_no_image_is_no_trouble(some, name, damping, form) -> None:
    network, images_BCHW, logits_KBC, policy = some(name, damping)
    engine = Engine(network, policy, form=form)
    assert engine.program.logits(images_BCHW[:0]).shape == logits_KBC[:, :0].shape
    assert [len(answers.labels_B) for answers in engine.stream([images_BCHW[:0], images_BCHW[:3]])] == [0, 3]


@mostly_float32
@pytest.mark.parametrize(
    "plan",
    [Plan(sizes=(), chunk=None), Plan(chunk=5), Plan(compacts=()), Plan(asks=(1,)), Plan(straight=True)],
    ids=str,
)
def test_plans_streams_and_tallies(some, plan, form) -> None:
    network, images_BCHW, logits_KBC, policy = some()
    engines = [Engine(network, policy, form=one, plan=plan) for one in (form, Form())]
    tallies = []
    for engine in engines:
        tally = engine.tally(timed=True)
        agree(engine, engine(images_BCHW, tally=tally), logits_KBC, plan)
        streamed = engine.stream(torch.split(images_BCHW, 7), window=40, tally=tally)
        agree(engine, Answers(*map(torch.cat, zip(*streamed, strict=True))), logits_KBC, plan)
        assert sum(tally.seconds_K) > 0
        tallies.append(tally)
    if form != VINO_BF16:  # else rounding may send an image another way
        assert _counts(tallies[0]) == _counts(tallies[1])


def _counts(tally: Tally) -> list[list[int]]:
    return [tally.exits_K, tally.stage_rows_K, tally.head_rows_K]


@of_each
def test_as_ready_anytime_and_exit_by_exit(some, form) -> None:
    network, images_BCHW, logits_KBC, policy = some("by hand", False)
    engine = Engine(network, policy, form=form)
    pieces = list(engine.as_ready(torch.split(images_BCHW, 9)))
    positions_B = torch.cat([positions_B for positions_B, _ in pieces])
    assert positions_B.sort().values.tolist() == [*range(200)]
    columns = (torch.cat(column)[positions_B.argsort()] for column in zip(*(one for _, one in pieces), strict=True))
    agree(engine, Answers(*columns), logits_KBC, engine.stream_plan)
    *_, last = engine.each_exit(images_BCHW)
    agree(engine, last, logits_KBC, Plan())
    first = engine.anytime(images_BCHW, deadline_ms=0)
    assert first.exits_B.unique().tolist() == [0]
    wanted_B = policy.measure.over(logits_KBC, 5)[0][0]
    torch.testing.assert_close(first.confidence_B, wanted_B, rtol=0, atol=form.tolerance)


@of_each
def test_a_stream_straight_on_answers_as_one_call_does_to_the_last_bit(some, form) -> None:
    network, images_BCHW, _, policy = some("by hand", False)
    engine = Engine(network, policy, form=form, plan=Plan(straight=True, chunk=16))
    wanted = engine(images_BCHW[:48])
    found = joined(engine.stream(images_BCHW[:48].split(6)))
    for found_B, wanted_B in zip(found, wanted, strict=True):
        assert torch.equal(found_B, wanted_B)


@mostly_float32
def test_patience(some, form) -> None:
    network, images_BCHW, logits_KBC, _ = some("by hand", False)
    policy = Policy((*[1.0] * (network.num_exits - 1), EVERYBODY), Measure("patience"))
    engine = Engine(network, policy, form=form)
    agree(engine, engine(images_BCHW), logits_KBC, Plan())
    agree(engine, joined([engine(image_BCHW) for image_BCHW in images_BCHW[:20].split(1)]), logits_KBC[:, :20], Plan())


@of_each
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_none(some, form, value) -> None:
    """ReLU joined to a convolution makes 0 of NaN, and a confident answer of it."""
    network, images_BCHW, logits_KBC, policy = some()
    images_BCHW = images_BCHW[:40].clone()
    images_BCHW[::3, 1, 2, 2] = value
    engine = Engine(network, policy, form=form)
    broken_B = torch.zeros(40, dtype=torch.bool)
    broken_B[::3] = True
    for plan in (Plan(), Plan(chunk=16), Plan(straight=True)):
        variant = engine.under({1: plan})
        for answers in (variant(images_BCHW), *variant.stream([images_BCHW])):
            assert torch.equal(answers.confidence_B.isnan(), broken_B)
            assert set(answers.exits_B[broken_B].tolist()) == {network.num_exits - 1}
    alone = engine(images_BCHW[~broken_B])
    agree(engine, alone, logits_KBC[:, :40][:, ~broken_B], Plan())


@of_each
def test_only_exits_that_may_answer_run(some, monkeypatch, form) -> None:
    network, images_BCHW, _, policy = some()
    thresholds = (policy.thresholds[0], NOBODY, EVERYBODY)
    engine = Engine(network, dataclasses.replace(policy, thresholds=thresholds), form=form)
    ran: list[tuple[Segment, int]] = []
    call = LibraryProgram._call

    def noted(program, segment: Segment, rows: int | None, maps: tuple[Tensor, ...]):
        ran.append((segment, len(maps[0])))
        return call(program, segment, rows, maps)

    monkeypatch.setattr(LibraryProgram, "_call", noted)
    tally = engine.tally()
    exits_B = engine(images_BCHW[:32], tally=tally).exits_B
    assert [(segment.first, segment.last, segment.exit) for segment, _ in ran] == [(0, 0, True), (1, 2, True)]
    assert tally.head_rows_K == [32, 0, ran[1][1]]
    assert 0 < (exits_B == 2).sum() <= ran[1][1] < 32
    ran.clear()
    engine(images_BCHW[:32][exits_B == 0][:2])
    assert [segment.last for segment, _ in ran] == [0]


@of_each
@pytest.mark.parametrize(
    "measure",
    [
        Measure(),
        Measure("margin", renormalise=True),
        Measure("entropy", temperatures=(0.5, 2.0, 1.5)),
    ],
    ids=lambda measure: measure.name,
)
def test_one_image_at_a_time(some, form, measure) -> None:
    network, images_BCHW, logits_KBC, policy = some(measure=measure)
    closed = dataclasses.replace(policy, thresholds=(policy.thresholds[0], NOBODY, EVERYBODY))
    for engine in (Engine(network, one, form=form) for one in (policy, closed)):
        tally = engine.tally(timed=True)
        singly = joined([engine(image_BCHW, tally=tally) for image_BCHW in images_BCHW[:60].split(1)])
        agree(engine, singly, logits_KBC[:, :60], Plan())
        assert len(set(singly.exits_B.tolist())) > 1
        reached = [int((singly.exits_B >= k).sum()) for k in range(3)]
        assert tally.head_rows_K == [reached[k] if k in engine.asks(Plan()) else 0 for k in range(3)]
        assert tally.exits_K == singly.exits_B.bincount(minlength=3).tolist()
        assert all(
            (seconds > 0) == (rows > 0) for seconds, rows in zip(tally.seconds_K, tally.head_rows_K, strict=True)
        )


def test_one_image_runs_no_segment_behind_its_exit(some, monkeypatch) -> None:
    network, images_BCHW, _, policy = some()
    engine = Engine(network, policy, form=VINO)
    exits_B = engine(images_BCHW[:60]).exits_B
    engine(images_BCHW[:1])
    single = engine.program._singles[policy.measure, engine.asks(Plan())]
    ran: list[int] = []

    class Noted:
        def __init__(self, number: int, request) -> None:
            self.number, self.request = number, request

        def infer(self, **options) -> None:
            ran.append(self.number)
            self.request.infer(**options)

        def __getattr__(self, name: str):
            return getattr(self.request, name)

    monkeypatch.setattr(single, "requests", [Noted(*pair) for pair in enumerate(single.requests)])
    for image_BCHW, exit in zip(images_BCHW[:60].split(1), exits_B.tolist(), strict=True):
        ran.clear()
        engine(image_BCHW)
        assert ran == list(range(exit + 1))


def test_policies_of_one_measure_share_what_runs_single_images(some) -> None:
    network, images_BCHW, logits_KBC, policy = some()
    other = dataclasses.replace(policy, thresholds=(0.0, 0.0, EVERYBODY))
    engines = [Engine(network, one, form=VINO) for one in (policy, other)]
    answers = [joined([engine(image_BCHW) for image_BCHW in images_BCHW[:20].split(1)]) for engine in engines]
    for engine, of_engine in zip(engines, answers, strict=True):
        agree(engine, of_engine, logits_KBC[:, :20], Plan())
    assert engines[0].program is engines[1].program
    assert answers[1].exits_B.tolist() == [0] * 20


@of_each
def test_what_a_segment_gives_is_the_callers(some, form) -> None:
    """Memory is used again, but none that is held."""
    network, images_BCHW, _, policy = some()
    program = Engine(network, policy, form=form).program
    held = []
    with torch.inference_mode():
        carry = program.enter(images_BCHW[:7])
        for size in (7, 1, 7, 64, 7, 7, 7, 7, 7):
            logits_BC, onward = program.segment(0, 0, program.enter(images_BCHW[-size:]))
            held.append(([logits_BC, *onward], [tensor.clone() for tensor in (logits_BC, *onward)]))
        for tensors, copies in held:
            assert all(torch.equal(*pair) for pair in zip(tensors, copies, strict=True))
        before, _ = program.segment(0, 0, carry)
        before = before.clone()
        for tensors, _ in held:
            for tensor in tensors:
                tensor.zero_()
        assert torch.equal(program.segment(0, 0, carry)[0], before)


def test_openvino_compiles_for_few_numbers_of_rows(some) -> None:
    network, images_BCHW, _, _ = some()
    program = OpenVino(network, VINO)
    for size in range(1, 60):
        program.segment(0, 0, program.enter(images_BCHW[:size]))
        program.straight(images_BCHW[:size], 2)
    sizes = {rows for _, rows in program._models}
    assert sizes <= {*SIZES, None}


@mostly_float32
def test_engines_made_and_called_in_many_threads_agree(some, monkeypatch, form) -> None:
    network, images_BCHW, logits_KBC, policy = some("by hand", False)
    Engine(network, policy, form=form)  # the files are there
    monkeypatch.setattr(backends, "_alive", {})
    found: list[tuple[Engine, Answers]] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        engine = Engine(network, policy, form=form)
        singly = joined([engine(image_BCHW) for image_BCHW in images_BCHW[40:50].split(1)])
        found.append((engine, joined([engine(images_BCHW[:40]), singly])))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for engine, answers in found:
        agree(engine, answers, logits_KBC[:, :50], Plan())


def test_torch_has_its_threads_again(some) -> None:
    network, images_BCHW, _, policy = some()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = Engine(network, policy, form=ONNX)
        engine(images_BCHW[:4])
        for _ in engine.each_exit(images_BCHW[:4]):
            assert torch.get_num_threads() == 2
        for _ in engine.as_ready([images_BCHW[:4]]):
            assert torch.get_num_threads() == 2
        with pytest.raises(UsageError):
            engine(images_BCHW[:, :1])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize("form", [VINO, pytest.param(ONNX, marks=pytest.mark.slow)], ids=str)
def test_a_second_engine_shares_the_program_and_a_third_finds_the_files(some, monkeypatch, form) -> None:
    network, _, _, policy = some("by hand", False)
    monkeypatch.setattr(backends, "_alive", weakref.WeakValueDictionary())
    first = Engine(network, policy, form=form)
    monkeypatch.setattr(file_cache, "make", None)
    again = Engine(network, policy, form=form)
    assert again.program is first.program
    del first, again
    gc.collect()
    Engine(network, policy, form=form)


def test_files_that_are_not_the_networks_are_made_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    network, images_BCHW = bare(nn.ReLU()), torch.randn(7, 3, 4, 4)
    policy, folder = Policy((EVERYBODY,)), file_cache.folder_for(network)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    parts = export.parts(network)
    monkeypatch.setattr(export, "stages", functools.partial(export.stages, made=parts))
    others = copy.deepcopy(parts.exits[0].model)
    for tensor in (one for one in others.graph.initializer if one.data_type == TensorProto.FLOAT):
        tensor.raw_data = bytes(len(tensor.raw_data))
    for content in (others.SerializeToString(), b"damaged"):
        file_cache.make(network, folder)
        (folder / "exit-1.onnx").write_bytes(content)
        engine = Engine(network, policy, backend="onnxruntime")
        agree(engine, engine(images_BCHW), logits_KBC, Plan())
        del engine


@pytest.mark.parametrize(
    ("kind", "error", "raised", "says"),
    [
        (OnnxRuntime, NotImplemented("no kernel for Resize"), OfframpError, "onnxruntime cannot run stages 1 to 1 of"),
        (OpenVino, RuntimeError("no kernel for Resize"), OfframpError, "openvino cannot run stages 1 to 1 of this net"),
        (OnnxRuntime, TypeError("a bug of ours"), TypeError, "^a bug of ours$"),
        (OpenVino, TypeError("a bug of ours"), TypeError, "^a bug of ours$"),
    ],
)
def test_what_a_library_cannot_run_is_said_in_a_line(some, monkeypatch, kind, error, raised, says: str) -> None:
    network, _, _, policy = some()
    files = file_cache.find(file_cache.folder_for(network)) or file_cache.make(network, file_cache.folder_for(network))

    def fail(*_) -> None:
        raise error

    monkeypatch.setattr(backends, "_alive", {})
    monkeypatch.setattr(file_cache, "make", lambda *_: files)
    monkeypatch.setattr(kind, "_compile", fail)
    with pytest.raises(raised, match=says):
        Engine(network, policy, form=ONNX if kind is OnnxRuntime else VINO)


@of_each
def test_answers_of_another_network_are_refused(some, monkeypatch, form) -> None:
    network, _, _, policy = some()
    other = copy.deepcopy(network)
    nn.init.zeros_(other.exits[1][-1].weight)
    files = file_cache.find(file_cache.folder_for(network)) or file_cache.make(network, file_cache.folder_for(network))
    monkeypatch.setattr(file_cache, "find", lambda folder: None)
    monkeypatch.setattr(file_cache, "make", lambda *_: files)
    with pytest.raises(UsageError, match="exit 2 gives other logits than run by torch"):
        Engine(other, dataclasses.replace(policy, network=None), form=form)


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


def test_an_exit_without_a_neuron_is_compared_by_its_classes(monkeypatch) -> None:
    first, second = (EarlyExitNet([nn.ReLU()], [WithoutNeuron()], damping=True, image_shape=(3, 4, 4)) for _ in "ab")
    files = file_cache.make(first.eval(), file_cache.folder_for(first))
    monkeypatch.setattr(file_cache, "find", lambda folder: files)
    OnnxRuntime(first, ONNX)
    monkeypatch.setattr(file_cache, "make", lambda *_: files)
    with pytest.raises(UsageError, match="exit 1 gives other logits"):
        OnnxRuntime(second.eval(), ONNX)


@pytest.mark.parametrize(
    "form", [VINO, *(pytest.param(form, marks=pytest.mark.slow) for form in (ONNX, VINO_BF16))], ids=str
)
def test_exits_attached_to_a_model(form) -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(a, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for a in (3, 8, 8)]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    network = attach(model, at=["0", "1"], image_shape=(3, 12, 12))
    images_BCHW = torch.randn(33, 3, 12, 12)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    confidence_KB, _ = Policy((EVERYBODY,)).measure.over(logits_KBC, 5)
    engine = Engine(network, Policy((*confidence_KB[:2].median(-1).values.tolist(), EVERYBODY)), form=form)
    for size in (1, 7, 33):
        answers = engine(images_BCHW[:size])
        agree(engine, answers, logits_KBC[:, :size], Plan())
    assert answers.exits_B.unique().tolist() == [0, 1, 2]


@pytest.mark.slow
@mostly_float32
def test_a_resnet_with_exits(form) -> None:
    import torchvision

    torch.manual_seed(0)
    network = attach(torchvision.models.resnet18(), "auto", num_classes=10, image_shape=(3, 64, 64)).eval()
    images_BCHW = torch.randn(32, 3, 64, 64)
    with torch.no_grad():
        logits_KBC = network(images_BCHW)
    confidence_KB, _ = Policy((EVERYBODY,)).measure.over(logits_KBC, 10)
    policy = Policy((*confidence_KB[:-1].median(-1).values.tolist(), EVERYBODY))
    engine = Engine(network, policy, form=form)
    for size in (1, 7, 32):
        agree(engine, engine(images_BCHW[:size]), logits_KBC[:, :size], Plan())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: bare(nn.ReLU()).double(), r"in float32, not in torch.float64: call network.float\(\)"),
        (lambda: bare(nn.ReLU(), image_shape=None), "made for images of one shape, and this network does not say"),
        (lambda: bare(Deciding()), "Stage 1 cannot be traced"),
    ],
)
@of_each
def test_networks_that_cannot_be_run_say_why(network, message: str, form) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(network(), Policy((EVERYBODY,)), form=form)


@of_each
def test_another_device_is_refused(form) -> None:
    with pytest.raises(UsageError, match="runs on the CPU here, not on meta"):
        Engine(bare(nn.ReLU()), Policy((EVERYBODY,)), form=form, device=torch.device("meta"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tensorrt"}, "backend 'tensorrt' is unknown. Known: torch, onnxruntime, openvino"),
        ({"precision": "int4"}, "precision 'int4' is unknown"),
        (
            {"backend": "onnxruntime", "precision": "bf16"},
            "onnxruntime does not compute in bf16",
        ),
    ],
)
def test_forms_that_cannot_be(arguments, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Form(**arguments)


def test_a_form_or_a_backend() -> None:
    with pytest.raises(UsageError, match="a form or a backend, not both"):
        Engine(bare(nn.ReLU()), Policy((EVERYBODY,)), form=ONNX, backend="onnxruntime")


@pytest.mark.parametrize(
    ("package", "extra", "load"), [("onnxruntime", "onnx", onnxruntime), ("openvino", "openvino", openvino)]
)
def test_without_the_package_one_line_says_what_to_install(package: str, extra: str, load, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert Form(package) not in usual_forms(torch.device("cpu"))
    with pytest.raises(UsageError, match=rf"pip install 'offramp\[{extra}\]'"):
        load.__wrapped__()  # as the first time


def test_openvino_reports_nothing() -> None:
    """Its telemetry would send that it was imported; it is not even loaded."""
    openvino().Core()
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.slow  # a process: it may die
def test_a_signal_after_engines_of_openvino_are_gone() -> None:
    """In the order in which they were made: the process died at the next signal, each having had a core of its own."""
    program = """
import gc, os, signal
from torch import nn
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, Policy
from offramp.runtime import Engine

signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
engines = [
    Engine(
        EarlyExitNet([nn.ReLU()], [nn.Sequential(nn.Flatten(), nn.Linear(48, 5 + i))], image_shape=(3, 4, 4)),
        Policy((EVERYBODY,)),
        backend="openvino",
    )
    for i in range(2)
]
while engines:
    del engines[0]
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_usual_forms(monkeypatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert usual_forms(cpu) == (Form(), ONNX, VINO)
    assert usual_forms(cpu, bf16=True) == (Form(), ONNX, VINO, Form(precision="bf16"), VINO_BF16)
    assert usual_forms(cpu, backend="openvino", bf16=True) == (VINO, VINO_BF16)
    assert usual_forms(gpu, bf16=True) == (Form(), Form(precision="bf16"))
    monkeypatch.setitem(backends.NEEDS, "openvino", ("no_such_package",))
    assert usual_forms(cpu) == (Form(), ONNX)
