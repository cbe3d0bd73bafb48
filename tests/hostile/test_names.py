"""No name and no recipe in a stranger's run folder runs code, whatever command opens it; the controls show it could."""

import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

import offramp
from offramp import backbones, objectives, rules, trust
from offramp.backbones.collaboration import collaborating
from offramp.backbones.prefix import prefix
from offramp.cli import COMMANDS, main
from offramp.commands import EvaluateOptions, VerdictOptions, evaluate, verdict
from offramp.commands.options import OpensRuns
from offramp.config import Spec
from offramp.data import REGISTRY
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.network import rebuild


def _helper():
    spec = importlib.util.spec_from_file_location("hostile_names", Path(__file__).with_name("names.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


names = _helper()


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFRAMP_ALLOW_CODE")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, names.MODULE, raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return names.finished(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Code that writes it lies in the folder one works in, and beside the runs."""
    names.code_in(tmp_path, tmp_path / "canary", *names.SHADOWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def refused(attempts) -> None:
    tried = list(attempts)
    assert len(tried) >= 100
    assert not [attempt for attempt in tried if attempt[1] is not None]


def test_every_name_as_a_network_runs_nothing(tmp_path: Path) -> None:
    refused(names.attempts(tmp_path, {"cost": names.COMMANDS["cost"]}))


@pytest.mark.parametrize("kind", ["data", "objective", "rule"])
def test_every_name_as_data_objective_and_rule_runs_nothing(kind: str, files, canary: Path, tmp_path: Path) -> None:
    options, function = (EvaluateOptions, evaluate) if kind == "data" else (VerdictOptions, verdict)
    cases = [case for case in names.named(canary) if case.kind == kind]
    recipes = [case for case in names.recipes(tmp_path / "evil", canary) if case.kind == kind]
    for case in [*cases[::3], *recipes]:  # all of them as a network above, and through every command in the slow tests
        run = names.stranger(tmp_path / "run", files, **{kind: case.spec})
        # A name without a colon is that of a registered thing, or of none; a verdict comes to it after minutes.
        if kind != "data" and ":" not in case.spec["name"]:
            with trust.opened(run, {}, ()), pytest.raises(UsageError):
                {"objective": objectives, "rule": rules}[kind].build(Spec.from_json(case.spec))
            continue
        with pytest.raises(UsageError) as caught:
            function(options(run))
        assert str(caught.value).isprintable(), case
        assert not canary.exists(), case


SOME = ["os:system", "torch:ops", "pytest:mark", "stranger_code:fire", "offramp.data.archives:download"]


@pytest.mark.parametrize("command", names.COMMANDS)
def test_every_command_that_opens_a_run_refuses(command: str, files, canary: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), str(image))
    how = names.COMMANDS[command]
    for kind in how.builds:
        for number, name in enumerate(SOME if command == "cost" else SOME[3:]):
            case = names.Case(kind, {"name": name, "args": {"command": f"touch {canary}"}})
            run = names.stranger(tmp_path / f"{kind}-{number}", files, **{kind: case.spec})
            names.code_in(run, canary, names.MODULE)
            assert names.fault(case, how, names.answer(how.on(run, image)), canary) is None, name


def test_no_command_is_left_out() -> None:
    """`reproduce` opens only runs that it trains itself."""
    opening = {name for name, options in COMMANDS.items() if issubclass(options, OpensRuns)}
    assert {command.words[0] for command in names.COMMANDS.values()} == opening - {"reproduce"}


@pytest.mark.slow
def test_every_case_through_every_command(tmp_path: Path) -> None:
    refused(names.attempts(tmp_path))


# -- the controls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", names.KINDS)
def test_the_canary_is_written_once_the_package_is_allowed(kind: str, files, canary: Path, tmp_path: Path) -> None:
    """So it is the refusal that kept it away; and the module is found in the folder one works in, as it was named."""
    run = names.stranger(tmp_path / "run", files, **{kind: {"name": f"{names.MODULE}:fire", "args": {}}})
    command = "verdict" if kind in ("objective", "rule") else "evaluate"
    got = names.answer([command, str(run), "--allow-code", "stranger"])  # no package, but how its name begins
    assert got.status == 2
    assert not canary.exists()
    assert f"--allow-code {names.MODULE}" in got.lines[-1]
    assert names.answer([command, str(run), "--allow-code", names.MODULE]).status == 2  # it gives None
    assert canary.exists()


def test_the_pickle_writes_the_canary_where_it_is_loaded(canary: Path, tmp_path: Path) -> None:
    torch.load(names.evil_pickle(tmp_path / "evil.pth", canary), weights_only=False)
    assert canary.exists()


# -- the user's word ---------------------------------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass
from torch import nn
import offramp
from offramp.network import builder
from offramp.objectives import CrossEntropy
from offramp.rules import Standard

@builder
def net(num_classes=10, in_channels=1, width=4):
    return offramp.EarlyExitNet(
        [nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)],
        [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)) for _ in range(2)],
        num_classes=num_classes,
        image_shape=(in_channels, 16, 16),
    )

