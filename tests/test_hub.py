import json
import shutil
from pathlib import Path

import pytest
import torch

import offramp
from offramp.commands import CertifyOptions, certify
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder

pytest.importorskip("huggingface_hub")
from offramp.hub import Pretrained


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    offramp.shipped.copy("digits", tmp_path / "digits")
    return tmp_path / "digits"


def test_what_is_saved_is_a_run_with_a_card(digits: Path, tmp_path: Path) -> None:
    certify(CertifyOptions(str(digits), risk=0.01, confidence=0.95))
    values = json.loads((digits / "config.json").read_text())
    values["data"]["root"] = "/home/somebody/data"
    (digits / "config.json").write_text(json.dumps(values))
    Pretrained(digits).save_pretrained(tmp_path / "saved", model_card_kwargs={"license": "apache-2.0"})
    again = Pretrained.from_pretrained(tmp_path / "saved")
    some = torch.randn(2, *again.network.image_shape)
    with torch.inference_mode():
        assert torch.equal(again.network(some), offramp.load(digits)(some))
    assert again.policy == offramp.Policy.load(RunFolder(digits).policy)
    assert "somebody" not in "".join(file.read_text() for file in (tmp_path / "saved").glob("*.json"))
    assert not (tmp_path / "saved" / "environment.json").exists()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "license: apache-2.0" in card
    for word in ("3 exits", "trained on digits", "CC BY 4.0", "With 0.95 confidence", "at most 0.01"):
        assert word in card
    exits = json.loads((digits / "evaluation.json").read_text())["exits"]
    assert all(f"{one['top1']:.2f} %" in card for one in exits)
    certify(CertifyOptions(str(tmp_path / "saved"), risk=0.02, confidence=0.95))  # a run like any other


def test_what_is_not_known_is_said(digits: Path, tmp_path: Path) -> None:
    for file in ("evaluation.json", "card.json"):
        (digits / file).unlink()
    Pretrained(digits).save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert all(word in card for word in ("not evaluated", "Nothing is certified", "Not said"))


def test_nothing_is_written_over(digits: Path) -> None:
    before = {file.name: file.read_bytes() for file in digits.glob("*.*")}
    with pytest.raises(UsageError, match="not empty"):
        Pretrained(digits).save_pretrained(digits)
    assert before == {file.name: file.read_bytes() for file in digits.glob("*.*")}


def test_no_code_of_a_strangers_folder_runs(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFFRAMP_ALLOW_CODE")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef network(**_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    values = json.loads((digits / "config.json").read_text())
    values["network"] = {"name": "evil:network", "args": {}}
    # What the mixin would make arguments of:
    values |= {"allow_code": ["evil"], "into": None, "run": "x", "config": {"allow_code": ["evil"]}}
    (digits / "config.json").write_text(json.dumps(values))
    (digits / "pytorch_model.bin").write_bytes(b"pickle")
    (digits / "modeling.py").write_text((tmp_path / "evil.py").read_text())
    with pytest.raises(UsageError, match="allow-code evil"):
        Pretrained.from_pretrained(digits)
    assert not (tmp_path / "ran").exists()


def test_a_name_comes_from_the_hub_without_code(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot(name: str, **settings: object) -> str:
        asked[name] = settings
        return str(shutil.copytree(digits, tmp_path / "cache"))

    monkeypatch.setattr("offramp.hub.snapshot_download", snapshot)
    assert Pretrained.from_pretrained("me/digits", revision="v1").network.num_exits == 3
    assert asked["me/digits"]["revision"] == "v1"
    assert {Path(pattern).suffix for pattern in asked["me/digits"]["allow_patterns"]} == {
        ".json",
        ".jsonl",
        ".safetensors",
    }


@pytest.mark.parametrize("name", ["me/nothing", "no/such/folder"])
def test_what_is_nowhere_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(OfframpError, match=f"{name} is no folder here"):
        Pretrained.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)
