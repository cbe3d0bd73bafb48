import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import (
    FLOAT32,
    Agreement,
    Answers,
    Engine,
    Form,
    Plan,
    Tuning,
    agreement,
    tune,
)
from offramp.runtime.onnxruntime_ import OnnxRuntime
from offramp.runtime.program import Program
from offramp.runtime.tuning import Speedup

pytestmark = pytest.mark.usefixtures("operators_once")
SECONDS = 0.15
IN_BF16 = Form(precision="bf16")


class Clock:
    """Seconds that pass only where something says that it takes so long, and a little at every look."""

    now = 0.0

    def __call__(self) -> float:
        Clock.now += 1e-7
        return Clock.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(time, "perf_counter", Clock())
    return Clock()


class Slow(nn.Module):
    """Takes so many milliseconds a call and a row."""

    def __init__(self, call: float, row: float, inner: nn.Module) -> None:
        super().__init__()
        self.call, self.row, self.inner = call, row, inner

    def forward(self, x: Tensor) -> Tensor:
        Clock.now += (self.call + self.row * len(x)) / 1000
        out: Tensor = self.inner(x)
        return out


def network(stage: tuple[float, float] = (0.5, 0.2), head: tuple[float, float] = (0.05, 0.0)) -> EarlyExitNet:
    """Three stages that take the same time, three exits likewise."""
    torch.manual_seed(0)
    convolutions = [nn.Sequential(nn.Conv2d(a, 4, 3, padding=1), nn.BatchNorm2d(4)) for a in (1, 4, 4)]
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(64, 5)) for _ in range(3)]
    made = EarlyExitNet([Slow(*stage, one) for one in convolutions], [Slow(*head, one) for one in heads], num_classes=5)
    return made.eval()


IMAGES = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def policy(net: EarlyExitNet, share: float, **others) -> Policy:
    """Such a share of the images leaves at the first exit, nobody at the second, which is asked all the same."""
    with torch.inference_mode():
        confidence_S = net(IMAGES)[0].softmax(-1).amax(-1)
    return Policy((confidence_S.quantile(1 - share).item(), 2.0, EVERYBODY), **others)


def tuned(engine: Engine, **others) -> Tuning:
    usual = {"batch_sizes": (1, 8), "forms": [Form()], "seconds": SECONDS, "streams": False}
    return engine.tune(IMAGES, **{**usual, **others})


@pytest.fixture(scope="module")
def paying() -> tuple[EarlyExitNet, Engine, Tuning]:
    """A network whose exits pay, an engine tuned for it, for streams too, and the tuning."""
    net = network()
    engine = Engine(net, policy(net, 0.75))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", Clock())
        return net, engine, tuned(engine, streams=True)


def test_exits_that_pay_are_taken_and_answers_stay_the_policys(paying) -> None:
    net, engine, found = paying
    assert engine.plans == found.plans
    assert engine.stream_plan == found.stream
    for size in (1, 8):
        plan = engine.plan_for(size)
        assert plan.asks == (0,)  # the second costs time and takes nobody
        gain = found.gains[str(size)]
        assert gain.measured is not None
        assert gain.measured > 1.3
        assert gain.expected == pytest.approx(gain.measured, rel=0.05)
        under = engine.policy_under(plan)
        answers = Answers(*map(torch.cat, zip(*map(engine, torch.split(IMAGES, size)), strict=True)))
        with torch.inference_mode():
            assert agreement(answers, net(IMAGES), under, 5, FLOAT32).wrong == 0
    # the first stage and exit for all images, the two other stages and the last exit for a quarter of them
    assert found.gains["1"].expected == pytest.approx((3 * 0.7 + 0.05) / (0.75 + 0.25 * (2 * 0.7 + 0.05)), rel=0.01)
    assert engine.straight(8) is not engine.runs(8)


@pytest.mark.parametrize(
    ("stage", "head", "share"),
    [((0.5, 0.1), (0.05, 0.0), 0.0), ((0.5, 0.1), (2.0, 0.1), 0.5), ((1.0, 0.0), (0.05, 0.0), 0.3)],
    ids=["nobody leaves", "slow heads", "rows cost nothing"],
)
def test_where_exits_do_not_pay_the_engine_is_the_straight_way(clock, stage, head, share: float) -> None:
    net = network(stage, head)
    engine = Engine(net, policy(net, share))
    found = tuned(engine, batch_sizes=(32,))
    assert engine.runs(32) is engine.straight(32)
    assert found.plans[32].straight
    assert found.gains["32"].expected < 1.05
    with torch.inference_mode():
        assert torch.equal(engine(IMAGES).labels_B, net(IMAGES)[-1].argmax(-1))


