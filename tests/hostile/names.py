"""Run folders of a stranger: names and recipes in `config.json` that would run code, and every command that opens them.

`attempts(folder)` tries all of them through all commands. Held is a case in which the canary, a file that every one of
these names would write if it were imported or called, is not there afterwards, and what is refused is refused with
status 1 or 2 and one line.
"""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision.io import write_png

from offramp import cli, training
from offramp.config import DataConfig, Run, Spec, TrainConfig
from offramp.files import OWNER, RunFolder
from offramp.policy import EVERYBODY, Policy
from offramp.storage import load_tensors, save_tensors

MODULE = "stranger_code"  # lies beside the run and in the folder one works in
SHADOWS = ("numpy", "ray", "sklearn", "stranger_code", "timm", "torch", "torchvision", "tyro", "zlib", "rich")
CODE = """
from pathlib import Path
def fire(*_, **__): Path({canary!r}).touch()
fire()
"""
KINDS = ("data", "network", "objective", "rule")

NAMES = """
os:system os:popen os:execv os:remove os:_exit posix:system nt:system subprocess:run subprocess:Popen subprocess:call
subprocess:check_output subprocess:getoutput builtins:eval builtins:exec builtins:compile builtins:__import__
builtins:open builtins:print builtins:getattr builtins:globals importlib:import_module importlib:reload
importlib.util:spec_from_file_location runpy:run_path runpy:run_module code:interact codeop:compile_command pty:spawn
pickle:load pickle:loads shelve:open marshal:loads ctypes:CDLL ctypes:PyDLL shutil:rmtree shutil:move
webbrowser:open urllib.request:urlopen http.server:test socket:create_connection multiprocessing:Process
threading:Thread asyncio:run timeit:timeit cProfile:run pdb:run doctest:testfile venv:create ensurepip:bootstrap
zipapp:create_archive antigravity:fly this:s site:main sys:exit sys:settrace atexit:register signal:raise_signal
__main__:main __main__:__builtins__ torch:ops torch:load torch:compile torch:save torch.hub:load
torch.hub:load_state_dict_from_url torch.utils.cpp_extension:load torch.utils.cpp_extension:load_inline
torch.serialization:load torch.package:PackageImporter torch.jit:load torch.nn:Linear torch._inductor.codecache:_load
torchvision.models:get_model torchvision.datasets.utils:download_url numpy:load numpy:savetxt numpy:fromfile
numpy.f2py.__main__:x numpy.f2py:main numpy.distutils.exec_command:exec_command numpy.testing:rundocs pytest:mark
pytest:main _pytest.config:main pip:main pip._internal:main setuptools:setup sklearn.datasets:fetch_openml
sklearn.datasets:load_digits scipy.io:loadmat jinja2:Template matplotlib:use timm:create_model
timm.models:load_checkpoint timm.models.helpers:load_state_dict huggingface_hub:snapshot_download ray:init
tensorboard.main:run_main IPython:embed stranger_code:fire stranger_code:x stranger_code.deeper:fire
offramp:fit offramp:load offramp:train offramp.__main__:main offramp.cli:main offramp.cli:COMMANDS
offramp.config:resolve offramp.config:build offramp.config:importlib offramp.trust:remember offramp.trust:os
offramp.storage:write_atomically offramp.storage:load_pickled offramp.storage:shutil offramp.files:RunFolder
offramp.files:load offramp.network:builder offramp.network:EarlyExitNet offramp.network:rebuild
offramp.data.archives:download offramp.data.base:Parts offramp.data:arrays offramp.data.cifar:_PlainUnpickler
offramp.objectives:build offramp.objectives.base:Objective offramp.rules.base:TrainingRule offramp.rules:RULES
offramp.backbones:build offramp.backbones.attached.zoo:settled offramp.backbones.attached.zoo:importlib
offramp.backbones.attached.zoo:named_model offramp.backbones.prefix:prefix offramp.commands.job:main
offramp.commands.job:os offramp.paper.watching:data offramp.engine.kept:subprocess offramp.shipped:copy
""".split()
ODD_NAMES = [
    "",
    ":",
    ":fire",
    "stranger_code:",
    "stranger_code",
    "stranger_code:fire:fire",
    "stranger_code:fire.__call__",
    "stranger_code:__class__",
    ".stranger_code:fire",
    "..stranger_code:fire",
    "stranger_code.:fire",
    "stranger_code..x:fire",
    " stranger_code:fire",
    "stranger_code :fire",
    "stranger code:fire",
    "stranger_code\n:fire",
    "stranger_code:fire\n",
    "\x1b[31mstranger_code:fire",
    "stranger_code\x00:fire",
    "stranger_code\u202e:fire",
    "ｏｓ:system",
    "оs:system",  # a Cyrillic o
    "OS:system",
    "os.path:os",
    "os/path:x",
    "../stranger_code:fire",
    "/tmp/stranger_code.py:fire",
    "file:///tmp/stranger_code.py:fire",
    "folder",
    "folder:",
    "stranger_code:fire" * 50,
    "timm/hf-hub:stranger/evil",
    "torchvision/resnet18",
    "auto",
]


