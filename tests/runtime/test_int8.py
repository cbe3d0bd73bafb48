"""Networks in int8: scales found once, an engine that answers as its logits say, certificates of these answers."""

import dataclasses

import pytest
import torch

import offramp
from offramp import shipped
from offramp.errors import UsageError
from offramp.evaluation import Record, certify
from offramp.evaluation.record import Forward
from offramp.policy import CERTIFICATE, EVERYBODY, Policy
from offramp.runtime import Engine, Form, calibrate
from offramp.runtime.backends import make_program, usual_forms

pytestmark = pytest.mark.usefixtures("operators_once")

BACKENDS = ("openvino", pytest.param("onnxruntime", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def network():
    return offramp.load(shipped.folder("digits"))


@pytest.fixture(scope="module")
def parts():
    return offramp.data.digits(holdout=700)


def images_of(split) -> torch.Tensor:
    return torch.cat([batch.images_BCHW for batch in split.batches()])


@pytest.fixture(scope="module")
def scales(network, parts, cache) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return calibrate(network, images_of(parts.val.search))


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_answers_nearly_as_in_float32(network, parts, scales, backend) -> None:
    program = make_program(network, Form(backend, "int8"))
    assert program.scales == scales
    images, targets_S = images_of(parts.test), torch.cat([batch.targets_B for batch in parts.test.batches()])
    with torch.inference_mode():
        logits_KSC = network.eval()(images)
    in_int8_KSC = program.logits(images)
    assert not torch.allclose(in_int8_KSC, logits_KSC, atol=1e-3)  # it is not float32 under another name
    right, right_int8 = ((x[-1, :, :10].argmax(1) == targets_S).float().mean() for x in (logits_KSC, in_int8_KSC))
    assert right_int8 > right - 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_answers_as_the_logits_in_int8_say(network, parts, scales, backend) -> None:
    images, policy = images_of(parts.val.search)[:200], Policy((0.6, 0.8, EVERYBODY))
    engine = Engine(network, policy, form=Form(backend, "int8"))
    found = engine.agreement(engine(images), engine.program.logits(images), policy)
    assert found.wrong == 0
    assert found.is_rounding(engine.num_exits)


@pytest.mark.slow
def test_one_form_can_be_tuned(network, parts, scales) -> None:
    engine = Engine(network, Policy((0.6, 0.8, EVERYBODY)))
    form = Form("openvino", "int8")
    tuning = engine.tune(images_of(parts.val.search)[:128], batch_sizes=(32,), forms=[form], seconds=0.2, streams=False)
    assert [trial.admitted for trial in tuning.forms] == [True]
    assert engine.program.form == tuning.form == form


def test_a_certificate_is_of_these_scales(network, parts, scales) -> None:
    form = Form("openvino", "int8")
    program = make_program(network, form)

    def record(split) -> Record:
        return offramp.evaluation.record(network, split, forward=Forward("int8", program.logits))

    policy = certify(record(parts.val.search), record(parts.val.certify), offramp.cost(network), risk=0.03)
    described = {**policy.found[CERTIFICATE], "form": program.answers}
    policy = dataclasses.replace(policy, found={**policy.found, CERTIFICATE: described})
    assert Engine(network, policy).program.form == form
    with pytest.raises(UsageError, match="certificate is of answers in openvino, int8"):
        Engine(network, policy, form=Form())
    other = dataclasses.replace(policy, found={CERTIFICATE: {**described, "form": "openvino, int8, 0123456789ab"}})
    with pytest.raises(UsageError, match=f"the scales found on this machine are {scales}"):
        Engine(network, other)


def test_other_images_give_other_scales_and_programs_of_before_keep_theirs(network, parts, scales) -> None:
    images = images_of(parts.val.search)
    before = make_program(network, Form("openvino", "int8"))
    logits_KBC = before.logits(images[:8])
    assert calibrate(network, 0.5 * images) != scales
    after = make_program(network, Form("openvino", "int8"))
    assert not torch.equal(after.logits(images[:8]), logits_KBC)
    assert torch.equal(before.logits(images[:8]), logits_KBC)
    assert calibrate(network, images) == scales  # as the first time


def test_what_is_not_a_number_stays_so(network, parts, scales) -> None:
    images = images_of(parts.val.search)[:3].clone()
    images[1, 0, 3, 3] = torch.nan
    logits_KBC = make_program(network, Form("openvino", "int8")).logits(images)
    assert logits_KBC.isnan().all(2).tolist() == [[False, True, False]] * network.num_exits


def test_without_scales_a_line_says_how_they_are_found(network, scales, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"int8 needs scales.*calibrate\(network, images\)"):
        Engine(network, Policy((0.6, 0.8, EVERYBODY)), form=Form("openvino", "int8"))
    with pytest.raises(UsageError, match="a few hundred"):
        calibrate(network, torch.zeros(0, 1, 16, 16))


def test_it_is_taken_on_request_alone() -> None:
    assert all(form.precision != "int8" for form in usual_forms(torch.device("cpu"), bf16=True))
    with pytest.raises(UsageError, match="torch does not compute in int8; openvino and onnxruntime have it"):
        Form("torch", "int8")
