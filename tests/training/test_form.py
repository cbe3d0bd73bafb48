"""Plain or compiled: who decides, and that a compiled network trains as it does by itself."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import offramp
from offramp import data
from offramp.backbones import msdnet
from offramp.config import TrainConfig
from offramp.data import HeldOut
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.rules import Standard, TrainingRule
from offramp.rules.wpn import WPN
from offramp.training.form import Compiled, estimate, form_of
from offramp.training.job import Job

CPU = torch.device("cpu")
BATCH = 6
LONG = 1_000_000  # epochs


def network() -> EarlyExitNet:
    torch.manual_seed(0)
    return msdnet(
        exits=2, num_classes=2, channels=4, growth=2, growth_factors=(1, 2), bottleneck_factors=(1, 2),
        head_channels=4, image_size=12, in_channels=1,
    )  # fmt: skip


def images(num: int = 40) -> data.Parts:
    """Two classes told apart by brightness; the last batch is smaller."""
    labels = np.arange(num) % 2
    noise = np.random.default_rng(0).integers(0, 100, (num, 1, 12, 12))
    return data.arrays((noise + 150 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8), labels, batch_size=16, holdout=4)


def job(net: EarlyExitNet | None = None, rule: TrainingRule | None = None, **training: Any) -> Job:
    config = TrainConfig(**{"epochs": 1} | training)
    return Job(net or network(), CrossEntropy(), images(400).train, HeldOut(), config, rule or Standard())


class Backend:
    """Compiles nothing, and counts what it is given to compile and how often that is called."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0
        self.error: Exception | None = None

    def __call__(self, graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        if self.error is not None:
            raise self.error
        self.graphs += 1

        def run(*inputs: Tensor) -> Any:
            self.calls += 1
            return graph(*inputs)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """In the place of the compiler: `torch.compile` itself runs as ever."""
    found, compiling = Backend(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda what, **knobs: compiling(what, **knobs, backend=found))
    return found


# -- what is decided ---------------------------------------------------------------------------------------------------


def test_auto_compiles_a_run_that_is_long_enough_to_earn_it_back() -> None:
    assert form_of(job(), CPU).name == "plain"
    form = form_of(job(epochs=LONG, precision="bf16"), CPU)
    assert form.name == "compiled"
    assert form.message is not None
    assert "Compiling the training step: about " in form.message
    assert not form.is_asked_for


def test_the_estimate_is_of_the_configuration_alone() -> None:
    """So that a run that goes on is trained in the form that it was begun in."""
    one = estimate(job(epochs=2))
    assert estimate(job(epochs=2, threads=7, save_every_steps=3)) == one
    compiling, saved = estimate(job(epochs=4))
    assert (compiling, saved) == (one[0], pytest.approx(2 * one[1]))


def test_published_training_is_compiled_and_the_quickstart_is_not() -> None:
    for net, epochs, wanted in ((msdnet(), 300, "compiled"), (network(), 20, "plain")):
        channels, *side = net.image_shape
        pixels, labels = np.zeros((500, channels, *side), np.uint8), np.arange(500) % net.num_classes
        train = data.arrays(pixels, labels, batch_size=64, holdout=0).train
        assert form_of(dataclasses.replace(job(net, epochs=100 * epochs), train=train), CPU).name == wanted


class Own(nn.Identity):
    """Not a module of torch's or offramp's."""


def test_auto_is_plain_where_compiling_may_not_pay() -> None:
    others = network()
    others.exits[0].append(Own())
    assert form_of(job(others, epochs=LONG), CPU).name == "plain"
    assert form_of(job(epochs=LONG, freeze_trunk=True), CPU).name == "plain"
    assert form_of(job(rule=WPN(), epochs=LONG), CPU) == form_of(job(form="plain"), CPU)
    assert form_of(job(others, form="compiled"), CPU).name == "compiled"


def test_auto_is_plain_on_a_gpu_and_says_so() -> None:
    form = form_of(job(epochs=LONG), torch.device("cuda"))
    assert (form.name, form.message) == ("plain", "Form auto is plain on cuda: compiled has not been tested there.")
    assert form_of(job(form="compiled"), torch.device("cuda")).name == "compiled"


# -- what is compiled --------------------------------------------------------------------------------------------------


def test_only_steps_on_full_batches_are_compiled(backend: Backend) -> None:
    net = small()
    twin, form = deepcopy(net), Compiled(net, BATCH, pytest.fail)
    for number in (BATCH, BATCH - 1, BATCH, 1 + BATCH):
        x = torch.randn(number, 1, 12, 12)
        torch.testing.assert_close(form(x), twin(x))
    graphs, calls = backend.graphs, backend.calls
    assert graphs
    with torch.no_grad():
        form(x[:BATCH])
    net.eval()
    form(x[:BATCH])
    net.train()
    assert (backend.graphs, backend.calls) == (graphs, calls)
    form(x[:BATCH])
    assert backend.graphs == graphs
    assert backend.calls > calls


def test_compiling_leaves_statistics_gradients_and_random_numbers_alone(backend: Backend) -> None:
    net = small()
    net.exits[0] = nn.Sequential(nn.Dropout(), net.exits[0])
    twin, form = deepcopy(net), Compiled(net, BATCH, pytest.fail)
    x = torch.randn(BATCH, 1, 12, 12)
    logits = []
    for run in (form, twin):
        torch.manual_seed(1)
        logits.append(run(x))
    torch.testing.assert_close(*logits)
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()))
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("kind", ["forward", "backward", "of all modules"])
def test_hooks_are_called_whenever_they_were_added(backend: Backend, kind: str) -> None:
    net, called, said = small(), [], []
    form = Compiled(net, BATCH, said.append)
    x = torch.randn(BATCH, 1, 12, 12, requires_grad=True)
    form(x)
    conv = net.stages[0].conv
    if kind == "forward":
        handle = conv.register_forward_hook(lambda *_: called.append(1))
    elif kind == "backward":
        handle = conv.register_full_backward_hook(lambda *_: called.append(1))
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda *_: called.append(1))
    calls = backend.calls
    for _ in range(2):
        form(x).sum().backward()
    handle.remove()
    assert called
    assert said == ["Modules of the network have hooks, so it is run as it is, not compiled."]
    assert backend.calls == calls
    form(x)
    assert backend.calls > calls


