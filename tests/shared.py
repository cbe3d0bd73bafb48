"""What all tests share: a fixed seed, one thread each (two processes on two cores), interrupted and trained runs."""

import base64
import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import runpy
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.io import write_png

import offramp
from offramp import data, shipped, training
from offramp.commands import EvaluateOptions, evaluate
from offramp.commands.open_run import parts_of
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.files import RunFolder, load
from offramp.network import EarlyExitNet, builder
from offramp.paper import Scale, experiments
from offramp.policy import EVERYBODY, Policy
from offramp.results.evaluation import Evaluation
from offramp.storage import save_tensors, weights_hash
from offramp.training.prefixes import Prefixes

torch.set_num_threads(1)
AS_TORCHRUN = Path(__file__).with_name("as_torchrun.py")


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of runs made here stays here, runs made by hand may name code of these tests, one thread.

    No file made here has to survive a power cut, and waiting for the disk would take a fifth of a small training.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("OFFRAMP_ALLOW_CODE", __name__.partition(".")[0])
        patch.setenv("OMP_NUM_THREADS", "1")  # processes started here: threads that wait for each other spin
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def operators_once() -> Iterator[None]:
    """torch.onnx makes its table of operators anew for every export, half of the time of a small one: here once."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(ImportError, AttributeError):  # where it is, is torch's own affair
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def script() -> Callable[[Path], ModuleType]:
    """Loads a script that is in no package."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def together() -> Callable[..., None]:
    """`together(number, script, *arguments)`: a script in so many processes, as under torchrun.

    They are forked off a process that has imported torch already, which takes each of torchrun's own seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "offramp.training", "offramp.rules", "offramp.backbones"])

    def run(number: int, script: Path, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        processes = []
        for rank in range(number):
            given = ({**shared, "RANK": str(rank)}, [str(script), *map(str, arguments)])
            process = context.Process(target=runpy.run_path, args=(str(AS_TORCHRUN), {"given": given}, "__main__"))
            process.start()
            processes.append(process)
        for process in processes:
            process.join(300)
            process.kill()
        assert [process.exitcode for process in processes] == [0] * number

    return run


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are made and not rendered, which is most of the time of a page: for tests of what else stands there."""
    monkeypatch.setattr("offramp.show.figures.render", lambda *_, **__: b"<svg></svg>")


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Checks that a run ends with the same bytes though its plug is pulled on the way and it is started again.

    `check(fit, of, method, at)`: `fit(out)` trains into the folder `tmp_path / out`; the plug is pulled at call number
    `at` of a method of the class `of`. With `checkpoint` the last checkpoints have to be equal too. Gives the folder of
    the run that was left in peace.
    """

    class PlugPulledError(Exception):
        pass

    def check(fit: Callable[[str], object], of: type, method: str, at: int, *, checkpoint: bool = False) -> RunFolder:
        fit("calm")
        calls, original = 0, getattr(of, method)

        def pulled(self: object, *args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == at:
                raise PlugPulledError
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(of, method, pulled)
            with pytest.raises(PlugPulledError):
                fit("resumed")
        fit("resumed")
        calm, resumed = (RunFolder(tmp_path / out) for out in ("calm", "resumed"))
        assert calm.weights.read_bytes() == resumed.weights.read_bytes()
        assert calm.metrics.read_bytes() == resumed.metrics.read_bytes()
        if checkpoint:
            last, again = (sorted(run.checkpoints.iterdir())[-1] for run in (calm, resumed))
            assert last.read_bytes() == again.read_bytes()
        return calm

    return check


# -- a finished run made by hand: a tiny network with random weights, tiny made-up images, metrics of four epochs


@builder
def tiny_network(*, exits: int = 3, num_classes: int = 4, damping: bool = True) -> EarlyExitNet:
    channels = [1, *[4] * (exits - 1)]
    stages = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for c in channels]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes + damping)) for _ in stages]
    return EarlyExitNet(stages, heads, num_classes=num_classes, damping=damping, image_shape=(1, 8, 8))


def tiny_data(
    *, num_classes: int = 4, images_seed: int = 0, batch_size: int = 16, holdout: int | None = 8
) -> data.Parts:
    numbers = np.random.default_rng(images_seed)
    images, labels = numbers.integers(0, 256, (100, 8, 8), dtype=np.uint8), np.arange(100) % num_classes
    arguments = {"class_names": [f"<{n}>" for n in range(num_classes)], "batch_size": batch_size, "holdout": holdout}
    return data.arrays(images[:60], labels[:60], images[60:], labels[60:], **arguments)


def metrics(K: int, damping: bool, searched: bool) -> list[dict[str, Any]]:
    def per_exit(top: float) -> list[float]:
        return [top * (k + 1) / K for k in range(K)]

    return [
        {
            "epoch": epoch,
            "step": 4 * epoch,
            "lr": 0.1 / epoch,
            "loss": K / epoch,
            "train_top1": per_exit(50 + epoch),
            "search_top1": per_exit(40 + epoch) if searched else None,
            "search_nll": per_exit(1 / epoch) if searched else None,
            "stats": {"of_my_own": per_exit(2.0), **({"F_damping": per_exit(0.01)} if damping else {})},
        }
        for epoch in range(1, 5)
    ]


def write_run(
    folder: Path,
    *,
    exits: int = 3,
    damping: bool = True,
    num_classes: int = 4,
    seed: int = 0,
    objective: dict[str, Any] | None = None,
    searched: bool = True,
    **config: Any,
) -> Path:
    """A finished run's folder; `config` changes entries of its config.json."""
    torch.manual_seed(seed)
    network = tiny_network(exits=exits, damping=damping, num_classes=num_classes)
    source = {"name": f"{__name__}:tiny_data", "args": {"num_classes": num_classes}}
    values = {
        "format": 1,
        "offramp": offramp.__version__,
        "data": {"source": source, "root": None, "batch_size": 16, "holdout": 8, "workers": 0},
        "network": network.spec.to_json(),
        "objective": objective or {"name": "offramp.objectives.damping:Damping", "args": {"strength": 0.005}},
        "rule": {"name": "offramp.rules.standard:Standard", "args": {}},
        "training": {"epochs": 4, "seed": seed, "lr": 0.1, "keep_checkpoints": 2},
        **config,
    }
    save_tensors(folder / "weights.safetensors", network.state_dict(), {"network": "null"})
    (folder / "config.json").write_text(json.dumps(values))
    lines = [json.dumps(line) + "\n" for line in metrics(exits, damping, searched)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    start = {
        "command": "offramp train --data '<tiny>' --out run",
        "device": "cpu: made up",
        "torch": "2.0",
        "python": "3.11",
        "offramp": offramp.__version__,
        "git": {"commit": "abc123", "changed": True},
    }
    (folder / "environment.json").write_text(json.dumps([{**start, "command": "an earlier start"}, start]))
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, exits=3, ...)` gives a finished run's folder: see `write_run`."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A run with its page, made once and only looked at."""
    return evaluate(EvaluateOptions(write_run(tmp_path_factory.mktemp("reported") / "run")))


@pytest.fixture
def tiny_parts() -> data.Parts:
    return tiny_data()


def _small_run(folder: Path, objective: str = "power-sqrt", rule: str = "standard", **settings: Any) -> Path:
    images = DataConfig(source=Spec("digits", {"limit": 500}), batch_size=100, holdout=200)
    knobs = {"exits": 2, "channels": 4, "growth": 2, "growth_factors": (1, 2), "head_channels": 8}
    config = TrainConfig(epochs=2, lr=0.05, form="plain", **settings)
    made = Run(data=images, objective=Spec(objective), network=Spec("msdnet", knobs), rule=Spec(rule), training=config)
    training.train(made, folder)
    return folder


@pytest.fixture(scope="session")
def run_of() -> Callable[..., Path]:
    """A function that trains a small run in a folder, with an objective, a rule and fields of `TrainConfig`."""
    return _small_run


@pytest.fixture(scope="session")
def judged_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once."""
    return _small_run(tmp_path_factory.mktemp("judged") / "run")


@pytest.fixture
def run(judged_once: Path, tmp_path: Path) -> Path:
    """A small run that a verdict may judge, without anything made later."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "split.json", "metrics.jsonl"):
        (folder / name).write_bytes((judged_once / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def prefixes() -> Callable[..., Prefixes]:
    """A function from a run, and the folder of their runs, to its smaller networks."""

    def made(run: Path, runs: Path | None = None) -> Prefixes:
        folder = RunFolder(run)
        config = folder.read_config()
        return Prefixes(folder, load(run), config, parts_of(folder, config, None), runs or run / "verdict")

    return made


TINY = Path(__file__).parent / "paper" / "tiny.py"


@pytest.fixture
def tiny_scale(script: Callable[[Path], ModuleType]) -> Scale:
    """The scale of `tiny.py`."""
    scale: Scale = script(TINY).SCALE
    return scale


@pytest.fixture
def rows(tiny_scale):
    """`rows("table1")`: the rows of an experiment at the tiny scale, by label."""

    def of(name):
        (experiment,) = experiments([name], tiny_scale)
        return {row.label: row for row in experiment.rows}

    return of


@dataclass(frozen=True)
class Seen:
    """A page in Chromium, and what it has done that it should not."""

    page: Any
    complaints: list[str]

    def drop(self, image: Path) -> tuple[str, int]:
        """Drop an image file, and wait: the label shown and the exit, from 1."""
        content = base64.b64encode(image.read_bytes()).decode()
        kind = {".png": "image/png", ".jpg": "image/jpeg"}.get(image.suffix, "")
        transfer = self.page.evaluate_handle(
            """([content, name, type]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, { type }));
                return transfer;
            }""",
            [content, image.name, kind],
        )
        self.page.dispatch_event("body", "drop", {"dataTransfer": transfer})
        self.page.locator("#spoken", has_text=f"{image.name}:").wait_for(state="attached")
        return self.page.inner_text("#label"), int(self.page.inner_text("#fact-exit").split()[0])


@pytest.fixture(scope="module")  # while it runs, no other event loop can
def chromium() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'offramp[browser]'")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look_at(chromium: Any) -> Iterator[Callable[..., Seen]]:
    """`look_at(address, width=1280, scheme="light")`: a page that is ready. No other host may be asked for anything."""
    contexts = []

    def open_page(address: str, width: int = 1280, scheme: str = "light") -> Seen:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        complaints: list[str] = []

        def only_here(route: Any) -> None:
            if route.request.url.startswith(address):
                route.continue_()
            else:
                complaints.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", only_here)
        page = context.new_page()
        page.set_default_timeout(120_000)  # of a machine that is busy
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.locator("body[data-ready]").wait_for()
        return Seen(page, complaints)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped Fashion-MNIST network with thresholds, as a run's folder."""
    run = tmp_path_factory.mktemp("garments") / "run"
    shipped.copy("fashion-mnist", run)
    policy = Policy((0.8, 0.7, 0.7, EVERYBODY), network=weights_hash(load(run).state_dict()))
    policy.save(run / "policy.json")
    return run


@pytest.fixture(scope="session")
def garment_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """50 test images of garments as PNG files; every fifth is no longer grey, nor of the network's size."""
    folder = tmp_path_factory.mktemp("images")
    batch = next(iter(data.garments(batch_size=50).test.batches()))
    files = []
    for i, image_CHW in enumerate(batch.images_BCHW):
        pixels_CHW = 255 * (image_CHW * 0.353 + 0.286)  # as Fashion-MNIST is normalised
        if i % 5 == 0:
            tinted_CHW = pixels_CHW * torch.tensor([1.0, 0.9, 0.95]).view(3, 1, 1)
            pixels_CHW = torch.nn.functional.interpolate(tinted_CHW[None], (61 + i, 90), mode="bilinear")[0]
        files.append(folder / f"image-{i}.png")
        write_png(pixels_CHW.round().byte(), str(files[-1]))
    return files
