"""`offramp example`."""

import subprocess
import sys
from pathlib import Path

import pytest

from offramp import shipped
from offramp.cli import COMMANDS, main
from offramp.commands.example import next_commands
from offramp.data import archives, fashion
from offramp.data.garment_subset import COUNTS
from offramp.evaluation import Certificate
from offramp.policy import Policy
from offramp.terminal import with_error


def test_the_example_is_copied_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["example"]) == 0
    out, card = capsys.readouterr().out, shipped.card("fashion-mnist")
    assert (tmp_path / "runs" / "fashion-mnist" / "weights.safetensors").is_file()
    assert card.command in out
    assert card.data["licence"] in out
    for exit in card.evaluation["exits"]:
        assert with_error(exit["top1"], exit["top1_se"], card.evaluation["images"]) in out
    assert "Copied to runs/fashion-mnist." in out
    commands = [line.strip() for line in out.partition("Next:\n")[2].splitlines()]
    assert commands == next_commands(Path("runs/fashion-mnist"))
    assert {command.split()[1] for command in commands} <= COMMANDS.keys()
    assert main(["example", "fashion-mnist"]) == 0
    assert "runs/fashion-mnist holds it already; nothing to do." in capsys.readouterr().out


@pytest.mark.slow  # quickly, without a download being forbidden: README.md in tests/docs
def test_the_copy_is_certified_evaluated_and_used_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "no-package")
    monkeypatch.setattr(archives, "download", None)
    run = str(tmp_path / "run")
    for words in (["example", "--out", run], ["certify", run], ["evaluate", run, "--train-limit", "0"]):
        assert main(words) == 0
    found = Certificate.of(Policy.load(tmp_path / "run" / "policy.json"))
    assert found is not None
    assert (found.promise.risk, found.images) == (0.01, COUNTS["certify"])
    assert "certified at most 1 at 95 %" in " ".join(capsys.readouterr().out.split())
    assert main(["predict", run, f"{run}/images"]) == 0


def test_the_list_has_every_network_and_copies_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["example", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped.names()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    for arguments, words in (
        (["digitz", "--out", str(tmp_path / "out")], "example 'digitz' is unknown. Did you mean digits?"),
        (["--out", str(tmp_path / "mine")], "is not empty and is no whole copy of the example fashion-mnist"),
    ):
        assert main(["example", *arguments]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert len(output.err.splitlines()) == 1
        assert words in output.err
    assert not (tmp_path / "out").exists()


def test_a_place_with_a_space_gives_commands_a_shell_understands() -> None:
    assert next_commands(Path("my runs/a"))[0] == "offramp certify 'my runs/a'"
    assert next_commands(Path("my runs/a"))[2] == "offramp predict 'my runs/a' 'my runs/a/images'"


def test_it_needs_no_torch(tmp_path: Path) -> None:
    """Whose import alone takes longer than a second of processor time; the command took 2.7 s."""
    words = ["example", "digits", "--out", str(tmp_path / "run")]
    program = (
        f"import sys\nfrom offramp.cli import main\nassert main({words!r}) == 0\n"
        "assert not {'torch', 'numpy', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
