import json
from pathlib import Path

import pytest

from offramp.cli import main

NETWORK = "msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8".split()
TRAIN = ["train", "--data", "digits", "--network", *NETWORK, "--objective", "power-sqrt", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that watched twenty images."""
    out = tmp_path_factory.mktemp("watched") / "run"
    assert main([*TRAIN, "--xray", "20", "--out", str(out)]) == 0
    return out


def test_a_table_and_where_the_page_lies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xray", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "exit" in line)
    for name in ("needed %", "damped %", "reversed %", "mean F[y]", "median γ", "right %"):
        assert name in head
    assert any(line.startswith("Epoch 2, 20 images of digits/train") for line in lines)
    assert any(f"offramp evaluate {run}" in line for line in lines)
    assert lines[-1] == str(run / "xray.html")
    assert (run / "xray.html").is_file()


def test_after_evaluate_the_damping_value_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["xray", str(run)]) == 0
    assert "F[N+1] tells" in capsys.readouterr().out


def test_json_is_one_object_on_standard_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xray", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    values = json.loads(captured.out)
    assert (values["images"], values["epochs"], len(values["exits"])) == (20, [1, 2], 2)
    assert captured.err.splitlines() == [str(run / "xray.html")]


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_there_is_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xray", str(run)]) == 0
    captured = capsys.readouterr()
    assert "needed %" in captured.out
    assert captured.err == "No xray.html: plots need matplotlib: pip install 'offramp[report]'\n"


@pytest.mark.parametrize("number", ["-1", "4000"])
def test_a_number_of_images_that_cannot_be_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--xray", number, "--out", str(tmp_path / "run")]) == 2
    assert "xray" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
