"""The page of a record of gradients. K exits, W watched images."""

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_png

from offramp import data
from offramp.cli import main
from offramp.commands import EvaluateOptions, XrayOptions, evaluate, xray
from offramp.data import Parts
from offramp.errors import UsageError
from offramp.files import RunFolder
from offramp.files.xray import Xray
from offramp.results.xray import SHOWN
from offramp.storage import save_tensors

W, E = 30, 5


class Strict(HTMLParser):
    """Tags that open and close in order, pictures, texts, and everything a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.pictures = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        self.pictures += tag == "img"
        for name, value in attrs:
            inside = (value or "").startswith(("#", "data:image/png;base64,"))
            if name in ("src", "href", "xlink:href", "data") and not inside:
                self.fetched.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def record(parts: Parts, K: int = 3, *, damped: bool = True, epochs: int = E) -> Xray:
    """Random, but for three images: the first is learned by the first exit at once and by the last never, the second
    the other way round, the third by none."""
    ce_EKW = torch.rand(epochs, K, W).pow(4) * 3
    gamma_EKW = torch.full_like(ce_EKW, 0.3)
    right_EKW = torch.rand(epochs, K, W) < 0.9
    right_EKW[:, :, :3] = False
    right_EKW[-1, :, :2] = True
    right_EKW[:, 0, 0] = right_EKW[:, -1, 1] = True
    right_EKW[:, -1, 0] = right_EKW[:, 0, 1] = K == 1
    push_EKW = 1 - (1 + 0.3 * damped) * (-ce_EKW).exp()
    return Xray(
        indices_W=torch.from_numpy(parts.train.indices_S)[:W],
        targets_W=parts.train.labels_S[:W],
        epochs_E=torch.arange(epochs) + 1,
        ce_EKW=ce_EKW.half(),
        push_EKW=push_EKW.half(),
        right_EKW=right_EKW,
        gamma_EKW=gamma_EKW.half() if damped else None,
        weight_EKW=torch.ones_like(ce_EKW).half() if damped else None,
        class_names=parts.train.class_names,
        split=parts.train.name,
    )


@pytest.fixture
def watched(make_run: Callable[..., Path], tiny_parts: Parts) -> Path:
    """A finished run that watched images; its test set is not recorded."""
    run = make_run()
    record(tiny_parts).save(RunFolder(run).xray)
    return run


def page_of(run: Path) -> str:
    return (run / "xray.html").read_text()


def test_the_page_parses_loads_nothing_and_shows_every_plot(watched: Path):
    evaluate(EvaluateOptions(watched), page=False)
    report = xray(XrayOptions(watched))
    assert report.written == (watched / "xray.html",)
    page = Strict(page_of(watched))
    assert (page.open, page.fetched) == ([], [])
    labels = re.findall('aria-label="([^"]*)"', page_of(watched))
    assert labels == ["shares", "sources", "coefficients", "learned", "errors"]
    shown = len(report.shallow_first) + len(report.deep_first) + len(report.last)
    assert page.pictures == shown
    ids = re.findall(' id="([^"]*)"', page_of(watched))
    assert len(ids) == len(set(ids))
    before = page_of(watched)
    xray(XrayOptions(watched))
    assert page_of(watched) == before


@pytest.mark.usefixtures("without_matplotlib")
def test_images_are_picked_by_who_learned_them_first(watched: Path, tiny_parts: Parts):
    report = xray(XrayOptions(watched))
    first, second, third = report.record.indices_W[:3].tolist()
    assert report.shallow_first[0].index == first
    assert report.shallow_first[0].learned == (1, E, 0)
    assert report.deep_first[0].index == second
    assert report.deep_first[0].learned == (0, E, 1)
    assert report.last[0].index == third
    assert report.last[0].learned == (0, 0, 0)
    labels = dict(zip(tiny_parts.train.indices_S.tolist(), tiny_parts.train.labels_S.tolist(), strict=True))
    learned = dict(zip(report.record.indices_W.tolist(), report.record.learned().T.tolist(), strict=True))
    for row in (report.shallow_first, report.deep_first, report.last):
        assert len(row) <= SHOWN
        for one in row:
            assert one.target == labels[one.index]
            assert list(one.learned) == learned[one.index]
    leads = [[(one.learned[-1] or E + 1) - (one.learned[0] or E + 1) for one in row] for row in
             (report.shallow_first, report.deep_first)]  # fmt: skip
    assert leads[0] == sorted(leads[0], reverse=True)
    assert leads[1] == sorted(leads[1])
    assert min(leads[0]) > 0 > max(leads[1])


@pytest.mark.usefixtures("undrawn")
def test_each_picture_is_of_its_own_image(watched: Path, tiny_parts: Parts):
    report = xray(XrayOptions(watched))
    tiles = re.findall(r'<img src="([^"]*)"[^>]*alt="training image (\d+)', page_of(watched))
    picked = [*report.shallow_first, *report.deep_first, *report.last]
    assert [int(index) for _, index in tiles] == [one.index for one in picked]
    for address, index in tiles:
        encoded = bytearray(base64.b64decode(address.removeprefix("data:image/png;base64,")))
        shown = decode_png(torch.frombuffer(encoded, dtype=torch.uint8))
        assert torch.equal(shown, tiny_parts.train.pixels_SCHW[int(index)])


@pytest.mark.usefixtures("without_matplotlib")
def test_the_table_is_of_the_last_epoch(watched: Path):
    report = xray(XrayOptions(watched))
    last = {name: getattr(report.record, name)[-1] for name in ("ce_EKW", "push_EKW", "right_EKW")}
    for k, exit in enumerate(report.exits):
        reversed_W = last["push_EKW"][k] < 0
        assert exit.shares[2] == pytest.approx(reversed_W.double().mean().item())
        assert sum(exit.shares) == pytest.approx(1)
        assert exit.true == pytest.approx((-last["ce_EKW"][k].float()).exp().mean().item())
        assert exit.gamma == pytest.approx(0.3, rel=1e-3)
        assert exit.weight == 1.0
        assert exit.learned == pytest.approx(last["right_EKW"][k].double().mean().item())
        right_since = [epoch for epoch in report.record.learned()[k].tolist() if epoch]
        assert exit.learned_by == sorted(right_since)[(len(right_since) - 1) // 2]


@pytest.mark.usefixtures("without_matplotlib")
def test_scripts_get_shares_over_time(watched: Path):
    values = json.loads(json.dumps(xray(XrayOptions(watched)).to_json()))
    assert values["epochs"] == [1, 2, 3, 4, 5]
    assert values["images"] == W
    for e in range(E):
        for k in range(3):
            assert sum(values["shares"][state][e][k] for state in ("needed", "damped", "reversed")) == pytest.approx(1)
    assert values["exits"][1]["shares"][0] == values["shares"]["needed"][-1][1]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("K", "epochs"), [(1, 1), (2, 3), (7, 1)])
def test_any_number_of_exits_and_epochs_has_a_page(
    make_run: Callable[..., Path], tiny_parts: Parts, K: int, epochs: int
):
    run = make_run(exits=K)
    record(tiny_parts, K, epochs=epochs).save(RunFolder(run).xray)
    report = xray(XrayOptions(run))
    assert len(report.exits) == K
    assert Strict(page_of(run)).open == []
    if K == 1:
        assert (report.shallow_first, report.deep_first) == ((), ())
    if K == 2:
        assert "Learned by exit 1 first, by exit 2 later" in page_of(run)


def test_a_long_run_is_shown_some_epochs_a_step(make_run: Callable[..., Path], tiny_parts: Parts):
    sizes = []
    for name, epochs in (("short", 100), ("long", 201)):
        run = make_run(name)
        record(tiny_parts, epochs=epochs).save(RunFolder(run).xray)
        xray(XrayOptions(run))
        assert ("each step the mean of 3 epochs" in page_of(run)) == (name == "long")
        sizes.append(len(page_of(run)))
    assert sizes[1] < 1.3 * sizes[0]


@pytest.mark.usefixtures("undrawn")
def test_cross_entropy_has_neither_coefficients_nor_a_damping_value(make_run: Callable[..., Path], tiny_parts: Parts):
    run = make_run(damping=False, objective={"name": "offramp.objectives.cross_entropy:CrossEntropy", "args": {}})
    record(tiny_parts, damped=False).save(RunFolder(run).xray)
    evaluate(EvaluateOptions(run), page=False)
    report = xray(XrayOptions(run))
    assert report.exits[0].gamma is None
    assert report.no_error_detection == "The network has no damping neuron."
    assert report.exits[0].shares[2] == 0
    assert "coefficients" not in re.findall('aria-label="([^"]*)"', page_of(run))


@pytest.mark.usefixtures("without_matplotlib")
def test_a_run_that_wrote_nothing_down_says_how(make_run: Callable[..., Path]):
    with pytest.raises(UsageError, match=r"wrote nothing down of its gradients\. Train with --xray 256") as error:
        xray(XrayOptions(make_run()))
    assert "\n" not in str(error.value)
    begun = make_run("begun", training={"epochs": 4, "seed": 0, "xray": 20})
    with pytest.raises(UsageError, match="has not finished an epoch"):
        xray(XrayOptions(begun))


@pytest.mark.usefixtures("without_matplotlib")
def test_the_damping_value_needs_a_record_of_these_weights(watched: Path):
    how = f"offramp evaluate {watched}"
    assert xray(XrayOptions(watched)).no_error_detection == f"The test set has not been recorded. That does: {how}"
    evaluate(EvaluateOptions(watched), page=False)
    assert len(xray(XrayOptions(watched)).error_detection) == 3
    folder = RunFolder(watched)
    content = bytearray((folder.records / "test.safetensors").read_bytes())
    content[-1] ^= 1
    (folder.records / "test.safetensors").write_bytes(content)
    assert xray(XrayOptions(watched)).no_error_detection == f"The record of the test set is damaged. A new one: {how}"
    evaluate(EvaluateOptions(watched), page=False)
    save_tensors(folder.weights, {"other": torch.zeros(2)})
    assert (
        xray(XrayOptions(watched)).no_error_detection
        == f"The record of the test set is of other weights. A new one: {how}"
    )
    folder.weights.unlink()
    assert xray(XrayOptions(watched)).no_error_detection == f"The run is not finished. When it is: {how}"


@pytest.mark.usefixtures("undrawn")
def test_without_the_data_there_is_a_page_without_pictures(make_run: Callable[..., Path], tiny_parts: Parts):
    run = make_run(data=None)
    record(tiny_parts).save(RunFolder(run).xray)
    xray(XrayOptions(run))
    assert Strict(page_of(run)).pictures == 0
    assert "There are no pictures:" in page_of(run)
    assert "data of your own" in page_of(run)
    report = xray(XrayOptions(run), parts=tiny_parts)
    assert Strict(page_of(run)).pictures > 0
    other = data.arrays(tiny_parts.train.pixels_SCHW.numpy() // 2, tiny_parts.train.pixels_SCHW[:, 0, 0, 0].numpy() % 4)
    config = json.loads((run / "config.json").read_text())
    images = {"train": tiny_parts.train.fingerprint(), "search": None}
    (run / "config.json").write_text(json.dumps({**config, "images": images}))
    xray(XrayOptions(run), parts=other)
    assert "are not those that" in page_of(run)
    assert dataclasses.astuple(report.exits[0]) == dataclasses.astuple(xray(XrayOptions(run)).exits[0])


@pytest.mark.usefixtures("undrawn")
def test_what_a_rule_does_afterwards_is_said_not_to_be_seen(make_run: Callable[..., Path], tiny_parts: Parts):
    for name, rule in (("plain", "standard:Standard"), ("cut", "dfs:DFS")):
        run = make_run(name, rule={"name": f"offramp.rules.{rule}", "args": {}})
        record(tiny_parts).save(RunFolder(run).xray)
        xray(XrayOptions(run))
        assert ("What the rule does with gradients" in page_of(run)) == (name == "cut")


@pytest.mark.usefixtures("undrawn")
def test_names_of_classes_are_no_html_and_what_is_missing_is_said(watched: Path):
    xray(XrayOptions(watched))
    assert f"That does: offramp evaluate {watched}" in page_of(watched)
    assert "<b>&lt;1&gt;</b>" in page_of(watched) or "<b>&lt;0&gt;</b>" in page_of(watched)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_there_are_values_and_no_page(watched: Path):
    report = xray(XrayOptions(watched))
    assert report.written == ()
    assert len(report.exits) == 3
    assert not (watched / "xray.html").exists()


# -- the command -------------------------------------------------------------------------------------------------------

NETWORK = "msdnet exits=2 channels=4 growth=2 growth_factors=(1,2) bottleneck_factors=(1,2) head_channels=8".split()
TRAIN = ["train", "--data", "digits", "limit=400", "--network", *NETWORK, "--objective", "power-sqrt", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that watched twenty images."""
    out = tmp_path_factory.mktemp("watched") / "run"
    assert main([*TRAIN, "--xray", "20", "--out", str(out)]) == 0
    return out


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_after_evaluate_the_damping_value_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["xray", str(run)]) == 0
    assert "F[N+1] tells" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["-1", "4000"])
def test_a_number_of_images_that_cannot_be_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--xray", number, "--out", str(tmp_path / "run")]) == 2
    assert "xray" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
