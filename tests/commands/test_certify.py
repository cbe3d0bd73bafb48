import json
from pathlib import Path

import pytest
import torch

from offramp.cli import main
from offramp.commands import CertifyOptions, certify
from offramp.costs import cost
from offramp.errors import UsageError
from offramp.evaluation import Certificate, Ladder, Record, certify_ladder
from offramp.evaluation.bounds import binomial_p_value
from offramp.evaluation.certify import certify as certify_records
from offramp.policy import Policy
from offramp.runtime import Engine, Form
from offramp.runtime.backends import make_program
from offramp.training import provenance

PROMISE = ["--risk", "0.1", "--confidence", "0.9"]


def test_a_run_gets_a_policy_with_its_certificate(make_trained, tiny, parts, tmp_path, capsys):
    run = make_trained()
    assert main(["certify", run, *PROMISE]) == 0
    out = " ".join(capsys.readouterr().out.split())
    policy = Policy.load(tmp_path / "run" / "policy.json")
    certificate = Certificate.of(policy)
    assert certificate is not None
    assert binomial_p_value(certificate.lost, 150, 0.1) <= 0.1
    assert (certificate.images, certificate.split.rpartition("/")[2]) == (150, "certify")
    assert certificate.fingerprint == parts.val.certify.fingerprint()
    assert str(certificate) in out
    assert out.endswith("policy.json")
    assert "last exit on them %" in out
    assert "00000000.0" not in out  # who leaves from -1e8 is "all"
    # The same as from Python, on the logits that were kept.
    records = [Record.load(tmp_path / "run" / "records" / f"{part}.safetensors") for part in ("search", "certify")]
    assert certify_records(*records, cost(tiny), risk=0.1, confidence=0.9) == policy


def test_json_is_one_object_and_agrees_with_the_file(make_trained, tiny, tmp_path, capsys):
    file = tmp_path / "mine.json"
    assert main(["certify", make_trained(), *PROMISE, "--json", "--loss", "drop", "--out", str(file)]) == 0
    captured = capsys.readouterr()
    values = json.loads(captured.out)
    assert captured.err.splitlines() == [str(file)]
    assert values["written"] == str(file)
    assert values["certificate"] == json.loads(file.read_text())["found"]["certificate"]
    assert values["certificate"]["promise"] == {"risk": 0.1, "confidence": 0.9, "loss": "drop"}
    assert sum(exit["share"] for exit in values["exits"]) == pytest.approx(1)
    counts = [count.operations for count in cost(tiny).exits]
    spent = sum(count * exit["share"] for count, exit in zip(counts, values["exits"], strict=True))
    assert values["operations"] == pytest.approx(spent)
    assert values["operations"] < values["full_operations"] == counts[-1]
    # The accuracy lost, put together from the exits, is the certificate's losses less its gains.
    drop = sum(e["share"] * (e["full_top1"] - e["top1"]) / 100 for e in values["exits"] if e["top1"] is not None)
    certificate = values["certificate"]
    assert drop == pytest.approx((certificate["lost"] - certificate["gained"]) / 150)


def test_options_reach_the_policy(make_trained, tmp_path):
    run = make_trained()
    options = ["--per-class", "--measure", "margin", "--batch-size", "7"]
    assert main(["certify", run, "--risk", "0.2", "--confidence", "0.8", *options]) == 0
    policy = Policy.load(tmp_path / "run" / "policy.json")
    assert policy.measure.name == "margin"
    assert Certificate.of(policy).per_class is True