@pytest.mark.parametrize("promised", [{"found": {"certificate": {}}}, {"measure": Measure("patience")}], ids=str)
def test_promises_and_patience_need_all_exits_or_none(clock, promised) -> None:
    net = network(head=(0.3, 0.0))
    given = policy(net, 0.75, **promised)
    if "measure" in promised:
        given = Policy((0.0, NOBODY, EVERYBODY), Measure("patience"))  # all leave at the first
    engine = Engine(net, given)
    found = tuned(engine, streams=True)
    for plan in (*found.plans.values(), found.stream):
        assert not plan.straight
        assert engine.asks(plan) == (0, 1, 2)


def test_straight_on_is_timed_as_the_stream_it_would_be(clock, monkeypatch) -> None:
    net = network()
    engine = Engine(net, policy(net, 0.75))
    streamed: set[tuple[bool, int]] = set()
    in_turn = tune.in_turn

    def noted(runner, batches):
        batches = list(batches)
        streamed.update((runner.stream_plan.straight, len(batch)) for batch in batches)
        return in_turn(runner, batches)

    monkeypatch.setattr(tune, "in_turn", noted)
    found = tuned(engine, batch_sizes=(8,), seconds=3.0, streams=True)
    assert found.gains["stream"].measured is not None
    assert streamed == {(True, 32), (False, 32)}