def test_a_network_that_cannot_be_compiled_is_one_line(backend: Backend) -> None:
    backend.error = ValueError("no such operation\nand more")
    said: list[str] = []
    x = torch.randn(BATCH, 1, 12, 12)
    net = small()
    with pytest.raises(UsageError, match=r"no such operation.*Train in form plain") as error:
        Compiled(net, BATCH, said.append)(x)
    assert "\n" not in str(error.value)
    torch._dynamo.reset()
    twin, form = deepcopy(net), Compiled(net, BATCH, said.append, is_asked_for=False)
    for _ in range(2):
        assert torch.equal(form(x), twin(x))
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()), rtol=0, atol=0)
    assert len(said) == 1
    assert "form plain" in said[0]


class Small(nn.Module):
    """A unit and an exit's layers: little to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


def small() -> EarlyExitNet:
    torch.manual_seed(0)
    return EarlyExitNet([Small()], [nn.Sequential(nn.Flatten(), nn.Linear(300, 2))])


def gradients(run: Callable[[Tensor], Tensor], net: EarlyExitNet, x: Tensor) -> list[Tensor]:
    run(x).float().square().sum().backward()
    return [parameter.grad for parameter in net.parameters()]


def test_a_compiled_step_is_that_of_the_network() -> None:
    """By the compiler itself, in float64; its kernels are kept on the machine."""
    torch._dynamo.reset()
    net = small().double()
    twin, form = deepcopy(net), Compiled(net, BATCH, pytest.fail)
    x = torch.randn(BATCH, 1, 12, 12, dtype=torch.float64)
    for found, wanted in zip(gradients(form, net, x), gradients(twin, twin, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_a_compiled_msdnet_errs_no_more_than_plain(precision: str) -> None:
    """In bf16 twice the error of plain autocast, in float64 the merged units' order of sums."""
    torch._dynamo.reset()
    net = network().to(torch.float64 if precision == "float64" else torch.float32)
    exact, twin, form = deepcopy(net).double(), deepcopy(net), Compiled(net, BATCH, pytest.fail)
    x = torch.randn(BATCH, 1, 12, 12).to(next(net.parameters()).dtype)
    truth = gradients(exact, exact, x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = [run(x) for run in (form, twin)]
    for each in logits:
        each.float().square().sum().backward()
    errors = [
        torch.stack([(p.grad.double() - t).norm() for p, t in zip(own.parameters(), truth, strict=True)]).norm()
        for own in (net, twin)
    ]
    if precision == "float64":
        torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
        assert errors[0] <= 1e-6 * torch.stack([t.norm() for t in truth]).norm()  # the loss is float32
        torch.testing.assert_close(dict(net.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=0)
    else:
        assert 0 < errors[0] < 2 * errors[1]


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_a_run_compiles_once_and_ends_as_plain(backend: Backend, tmp_path: Path) -> None:
    parts, nets = images(), {}
    for form in ("compiled", "plain"):
        config = TrainConfig(epochs=2, lr=0.05, form=form)  # type: ignore[arg-type]
        nets[form] = offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path / form)
        assert RunFolder(tmp_path / form).read_starts()[0].form == form
    torch.testing.assert_close(nets["compiled"].state_dict(), nets["plain"].state_dict(), rtol=1e-3, atol=1e-4)
    assert backend.calls >= 2 * 2  # two full batches an epoch


def test_a_frozen_trunk_under_compiled_stays(backend: Backend, tmp_path: Path) -> None:
    parts, net = images(), network()
    before = deepcopy(net.stages.state_dict())
    config = TrainConfig(epochs=1, lr=0.05, form="compiled", freeze_trunk=True)
    offramp.fit(net, CrossEntropy(), parts.train, parts.val, config, out=tmp_path)
    torch.testing.assert_close(net.stages.state_dict(), before, rtol=0, atol=0)
    assert backend.calls


def test_going_on_in_another_form_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, folder = images(), RunFolder(tmp_path)
    config = TrainConfig(epochs=1, lr=0.05)
    offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path)
    folder.weights.unlink()
    text = folder.environment.read_text()
    for before, found in (("by an older offramp", text.replace('"form"', '"no form"')), ("in form compiled", text)):
        folder.environment.write_text(found.replace('"plain"', '"compiled"'))
        offramp.fit(network(), CrossEntropy(), parts.train, parts.val, config, out=tmp_path)
        assert f"It was started {before} and goes on in form plain" in capsys.readouterr().err
        folder.weights.unlink()


@pytest.mark.slow  # a whole process; that it is one line is tested quickly above
def test_without_a_compiler_compiled_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    words = "train --data digits limit=100 --epochs 1 --form compiled --out".split()
    done = subprocess.run(
        [sys.executable, "-m", "offramp", *words, str(tmp_path / "run")],
        env=os.environ | {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kept")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].count("take form plain") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_a_compiler_auto_is_plain_and_says_so(backend: Backend) -> None:
    backend.error = RuntimeError("no compiler")
    form = form_of(job(epochs=LONG), CPU).checked()
    assert form.name == "plain"
    assert form.message is not None
    assert "no compiler" in form.message