@pytest.mark.parametrize(
    ("settings", "arguments", "status", "says"),
    [
        ({}, [], 2, "Nothing can be certified with 150 images, at least 299 are needed"),
        ({}, ["--risk", "2"], 2, "risk must lie between 0 and 1"),
        ({}, ["--loss", "early-error", "--risk", "0.021", "--confidence", "0.95"], 1, "policies that let images leave"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_one_line(
    settings, arguments, status, says, make_trained, tmp_path, capsys
):
    assert main(["certify", make_trained(**settings), *arguments]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run" / "policy.json").exists()


def test_another_certificate_on_the_same_images_is_said_and_counted(make_trained, tmp_path, capsys):
    run = make_trained()
    file = tmp_path / "run" / "policy.json"

    def told(*arguments: str) -> tuple[int, str]:
        assert main(["certify", run, *arguments]) == 0
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == (1 if captured.err else 0)
        return Certificate.of(Policy.load(file)).earlier, captured.err

    assert told(*PROMISE) == told(*PROMISE) == (0, "")  # the same once more
    earlier, said = told("--risk", "0.12", "--confidence", "0.9")
    assert earlier == 1
    assert "this is certificate 2 at least" in said
    earlier, said = told("--risk", "0.15", "--confidence", "0.9")
    assert earlier == 2
    assert "here by 3" in said
    assert "made before with the same images: at least 2." in str(Certificate.of(Policy.load(file)))
    file.write_text(file.read_text().replace('"earlier": 2', '"earlier": "2"'))
    assert told(*PROMISE) == (0, "")  # what is damaged tells nothing


LADDER = ["--ladder", "10, 20,40", "--confidence", "0.9"]


def test_a_run_gets_a_ladder_beside_its_policy(make_trained, tiny, tmp_path, capsys):
    run = make_trained()
    assert main(["certify", run, *LADDER]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.endswith("ladder.json")
    ladder = Ladder.load(tmp_path / "run" / "ladder.json")
    records = [Record.load(tmp_path / "run" / "records" / f"{part}.safetensors") for part in ("search", "certify")]
    assert certify_ladder(*records, cost(tiny), risks=(0.1, 0.2, 0.4), confidence=0.9) == ladder
    assert not (tmp_path / "run" / "policy.json").exists()
    assert "With 0.9 confidence no rung's risk is above its own: all at once" in out
    for risk, certificate in zip(ladder.risks, ladder.certificates, strict=True):
        assert f"{100 * risk:g} %" in out
        assert f"{certificate.disagreement.differing} of {certificate.disagreement.early}" in out
    for left in ladder.left_out:
        assert " ".join(left.why.split()) in out


def test_a_ladder_as_json_agrees_with_its_file(make_trained, tmp_path, capsys):
    file = tmp_path / "mine.json"
    assert main(["certify", make_trained(), *LADDER, "--json", "--loss", "drop", "--out", str(file)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [str(file)]
    values, ladder = json.loads(captured.out), Ladder.load(file)
    assert [rung["certificate"]["promise"]["risk"] for rung in values["rungs"]] == list(ladder.risks)
    assert [rung["policy"]["thresholds"] for rung in values["rungs"]] == [list(p.thresholds) for p in ladder.rungs]
    operations = [rung["operations"] for rung in values["rungs"]]
    assert operations == sorted(operations, reverse=True)
    assert (values["confidence"], values["written"]) == (0.9, str(file))
    assert len(values["rungs"]) + len(values["left_out"]) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ladder", "1,x"], "risks in percent with commas between, such as 0.5,1,2,5, not '1,x'"),
        (["--ladder", "5,2"], "The risks of a ladder rise from rung to rung, not 0.05, 0.02."),
        (["--ladder", "5,100"], "The risk of a rung lies between 0 and 1 (0 and 100 %), both excluded, not 1."),
        (["--ladder", "5", "--risk", "0.1"], "Give one risk or a ladder of risks, not both."),
        (["--ladder", "0.1,0.2"], "Nothing can be certified with 150 images"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused_in_one_line(arguments, says, make_trained, tmp_path, capsys):
    assert main(["certify", make_trained(), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run" / "ladder.json").exists()


def test_a_ladder_is_no_policy(make_trained, capsys):
    run = make_trained()
    assert main(["certify", run, *LADDER]) == 0
    capsys.readouterr()
    for command in (["bench", run], ["export", run, "--to", "onnx"]):
        assert main([*command, "--policy", f"{run}/ladder.json"]) == 2
        assert "ladder.json is a ladder of policies, for `offramp serve`" in capsys.readouterr().err
    with pytest.raises(UsageError, match="call certify_ladder"):
        certify(CertifyOptions(run, ladder="1,2"))


def test_a_ladder_counts_as_one_certificate(make_trained, tmp_path, capsys):
    """Its rungs divide the doubt already; the same ladder once more is no other."""
    run = make_trained()

    def earlier(*arguments: str) -> set[int]:
        assert main(["certify", run, *arguments]) == 0
        if "--ladder" in arguments:
            return {c.earlier for c in Ladder.load(tmp_path / "run" / "ladder.json").certificates}
        return {Certificate.of(Policy.load(tmp_path / "run" / "policy.json")).earlier}

    assert earlier(*LADDER) == earlier(*LADDER) == {0}
    assert earlier(*PROMISE) == {1}
    assert earlier("--ladder", "20,50", "--confidence", "0.9") == {2}
    assert "this is certificate 3 at least" in capsys.readouterr().err


def ancestor(make_trained, holdout: int) -> dict:
    """What `origin.json` would say of a run on the same data that held out so many images."""
    (given, *_) = provenance.ancestor("init", Path(make_trained(holdout)))
    return {**given.to_json(), "division": {"training_images": 720, "limit": None, "holdout": holdout, "split_seed": 0}}


def test_images_that_an_ancestor_was_trained_on_certify_nothing(make_trained, tmp_path, capsys):
    before = {holdout: ancestor(make_trained, holdout) for holdout in (0, 100, 400)}
    run = make_trained()
    origin = tmp_path / "run" / "origin.json"
    for holdout, shared in ((0, 150), (100, 50)):
        origin.write_text(json.dumps({"ancestors": [before[400], before[holdout]]}))
        assert main(["certify", run, *PROMISE]) == 2
        said = capsys.readouterr().err
        assert f"the run run (init), which was trained on {shared} of the 150 images" in said
        assert len(said.splitlines()) == 1
    origin.write_text(json.dumps({"ancestors": [before[400]], "init": {"file": "run/weights.safetensors"}}))
    assert main(["certify", run, *PROMISE]) == 0
    assert Certificate.of(Policy.load(tmp_path / "run" / "policy.json")).unknown == ()
    origin.write_text('{"ancestors": 5}')
    assert main(["certify", run, *PROMISE]) == 1
    assert "origin.json is damaged" in capsys.readouterr().err


def test_of_foreign_weights_the_certificate_says_that_it_cannot_be_known(make_trained, tmp_path, capsys):
    run = make_trained(rule={"name": "one-for-all", "args": {"teacher": "runs/old"}})
    (tmp_path / "run" / "origin.json").write_text(json.dumps({"model": "timm/resnet18", "weights": "hub"}))
    assert main(["certify", run, *PROMISE]) == 0
    said = "Not known: whether these images were among those that trained timm/resnet18 (model), old (teacher)."
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("torch", "bf16"),
        ("openvino", "float32"),
        pytest.param("openvino", "bf16", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
        pytest.param("onnxruntime", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_certificate_is_of_what_runs(backend, precision, make_trained, tiny, parts, tmp_path, monkeypatch, capsys):
    """Found and tested on the answers of the form that runs; others are refused, which once was bf16 as a whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, form = make_trained(), Form(backend, precision)
    assert main(["certify", run, *PROMISE, "--backend", backend, "--precision", precision]) == 0
    policy = Policy.load(tmp_path / "run" / "policy.json")
    records = [
        Record.load(tmp_path / "run" / "records" / f"{part}-{backend}-{precision}.safetensors")
        for part in ("search", "certify")
    ]
    images = torch.cat([batch.images_BCHW for batch in parts.val.certify.batches()])
    close = 1e-5 if precision == "float32" else 1e-2  # other numbers of rows at a time
    wanted = make_program(tiny, form).logits(images).float()
    torch.testing.assert_close(records[1].logits_KSC, wanted, rtol=close, atol=close)
    found = certify_records(*records, cost(tiny), risk=0.1, confidence=0.9)
    assert (found.thresholds, found.measure) == (policy.thresholds, policy.measure)
    certificate = Certificate.of(policy)
    assert certificate is not None
    out = capsys.readouterr().out
    if precision == "float32":
        assert certificate.form == "float32"
        Engine(tiny, policy)
        return
    answers = make_program(tiny, form).answers
    assert answers.startswith(str(form))
    assert certificate.form == answers
    assert f"It is of what {answers} answers" in " ".join(out.split())
    engine = Engine(tiny, policy)
    assert engine.program.form == form
    assert engine.tune(images, batch_sizes=(8,), seconds=0.1, streams=False).form == form
    for other in (Form(), Form("openvino")):
        with pytest.raises(UsageError, match=f"certificate is of answers in {answers}, and {other} moves some"):
            Engine(tiny, policy, form=other)
    assert main(["export", run, "--to", "onnx"]) == 2
    assert f"certificate is of answers in {answers}, and the file computes in float32" in capsys.readouterr().err