@pytest.mark.parametrize("given", [1024, 1025, 5000])
def test_of_many_images_some_are_looked_at_evenly_spread(clock, monkeypatch, given: int) -> None:
    net = network()
    looked_at: list[Tensor] = []
    plain_logits = tune._plain_logits

    def noted(engine, images_SCHW):
        looked_at.append(images_SCHW[:, 0, 0, 0])
        return plain_logits(engine, images_SCHW)

    monkeypatch.setattr(tune, "_plain_logits", noted)
    images_SCHW = torch.arange(given).float()[:, None, None, None].expand(-1, 1, 4, 4)
    Engine(net, policy(net, 0.5)).tune(images_SCHW, batch_sizes=(8,), forms=[Form()], seconds=SECONDS, streams=False)
    (positions_S,) = looked_at
    assert len(positions_S) == 1024
    assert (positions_S[0], positions_S[-1]) == (0, given * 1023 // 1024)
    gaps = positions_S.diff()
    assert gaps.min() >= given // 1024
    assert gaps.max() <= -(-given // 1024)


def test_however_many_images_tuning_takes_as_long(clock) -> None:
    net = network()
    took = []
    for given in (1024, 50_000):
        images_SCHW = IMAGES[torch.arange(given) % 32]
        engine, started = Engine(net, policy(net, 0.5)), Clock.now
        engine.tune(images_SCHW, batch_sizes=(8,), forms=[Form()], seconds=SECONDS, streams=False)
        took.append(Clock.now - started)
    assert took[1] == pytest.approx(took[0], rel=0.2)


def test_a_form_with_other_answers_is_dropped(clock, monkeypatch) -> None:
    net = network((0.1, 0.0), (0.02, 0.0))
    engine = Engine(net, policy(net, 0.5))
    monkeypatch.setattr("offramp.runtime.program.BF16", 0.0)
    found = tuned(engine, forms=[IN_BF16, Form()])
    assert [(trial.form, trial.admitted, trial.wrong > 0) for trial in found.forms] == [
        (IN_BF16, False, True),
        (Form(), True, False),
    ]
    assert found.form == engine.program.form == Form()
    monkeypatch.setattr("offramp.runtime.tune._agreements", lambda *_: [agreement_of(flips=0, wrong=1)])
    assert tuned(engine, forms=[IN_BF16]).form == Form()


def agreement_of(flips: int, wrong: int) -> Agreement:
    return Agreement(images=1000, flips=flips, wrong=wrong, tolerance=FLOAT32)


def test_a_form_that_flips_more_than_rounding_can_is_dropped(clock, monkeypatch) -> None:
    net = network((0.1, 0.0), (0.02, 0.0))
    for flips, admitted in ((3, True), (4, False)):  # three exits, and a ten-thousandth of 1,000 images
        found = [agreement_of(flips=0, wrong=0), agreement_of(flips=flips, wrong=0)]
        monkeypatch.setattr("offramp.runtime.tune._agreements", lambda *_, found=found: found)
        (trial,) = tuned(Engine(net, policy(net, 0.5))).forms
        assert (trial.admitted, trial.flips) == (admitted, flips)


def test_under_a_certificate_only_float32_is_run(clock, monkeypatch) -> None:
    net = network((0.0, 0.0), (0.0, 0.0))
    given = policy(net, 0.5)
    engine = Engine(net, given)
    monkeypatch.setattr("offramp.runtime.tune._agreements", lambda *_: [agreement_of(flips=0, wrong=0)])
    in_bf16 = tuned(engine, forms=[IN_BF16])
    assert in_bf16.form == IN_BF16
    certified = dataclasses.replace(given, found={"certificate": {}})
    engine = Engine(net, certified)
    found = tuned(engine, forms=[IN_BF16, Form()])
    assert [trial.admitted for trial in found.forms] == [False, True]
    assert "certificate is of answers in float32" in found.forms[0].reason
    assert engine.program.form == Form()
    as_before = dataclasses.replace(in_bf16, policy={**in_bf16.policy, "certified": True})  # by an earlier version
    with pytest.raises(UsageError, match="certificate is of answers in float32"):
        engine.adopt(as_before)
    assert engine.program.form == Form()
    with pytest.raises(UsageError, match="certificate is of answers in float32"):
        Engine(net, certified, form=IN_BF16)


def test_the_faster_form_is_taken(clock, monkeypatch) -> None:
    net = network((0.1, 0.0), (0.02, 0.0))
    entered = Program.enter

    def enter(program, images_BCHW):
        Clock.now += 0.002 * (program.form == IN_BF16)
        return entered(program, images_BCHW)

    monkeypatch.setattr(Program, "enter", enter)
    monkeypatch.setattr("offramp.runtime.tune._agreements", lambda *_: [agreement_of(flips=0, wrong=0)])
    for forms in ([IN_BF16, Form()], [Form(), IN_BF16]):
        found = tuned(Engine(net, policy(net, 0.5)), forms=forms)
        assert found.form == Form()
        assert [trial.form for trial in found.forms] == forms
        assert all(trial.straight_ms.keys() == {"1", "8", "64"} for trial in found.forms)


def test_who_runs_no_streams_need_not_wait_for_their_plan(clock, monkeypatch) -> None:
    net = network()
    engine, other = (Engine(net, policy(net, 0.75)) for _ in range(2))
    monkeypatch.setattr(tune, "choose_stream", None)
    found = tuned(engine, streams=False)
    assert found.plans.keys() == {1, 8}
    assert found.gains.keys() == found.chunks.keys() == found.exit_ms.keys() == {"1", "8"}
    assert engine.stream_plan == found.stream == found.plans[8]
    assert other.adopt(Tuning.from_json(json.loads(json.dumps(found.to_json())))) == ()
    assert other.stream_plan == found.stream


def test_what_a_tuning_holds(paying) -> None:
    *_, found = paying
    assert found.exit_ms.keys() == found.gains.keys() == found.chunks.keys() == {"1", "8", "stream"}
    for times_K in found.exit_ms.values():
        assert len(times_K) == 3
        assert 0 < times_K[0] <= times_K[1] <= times_K[2]
    assert found.exit_ms["1"][2] == pytest.approx(3 * 0.75, rel=0.01)
    assert found.table.stages_KR[1][0] == pytest.approx(0.7, rel=0.01)
    assert found.table.heads_KR[1][0] == pytest.approx(0.05, rel=0.01)
    assert found.table.kernels_K == (2, 2, 2)
    assert found.table.rows_R[:4] == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("images", "others", "message"),
    [
        (IMAGES[:0], {}, "no images"),
        (IMAGES, {"batch_sizes": ()}, "batch_sizes"),
        (IMAGES, {"batch_sizes": (0, 3)}, "batch_sizes"),
        (IMAGES, {"forms": []}, "forms"),
        (IMAGES, {"seconds": 0}, "seconds"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(images: Tensor, others, message: str) -> None:
    net = network((0.0, 0.0), (0.0, 0.0))
    engine = Engine(net, policy(net, 0.5), plan=Plan(chunk=3))
    program, plans = engine.program, engine.plans
    with pytest.raises(UsageError, match=message):
        engine.tune(images, **others)
    assert engine.program is program
    assert engine.plans is plans


def test_on_the_real_clock() -> None:
    net = network((0.0, 0.0), (0.0, 0.0))
    engine = Engine(net, policy(net, 0.5))
    found = tuned(engine, seconds=0.2)
    for size in (1, 8):
        assert engine.plan_for(size) == found.plans[size]
        assert (engine.runs(size) is engine.straight(size)) == found.plans[size].straight
        under = engine.policy_under(engine.plan_for(size))
        answers = Answers(*map(torch.cat, zip(*map(engine, torch.split(IMAGES, size)), strict=True)))
        with torch.inference_mode():
            assert agreement(answers, net(IMAGES), under, 5, FLOAT32).wrong == 0


def test_few_images_and_one_exit_are_enough() -> None:
    net = EarlyExitNet([nn.Conv2d(1, 4, 3)], [nn.Sequential(nn.Flatten(), nn.Linear(16, 5))]).eval()
    engine = Engine(net, Policy((EVERYBODY,)))
    found = engine.tune(IMAGES[:3], batch_sizes=(8,), seconds=0.1)
    assert engine.runs(8) is engine.straight(8)
    assert found.gains["8"] == Speedup(1.0, None)


ONNX = Form(backend="onnxruntime")


class Twice(nn.Module):
    """Something to be slow in, in torch alone; or what no trace can say."""

    def __init__(self, decides: bool = False) -> None:
        super().__init__()
        self.decides = decides

    def forward(self, x: Tensor) -> Tensor:
        return x if self.decides and bool((x > 0).all()) else 2 * x


def exported(decides: bool = False) -> EarlyExitNet:
    torch.manual_seed(0)
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(16, 5)) for _ in range(2)]
    return EarlyExitNet([Twice(decides), nn.Identity()], heads, image_shape=(1, 4, 4)).eval()


def test_onnxruntime_is_taken_where_it_is_faster(clock, monkeypatch) -> None:
    entered = Program.enter

    def enter(program, images_BCHW):
        Clock.now += 0.002 * (program.form.backend == "torch")
        return entered(program, images_BCHW)

    monkeypatch.setattr("offramp.runtime.program.Program.enter", enter)
    net = exported()
    engine = Engine(net, Policy((0.4, EVERYBODY)))
    found = tuned(engine, forms=[Form(), ONNX])
    assert found.form == engine.program.form == ONNX
    assert found.conditions["onnxruntime"]
    assert found.table.capacity is None  # oneDNN's kernels are not what it runs
    trials = {trial.form: trial for trial in found.forms}
    assert trials[ONNX].straight_ms["8"] < trials[Form()].straight_ms["8"]
    assert (trials[ONNX].admitted, trials[ONNX].reason) == (True, None)
    again = Tuning.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    other = Engine(net, engine.policy)
    assert other.adopt(again) == ()
    assert isinstance(other.program, OnnxRuntime)
    with torch.inference_mode():
        assert engine.agreement(engine(IMAGES), net(IMAGES), engine.policy_under(engine.plan_for(32))).wrong == 0
    newer = dataclasses.replace(found, conditions={**found.conditions, "onnxruntime": "0.1"})
    assert other.adopt(newer) == (f"onnxruntime: tuned for 0.1, here {found.conditions['onnxruntime']}",)


def test_a_form_that_cannot_be_set_up_is_left_out_with_the_reason(clock, monkeypatch) -> None:
    nowhere = network()
    for engine, reason in (
        (Engine(exported(decides=True), Policy((0.4, EVERYBODY))), "Stage 1 cannot be traced"),
        (Engine(nowhere, policy(nowhere, 0.5)), "images of one shape, and this network does not say which"),
    ):
        found = tuned(engine, forms=[ONNX, Form()])
        assert found.form == Form()
        assert not found.forms[0].admitted
        assert reason in found.forms[0].reason
        assert found.forms[1].reason is None
    monkeypatch.setattr("offramp.runtime.file_cache.SECONDS", 1000.0)
    monkeypatch.setattr("offramp.runtime.file_cache.find", lambda folder: None)
    found = tuned(Engine(exported(), Policy((0.4, EVERYBODY))), forms=[Form(), ONNX])
    assert "would take about 6000 s to make" in found.forms[1].reason


@pytest.mark.slow
def test_a_small_grid_is_never_slower(tmp_path: Path) -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "never_slower.py"
    out = tmp_path / "out.json"
    command = [sys.executable, str(benchmark), "--small", "--seconds", "4", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == 16
    assert {cell["batch"] for cell in cells} == {1, 20, 32, "stream"}
    for cell in cells:
        assert cell["at_least"] <= max(1.02, 1 + 0.003 / cell["straight_ms"])
