"""`offramp train` as people and scripts meet it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from offramp.cli import main
from offramp.config import Spec
from offramp.data import Inputs, digits
from offramp.evaluation import anytime, record
from offramp.files import load_weights
from offramp.network import rebuild
from offramp.storage import load_tensors

TINY = (
    "--network msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8".split()
)
QUICK = ["train", "--data", "digits", "limit=200", *TINY, "--epochs", "1"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("objective", ["cross-entropy", "dynamic"])
def test_what_scripts_rely_on(tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert main([*QUICK, "--objective", objective, "--seed", "3", "--out", out]) == 0
    assert load_tensors(tmp_path / "run" / "weights.safetensors")[0]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()
    assert main(["evaluate", out, "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    assert len(evaluation["exits"]) == 2
    for exit_ in evaluation["exits"]:
        assert {"top1", "nll", "ece", "operations", "parameters", "damping"} <= exit_.keys()
        assert 0 <= exit_["top1"] <= 100
        assert (exit_["damping"] is None) == (objective == "cross-entropy")
    assert evaluation["mean_top1"] == pytest.approx(sum(e["top1"] for e in evaluation["exits"]) / 2)


def test_several_seeds_in_folders_of_their_own(tmp_path: Path) -> None:
    assert main([*QUICK, "--seeds", "3", "--seed", "5", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed-5", "seed-6", "seed-7"]
    weights = {(tmp_path / f"seed-{seed}" / "weights.safetensors").read_bytes() for seed in (5, 6, 7)}
    assert len(weights) == 3


def test_overwrite_trains_what_a_run_of_its_own_would_and_then_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = [*QUICK, "--out", str(tmp_path / "run")], ["--seed", "4"]
    assert main([*QUICK, *other, "--out", str(tmp_path / "alone")]) == 0
    assert main(first) == 0
    assert main([*first, *other]) == 2
    assert "seed: 0 there, 4 now" in capsys.readouterr().err
    again = [*first, *other, "--overwrite"]
    assert main([*again, "--init", str(tmp_path / "run")]) == 2  # what it would begin with
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert main(again) == 0
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("alone", "run")]
    assert weights[0] == weights[1]
    capsys.readouterr()
    assert main(again) == 0
    assert "is finished; nothing to do" in capsys.readouterr().err


def test_a_finished_run_is_known_without_torch(tmp_path: Path) -> None:
    """Whose import, and the building of network and data, took 3.3 s of processor time to say that all is done."""
    command = [*QUICK, "--out", str(tmp_path / "run")]
    assert main(command) == 0
    program = (
        f"import sys\nfrom offramp.cli import main\nassert main({[*command, '--json']!r}) == 0\n"
        "assert not {'torch', 'numpy', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "is finished; nothing to do" in done.stderr
    assert json.loads(done.stdout)["runs"][0]["last_epoch"]["epoch"] == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_and_leaves_with_the_usual_status(
    tmp_path: Path, number: int, status: int, signalled, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*QUICK, "--epochs", "100000", "--form", "plain", "--out", str(tmp_path / "run")]
    with signalled(number, (tmp_path / "run" / "timing.jsonl").exists), pytest.raises(SystemExit) as stopped:
        main(long)
    assert stopped.value.code == status
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert f"Stopped by {signal.Signals(number).name}; saved after" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_photos_are_prepared_as_the_trained_trunk_expects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They had ImageNet's mean whatever the trunk; what is asked for still wins."""
    timm = pytest.importorskip("timm")
    for number in range(24):
        path = tmp_path / "photos" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 9 * number, 0)).save(path)
    model, weights = timm.create_model("test_resnet"), tmp_path / "weights.safetensors"
    save_file(model.state_dict(), weights)
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    out = str(tmp_path / "run")
    words = ["--data", f"folder:{tmp_path / 'photos'}", "image_size=64", "--init", str(weights), "--epochs", "1"]
    assert main(["train", *words, "--backbone", "timm/test_resnet", "at=layer2", "--freeze-trunk", "--out", out]) == 0
    assert "prepared as those that timm/test_resnet was trained on: mean=(0.5, 0.5, 0.5)" in capsys.readouterr().err
    inputs = Inputs.load(tmp_path / "run" / "input.json")
    assert (inputs.image_shape, inputs.mean, inputs.std) == ((3, 64, 64), (0.5,) * 3, (0.5,) * 3)
    assert main(["evaluate", out, "--json"]) == 0  # from what the run's folder says


def test_tensorboard_writes_its_files(tmp_path: Path) -> None:
    assert main([*QUICK, "--tensorboard", "--out", str(tmp_path)]) == 0
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_best_weights_are_kept_on_request(tmp_path: Path) -> None:
    assert main([*QUICK, "--epochs", "3", "--keep-best", "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: sum(line["search_top1"]))  # the first of equal ones
    network = rebuild(Spec.from_json(json.loads((tmp_path / "config.json").read_text())["network"]))
    load_weights(network, load_tensors(tmp_path / "best.safetensors")[0], tmp_path)
    search = record(network, digits(limit=200).val.search)
    assert [exit_.top1 for exit_ in anytime(search).exits] == pytest.approx(best["search_top1"])


@pytest.mark.parametrize("form", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_training_in_every_form_resumes_to_the_same_bytes(form: str, tmp_path: Path) -> None:
    command = [*QUICK, "--epochs", "2", "--form", form, "--save-every-steps", "1"]
    assert main([*command, "--out", str(tmp_path / "calm")]) == 0
    assert main([*command, "--out", str(tmp_path / "broken")]) == 0
    for name in ("weights.safetensors", "metrics.jsonl"):
        (tmp_path / "broken" / name).unlink()
    newest = sorted((tmp_path / "broken" / "checkpoints").iterdir())[-1]
    newest.unlink()
    assert main([*command, "--out", str(tmp_path / "broken")]) == 0
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_where_the_recipe_is_not_the_papers_a_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CIFAR-10's λ is fifteen times the default, and 5,000 images are held out unless one says otherwise."""
    command = [
        "train",
        "--data",
        "cifar10",
        "--root",
        str(tmp_path),
        "--out",
        f"{tmp_path}/run",
        "--objective",
        "dynamic",
    ]
    main(command)  # no such files there
    said = "The paper's tables on cifar10 have λ 0.075, not 0.005; holdout 0, not 5000.\n"
    assert said in capsys.readouterr().err
    main([*command, "strength=0.075", "--holdout", "0"])
    assert "The paper's tables" not in capsys.readouterr().err