class Case(NamedTuple):
    """What stands in a stranger's `config.json`."""

    kind: str
    spec: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.kind} {self.spec['name']!r} {json.dumps(self.spec['args'])[:60]}"


def named(canary: Path) -> list[Case]:
    """Every name as data, network, objective and rule, with arguments that some of them would take."""
    arguments = {"command": f"touch {canary}", "cmd": f"touch {canary}", "source": f"open({str(canary)!r}, 'w')"}
    return [Case(kind, {"name": name, "args": arguments}) for name in (*NAMES, *ODD_NAMES) for kind in KINDS]


def recipes(folder: Path, canary: Path) -> list[Case]:
    """Names that are registered, with arguments that are not what they should be.

    Args:
        folder: Where pickles and other runs are put.
        canary: What they would write.
    """
    evil = str(evil_pickle(folder / "evil.pth", canary))
    fire = {"name": f"{MODULE}:fire", "args": {}}
    system = {"name": "os:system", "args": {"command": f"touch {canary}"}}
    data = [
        *({"source": name} for name in (f"{MODULE}:fire", "os:system", "torch:load", "pytest:mark", "builtins:exec")),
        {"source": "offramp.paper.watching:on_test"},
        {"source": f"{MODULE}:fire", "holdout": 0, "command": "x"},
    ]
    weights: list[Mapping[str, Any]] = [
        {"checkpoint_path": evil},
        {"checkpoint_path": f"file://{evil}"},
        {"pretrained": True},
        {"pretrained": evil},
        {"pretrained": 1},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": evil}},
        {"pretrained": True, "pretrained_cfg_overlay": {"url": f"file://{evil}"}},
        {"pretrained_cfg": {"file": evil}, "pretrained": True},
        {"pretrained_cfg": evil},
        {"pretrained_cfg_overlay": {"state_dict": evil}},
        {"cache_dir": str(folder)},
        {"scriptable": True},
        {"pretrained_strict": False},
        {"pretrained_filter_fn": evil},
        {"weights": evil},
        {"weights": "DEFAULT"},
        {"weights": "IMAGENET1K_V1"},
        {"weights_backbone": "DEFAULT"},
        {"act_layer": evil},
        {"act_layer": "__import__('os').system('true')"},
        {"norm_layer": {"name": "os:system"}},
        {"global_pool": "../x"},
        {"block": "os:system"},
        {"drop_rate": evil},
        {"features_only": True},
        {"**": 1},
    ]
    models = ("timm/resnet18", "torchvision/resnet18")
    strange = (
        "timm/hf-hub:a/b",
        "timm/hf_hub:a/b",
        f"timm/local-dir:{folder}",
        f"timm/{evil}",
        "torch/x",
        "x",
        5,
        None,
    )
    other = str(stranger(folder / "other", {}, network=fire))
    reading = ("collaborating", "prefix", "offramp.backbones.collaboration:collaborating")
    nested = [fire, system, {"name": "offramp.cli:main", "args": {"arguments": ["example"]}}, 5, None, {"name": 3}]
    networks = [
        *(("offramp.backbones.attached.zoo:named", {"model": m, **w}) for m in models for w in weights),
        *(("offramp.backbones.attached.zoo:named", {"model": m}) for m in strange),
        *(("offramp.backbones.collaboration:collaboration", {"base": base}) for base in nested),
        *(("offramp.backbones.prefix:shorter", {"base": base, "exits": 1}) for base in nested),
        ("offramp.backbones.prefix:shorter", {"exits": 1, "base": _shorter(_shorter(fire))}),
        ("offramp.backbones.collaboration:collaboration", {"base": _shorter(system)}),
        *((name, {"run": other}) for name in reading),
    ]
    return [
        *(Case("data", {"name": "offramp.paper.watching:on_test", "args": args}) for args in data),
        *(Case("network", {"name": name, "args": args}) for name, args in networks),
    ]


