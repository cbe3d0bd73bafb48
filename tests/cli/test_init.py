"""The command itself: bad input gets one clear line and the right status, and leaves nothing half-written."""

import errno
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import docstring_parser
import pytest

from offramp.cli import COMMANDS, main
from offramp.config import DataConfig, TrainConfig

DIGITS = ["train", "--data", "digits"]
BAD = {
    "unknown data set": (["train", "--data", "digitz"], "Unknown data set 'digitz'. Did you mean digits?"),
    "unknown objective": ([*DIGITS, "--objective", "dampin"], "Unknown objective 'dampin'. Did you mean damping"),
    "unknown network": ([*DIGITS, "--network", "msdnet7"], "Unknown network 'msdnet7'."),
    "unknown rule": ([*DIGITS, "--rule", "wpm"], "Unknown rule 'wpm'."),
    "unknown argument": ([*DIGITS, "--objective", "damping", "strenght=1"], "has no argument 'strenght'. Did you mean"),
    "no module": ([*DIGITS, "--objective", "nowhere:Loss"], "there is no module 'nowhere'"),
    "missing folder": (["train", "--data", "folder:/no/such/folder"], "/no/such/folder"),
    "no neuron": ([*DIGITS, "--objective", "damping", "--network", "auto", "damping=False"], "damping=True"),
    "neuron not wanted": ([*DIGITS, "--objective", "label-smoothing", "--network", "auto", "damping=True"], "damping"),
    "no batch": ([*DIGITS, "--batch-size", "0"], "batch-size must be a whole number of at least 1"),
    "too many held out": ([*DIGITS, "--holdout", "5000"], "holdout=5000 leaves nothing to train on"),
    "image too small": ([*DIGITS, "--network", "msdnet7-cifar100"], "16"),
    "huge seed": ([*DIGITS, "--seed", "99999999999999999999"], "seed must be a whole number of at most"),
    "nothing to pick by": ([*DIGITS, "--keep-best", "--holdout", "0"], "none are held out"),
    "no GPU": ([*DIGITS, "--device", "cuda:9"], "no CUDA GPU"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input(tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("offramp: ")
    assert words in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_path_that_is_not_writable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([*DIGITS, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "cost"])
def test_a_folder_that_is_no_run_or_newer(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"format": 99}))
    assert main([command, str(tmp_path)]) == 2
    assert "newer offramp" in capsys.readouterr().err


def test_damaged_checkpoints_are_a_failure_not_a_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [*DIGITS, "limit=100", "--epochs", "1", "--out", str(tmp_path)]
    assert main(quick) == 0
    (tmp_path / "weights.safetensors").unlink()
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        checkpoint.write_bytes(b"x" * 100)
    assert main(quick) == 1
    assert "Every checkpoint in" in capsys.readouterr().err.splitlines()[-1]


def test_help_has_a_line_for_every_command_and_python_m_is_the_same() -> None:
    """Once tyro listed them in an order without groups, three lines each."""
    done = subprocess.run([sys.executable, "-m", "offramp", "--help"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    place = {name: [n for n, line in enumerate(lines) if re.match(rf"  {name} +[A-Z].*\.$", line)] for name in COMMANDS}
    assert all(len(found) == 1 for found in place.values())
    titles = [lines.index(f"{title}:") for title in ("Train", "Measure", "Promise", "Use", "Study")]
    assert titles == sorted(titles)
    assert titles[2] < place["certify"][0] < titles[3]


def test_a_config_of_something_else_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for command in (["evaluate", str(tmp_path)], ["cost", str(tmp_path)], [*DIGITS, "--out", str(tmp_path)]):
        assert main(command) == 2
        assert "its config.json is not one of offramp" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line_and_a_mistake_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main_with(error: Exception) -> int:
        def fail(arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr("offramp.cli.parse", fail)
        return main([])

    assert main_with(OSError(errno.ENOSPC, "No space left on device", "/full")) == 1
    assert capsys.readouterr().err == "offramp: /full: No space left on device.\n"
    for mistake in (OSError(errno.EBADF, "Bad file descriptor", "/x"), OSError("odd"), RuntimeError("odd")):
        with pytest.raises(type(mistake)):
            main_with(mistake)
    monkeypatch.undo()
    assert main(["bench", "x", "--out", "~nobody_here/bench.json"]) == 2
    assert main(["evaluate", "~nobody_here/run"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_names_that_are_not_utf8_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr("offramp.cli.parse", lambda arguments: SimpleNamespace(main=lambda: print("caf\udce9")))
    assert main([]) == 0
    assert out.buffer.getvalue() == b"caf?\n"  # type: ignore[attr-defined]


def test_the_version_and_a_reader_that_has_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["-V"]) == 0
    assert re.fullmatch(r"(offramp \S+\n){2}", capsys.readouterr().out)
    command = f"{sys.executable} -m offramp names --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_unknown_commands_and_options_are_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([*DIGITS, "--epoch", "3"], []):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    capsys.readouterr()
    assert main(["trian"]) == 2
    assert "'trian'. Did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Which is the docstring under its field: tyro reads it from the source, and says nothing where it finds none."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = " ".join(line.strip(" │|") for line in capsys.readouterr().out.splitlines())
    assert "--" in words
    assert not re.findall(r"--[a-z-]+(?: [A-Z{\[]\S*)* \((?:default|required)", words)
    assert "(default: )" not in words
    assert "None" not in words


@pytest.mark.parametrize("options", [*COMMANDS.values(), DataConfig, TrainConfig])
def test_lines_of_a_help_end_after_a_clause(options: type) -> None:
    """Where tyro breaks every line that a field's docstring breaks, in the middle of a sentence too."""
    for options_of in options.__mro__[:-1]:
        for option in docstring_parser.parse_from_object(options_of).params:
            *lines, _ = (option.description or "").splitlines() or [""]
            assert all(line.endswith((".", ";", ":")) for line in lines), (option.arg_name, lines)


def test_json_is_one_object_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `train`, `predict`, `names`, `example`, `export` and `import` printed was for people only."""
    run = str(tmp_path / "digits")
    images = f"{run}/images"
    for words in (
        ["example", "digits", "--out", run],
        ["example", "--list"],
        ["names"],
        [
            "train",
            "--config",
            run,
            *"--data digits limit=200 --holdout 50 --epochs 1".split(),
            "--out",
            f"{tmp_path}/new",
        ],
        ["predict", run, images],
        ["export", run, "--to", "torch"],
        ["layers", "torchvision/resnet18", "--image-size", "32"],
    ):
        assert main([*words, "--json"]) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict), words


def test_of_several_processes_the_first_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*DIGITS, "limit=100", "--epochs", "1", "--json", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["runs"]
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 0
    assert capsys.readouterr().out == ""


def test_quiet_and_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = [*DIGITS, "limit=100", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*quick, "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["-q", "evaluate", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["evaluate", "nowhere", "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err