@dataclass(frozen=True)
class Loss(CrossEntropy):
    pass

class Rule(Standard):
    pass
"""
WORDS = "--network my_own:net --objective my_own:Loss --rule my_own:Rule --data digits limit=200 --epochs 1".split()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with one's own network, objective and rule, trained by the command; nothing is imported any more."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    assert main(["train", *WORDS, "--out", "run"]) == 0
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    return tmp_path / "run"


def is_opened(run: Path, **settings) -> bool:
    with contextlib.suppress(UsageError):
        offramp.load(run, **settings)
        return True
    return False


def test_ones_own_run_needs_no_word_but_a_copy_of_it_does(own: Path, tmp_path: Path) -> None:
    assert is_opened(own)
    assert is_opened(Path("run"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in own.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    assert not is_opened(copy)
    assert is_opened(copy, allow_code=("my_own",))
    assert not is_opened(copy, allow_code=("my",))
    own.rename(tmp_path / "moved")
    assert not is_opened(tmp_path / "moved")
    assert main(["train", *WORDS, "--out", "moved"]) == 0  # there is nothing to train, but the user named it all again
    assert is_opened(tmp_path / "moved")


@pytest.mark.parametrize("key", names.KINDS[1:])
def test_a_run_whose_names_were_changed_is_a_strangers(own: Path, key: str) -> None:
    config = RunFolder(own).config
    changed = config.read_text().replace(f'"{key}": {{', f'"{key}": {{ "more": 1,')
    assert changed != config.read_text()
    config.write_text(changed)
    assert not is_opened(own)


def test_what_builds_on_ones_own_run_is_ones_own(own: Path) -> None:
    data = "--data digits limit=200 --epochs 1 --objective my_own:Loss".split()
    shorter = ["--network", "prefix", f"run={own}", "exits=1"]
    assert main(["train", *data, *shorter, "--out", "shorter"]) == 0
    assert is_opened(Path("shorter"))  # its recipe holds the other's
    chained = ["--network", "collaborating", f"run={own}", "--rule", "one-for-all", f"teacher={own}"]
    assert main(["train", *data, *chained, "--out", "chained"]) == 0
    assert is_opened(Path("chained"))


def test_the_environment_may_say_it(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.rename(tmp_path / "moved")
    assert main(["cost", "moved"]) == 2
    monkeypatch.setenv("OFFRAMP_ALLOW_CODE", "other, my_own")
    assert main(["cost", "moved"]) == 0


def test_training_goes_on_where_nothing_can_be_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    words = ["--network", "my_own:net", "--data", "digits", "limit=200", "--epochs", "1", "--out", "run"]
    assert main(["train", *words]) == 0
    assert not is_opened(tmp_path / "run")
    assert is_opened(tmp_path / "run", allow_code=("my_own",))


def test_a_run_of_registered_names_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    names.finished(tmp_path / "run")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("package", ["os", "offramp", "offramp.cli", "builtins", "", "a b", "mine:net", "../mine"])
def test_what_can_never_be_allowed_is_said(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "nowhere", "--allow-code", package]) == 2
    assert "--allow-code" in capsys.readouterr().err
    with pytest.raises(UsageError, match="allow_code"):
        offramp.load("nowhere", allow_code=(package,))


def test_no_file_of_the_folder_one_works_in_is_imported(files, canary: Path, tmp_path: Path) -> None:
    """Neither by the command nor by `python -m`: what lies beside a run may be called like any library."""
    run = names.stranger(tmp_path / "run", files)
    image = tmp_path / "image.png"
    write_png(torch.zeros(1, 8, 8, dtype=torch.uint8), str(image))
    environment = os.environ | {"PYTHONPATH": str(Path(offramp.__file__).parents[1])}
    command = [sys.executable, "-m", "offramp", "predict", str(run), str(image)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not canary.exists()


# -- the closed table --------------------------------------------------------------------------------------------------


def test_the_table_is_what_runs_have_in_their_configuration() -> None:
    def path(made: object) -> str:
        return f"{type(made).__module__}:{type(made).__qualname__}"

    assert {path(objectives.build(Spec(name))) for name in objectives.OBJECTIVES} == trust.REGISTERED["objective"]
    classes = {f"{rule.__module__}:{rule.__qualname__}" for rule in rules.RULES.values()}
    assert classes == trust.REGISTERED["rule"]
    builders = [getattr(made, "func", made) for made in backbones.NETWORKS.values()]  # presets are made of builders
    for made in builders:
        if made not in (collaborating, prefix):  # which read runs, and leave other recipes
            assert f"{made.__module__}:{made.__qualname__}" in trust.REGISTERED["network"]
    for kind, known in trust.REGISTERED.items():
        for name in known:
            module, _, attribute = name.partition(":")
            assert callable(getattr(importlib.import_module(module), attribute)), (kind, name)
    assert not [name for name in REGISTRY if ":" in name and not name.startswith("folder:")]


def test_a_registered_network_is_built_without_any_word() -> None:
    spec = backbones.build(Spec("msdnet", {"exits": 2, "num_classes": 3})).spec
    assert rebuild(spec).num_exits == 2