def _shorter(base: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "offramp.backbones.prefix:shorter", "args": {"base": base, "exits": 1}}


class _Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def evil_pickle(path: Path, canary: Path) -> Path:
    """A file of weights that writes the canary when it is loaded as pickles are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": _Evil(canary)}, path)
    return path


def code_in(folder: Path, canary: Path, *names: str) -> None:
    """Python files that write the canary when they are imported."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(CODE.format(canary=str(canary)))


def stranger(folder: Path, files: Mapping[str, bytes], **specs: Mapping[str, Any]) -> Path:
    """A run's folder with these files, in whose configuration data, network, objective or rule are these.

    Without files a configuration alone, as of a run that is finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    config = json.loads(files.get("config.json", b"{}"))
    for key in ("data", "network", "objective", "training"):
        config.setdefault(key, None)
    config["format"] = 1
    for kind, spec in specs.items():
        config[kind] = {**(config["data"] or {}), "source": spec} if kind == "data" else spec
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def finished(folder: Path) -> dict[str, bytes]:
    """The files of a small run that any command takes, made of what is registered; none say how files become input.

    Its weights carry no hash of a run, as those of older versions: with any other configuration they would be refused
    before anything in it is looked at.
    """
    knobs = {"exits": 2, "channels": 4, "growth": 2, "growth_factors": (1, 2), "head_channels": 8}
    run = Run(
        data=DataConfig(source=Spec("digits", {"limit": 300}), batch_size=100, holdout=100),
        network=Spec("msdnet", knobs),
        training=TrainConfig(epochs=1, form="plain", xray=8),
    )
    with contextlib.redirect_stderr(io.StringIO()):
        network = training.train(run, folder)
    place = RunFolder(folder)
    tensors, metadata = load_tensors(place.weights)
    save_tensors(place.weights, tensors, {key: value for key, value in metadata.items() if key != OWNER})
    Policy((0.5, *[EVERYBODY] * (network.num_exits - 1))).save(place.policy)
    files = (place.config, place.weights, place.split, place.metrics, place.policy, place.xray, place.environment)
    return {file.name: file.read_bytes() for file in files}


class Command(NamedTuple):
    """A command on a run, and which names of its configuration it comes to."""

    words: tuple[str, ...]
    builds: tuple[str, ...]

    def on(self, run: Path, image: Path) -> list[str]:
        """Its arguments."""
        places = {"RUN": str(run), "IMAGE": str(image), "OUT": str(run.parent / "out")}
        return [places.get(word, word.replace("=RUN", f"={run}")) for word in self.words]


_TRAIN = "train --data digits limit=200 --epochs 1 --out OUT".split()
_SMALL = "--network msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) head_channels=8".split()
COMMANDS = {
    "predict": Command(("predict", "RUN", "IMAGE"), ("network", "data")),
    "evaluate": Command(("evaluate", "RUN", "--train-limit", "0"), ("network", "data")),
    "compare": Command(("compare", "RUN"), ("network", "data")),
    "policy": Command(("policy", "RUN", "--budget", "0.5"), ("network", "data")),
    "certify": Command(("certify", "RUN"), ("network", "data")),
    "bench": Command(("bench", "RUN", "--rounds", "5"), ("network", "data")),
    "export": Command(("export", "RUN", "--to", "onnx", "--preprocess"), ("network", "data")),
    "export int8": Command(("export", "RUN", "--to", "onnx", "--int8"), ("network", "data")),
    "export torch": Command(("export", "RUN", "--to", "torch", "--out", "OUT"), ("network",)),
    "serve": Command(("serve", "RUN", "--port", "0", "--backend", "torch"), ("network", "data")),
    "demo": Command(("demo", "RUN", "--out", "OUT"), ("network", "data")),
    "verdict": Command(("verdict", "RUN", "--rounds", "5", "--seconds", "1"), KINDS),
    "cost": Command(("cost", "RUN"), ("network",)),
    "train from": Command((*_TRAIN, "--network", "collaborating", "run=RUN"), ("network",)),
    "train shorter": Command((*_TRAIN, "--network", "prefix", "run=RUN", "exits=1"), ("network",)),
    "train taught": Command((*_TRAIN, *_SMALL, "--rule", "one-for-all", "teacher=RUN"), ("network",)),
    "cost shorter": Command(("cost", "prefix", "run=RUN", "exits=1"), ("network",)),
    "import": Command(("import", "IMAGE", "--preset", "prefix", "run=RUN", "exits=1"), ("network",)),
    "xray": Command(("xray", "RUN"), ("data",)),
}


class Answer(NamedTuple):
    """What came of a command."""

    status: int | str
    lines: list[str]


def answer(arguments: list[str]) -> Answer:
    """The status of a command that is run in this process, and its lines on standard error; of a crash its kind."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: int | str = cli.main(arguments)
        except Exception as error:  # what it is, is to be shown
            status = f"{type(error).__name__}: {error}"[:200]
    return Answer(status, err.getvalue().splitlines())


