"""`--config FILE`: what is written out overrides it."""

import json
from pathlib import Path

import pytest

from offramp.cli import main
from offramp.cli.config_file import ConfigFile
from offramp.commands import CertifyOptions
from offramp.commands.train import TrainOptions
from offramp.files import RunFolder

QUICK = ["train", "--data", "digits", "limit=100", "--epochs", "1", "--no-deterministic", "--milestones", "0.3"]


def test_a_run_is_trained_again_from_its_configuration(tmp_path: Path) -> None:
    first, again, other = (RunFolder(tmp_path / name) for name in ("first", "again", "other"))
    assert (
        main([*QUICK, "--schedule", "multistep", "--objective", "damping", "strength=0.3", "--out", str(first.path)])
        == 0
    )
    assert main(["train", "--config", str(first.path), "--out", str(again.path)]) == 0
    assert again.identity() == first.identity()
    assert main(["train", "--out", str(other.path), f"--config={first.config}", "--seed", "3", "--deterministic"]) == 0
    settings = other.read_config().values["training"]
    assert (settings["seed"], settings["deterministic"], settings["milestones"]) == (3, True, [0.3])


def test_a_yaml_file_of_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("data: [digits, limit=100]\nepochs: 1\nlr: 1e-3\naugment: no\nbatch-size: 50\n")
    assert main(["train", "--config", str(file), "--batch-size", "25", "--out", str(tmp_path / "run")]) == 0
    values = RunFolder(tmp_path / "run").read_config().values
    assert (values["training"]["lr"], values["training"]["augment"], values["data"]["batch_size"]) == (0.001, False, 25)
    assert ConfigFile(file, {"per-class": True, "json": False, "risk": 0.5}, is_run=False, written={}).words(
        CertifyOptions
    ) == ["--per-class", "--risk", "0.5"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1\n", "holds no options"),
        ("a: [", "neither YAML nor JSON"),
        (json.dumps({"format": 2, "data": None, "network": None, "training": {}}), "data was made by hand"),
    ],
)
def test_a_file_that_says_nothing_of_use(
    content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text(content)
    assert main(["train", "--config", str(tmp_path / "file"), "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_files_that_are_not_there_or_for_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", str(tmp_path / "nothing"), "--out", "x"]) == 2
    assert main(["train", "--out", "x", "--config"]) == 2
    run = {"format": 2, "data": {"source": {"name": "digits"}}, "network": {"name": "auto"}, "training": {}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    assert main(["evaluate", "x", "--config", str(tmp_path)]) == 2
    assert "it is for `offramp train`" in capsys.readouterr().err


def test_code_that_a_strangers_configuration_names_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_house.py").write_text("raise AssertionError('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OFFRAMP_ALLOW_CODE", "")
    run = {"format": 2, "data": {"source": {"name": "digits"}}, "network": {"name": "auto"}, "training": {}}
    for name in ("objective", "network"):
        (tmp_path / "config.json").write_text(json.dumps({**run, name: {"name": "evil_house:Loss"}}))
        assert main(["train", "--config", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
        assert "--allow-code evil_house" in capsys.readouterr().err


def test_options_of_train_alone_are_those_of_a_run() -> None:
    words = ConfigFile(Path("f"), {"network": {"name": "msdnet", "args": {"exits": 2}}}, is_run=True, written={})
    assert words.words(TrainOptions) == ["--network", "msdnet", "exits=2"]