def fault(case: Case, command: Command, got: Answer, canary: Path) -> str | None:
    """What is wrong with how a case was met; None where it was refused as it should be."""
    if canary.exists():
        canary.unlink()
        return "the canary was written"
    if command.words[0] == "xray":  # which goes on without pictures of the data
        return None if got.status == 0 else f"status {got.status}"
    if got.status not in (1, 2):
        return f"status {got.status}"
    said = [line for line in got.lines if line.startswith("offramp: ")]
    if len(said) != 1 or got.lines[-1] != said[0]:
        return f"said {got.lines}"
    return None if said[0].isprintable() else f"said {said[0]!r}"


def attempts(
    folder: Path, commands: Mapping[str, Command] = COMMANDS, some: Callable[[list[Case]], list[Case]] = list
) -> Iterator[tuple[str, str | None]]:
    """Every case through every command that comes to it, and what is wrong with how it was met.

    Args:
        folder: An empty folder to work in. Code of the stranger lies in it and beside the runs.
        commands: Those to try.
        some: Chooses among the cases.
    """
    canary = folder / "canary"
    files = finished(folder / "made")
    image = folder / "image.png"
    write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), str(image))
    cases = some([*named(canary), *recipes(folder / "evil", canary)])
    here = Path.cwd()
    code_in(folder / "work", canary, *SHADOWS)
    os.chdir(folder / "work")
    try:
        for (number, case), (name, command) in itertools.product(enumerate(cases), commands.items()):
            if case.kind not in command.builds:
                continue
            run = stranger(folder / "runs" / f"{number}-{name.replace(' ', '-')}", files, **{case.kind: case.spec})
            code_in(run, canary, MODULE)
            yield f"{name}: {case}", fault(case, command, answer(command.on(run, image)), canary)
    finally:
        os.chdir(here)
