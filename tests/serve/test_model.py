"""The shipped run, opened as it is served."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import offramp
from offramp.errors import UsageError
from offramp.evaluation import Certificate, Ladder, Promise
from offramp.files import RunFolder, load
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.runtime import Engine, Form, Plan
from offramp.runtime.choice import TimeTable
from offramp.runtime.timing import conditions
from offramp.runtime.tuning import Tuning, described
from offramp.serve.model import Model, open_model
from offramp.storage import weights_hash

SHIPPED = Path(offramp.__file__).parent / "shipped" / "digits"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "run", ignore=shutil.ignore_patterns("images"))
    return tmp_path / "run"


def opened(run: Path, **more: object) -> Model:
    return open_model(run, **{"backend": "torch", "chunk": 2, **more})


def num_exits(run: Path) -> int:
    return load(run).num_exits


def policy_at(run: Path, threshold: float, **more: object) -> Policy:
    return Policy((*[threshold] * (num_exits(run) - 1), EVERYBODY), **more)


def test_without_a_policy_the_last_exit_answers(run) -> None:
    model = opened(run)
    last = num_exits(run) - 1
    assert model.segments == ((0, last),)
    assert model.served.ladder == (policy_at(run, NOBODY),)
    assert model.served.promises == (None,)
    assert model.served.name == "run"
    assert model.inputs is not None
    assert model.served.class_names == model.inputs.class_names
    assert model.served.image_shape == model.inputs.image_shape


def test_the_runs_policy_is_followed_and_costs_are_shares_of_the_whole(run) -> None:
    policy_at(run, 0.9).save(run / "policy.json")
    model = opened(run)
    engine = Engine(load(run), policy_at(run, 0.9))
    assert model.served.ladder == (policy_at(run, 0.9),)
    assert model.segments == engine.segments(engine.stream_plan)
    spent = engine.operations(image_shape=model.served.image_shape)
    assert model.served.operations_K == pytest.approx([one / spent[-1] for one in spent])
    other = opened(run, policy=policy_at(run, 0.8))
    assert other.served.fingerprint != model.served.fingerprint
    assert opened(run).served.fingerprint == model.served.fingerprint


def test_a_ladder_comes_before_a_policy_and_opens_every_exit_that_any_rung_has(run) -> None:
    policy_at(run, 0.9).save(run / "policy.json")
    network = load(run)
    weights, exits = weights_hash(network.state_dict()), network.num_exits
    promises = [Promise(risk, 0.975) for risk in (0.01, 0.02)]
    rungs = [
        Certificate(promise, False, "", "", 9, 9, 0, 0, 1, "x/certify", "f", weights, together=0.95).on(
            policy_at(run, threshold, network=weights)
        )
        for promise, threshold in zip(promises, (NOBODY, 0.7), strict=True)
    ]
    Ladder(tuple(rungs), 0.95).save(run / "ladder.json")
    model = opened(run)
    assert model.served.ladder == tuple(rungs)
    assert model.segments == tuple((k, k) for k in range(exits))
    assert opened(run, policy=run / "policy.json").served.ladder == (policy_at(run, 0.9),)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_only_the_numbers_of_rows_that_were_warmed_up_are_run(run, number) -> None:
    model = opened(run, chunk=3)
    assert model.plan.rows(number) in {1, 2, 3}
    assert model.chunk == 3


def test_a_guard_watches_each_rung(run) -> None:
    seen: list[tuple[Policy, ...]] = []

    def guards(ladder: tuple[Policy, ...]) -> list[None]:
        seen.append(ladder)
        return [None]

    assert opened(run, guards=guards).guards == (None,)
    assert seen == [(policy_at(run, NOBODY),)]


def test_what_bench_found_here_is_adopted(run) -> None:
    policy = policy_at(run, 0.9)
    policy.save(run / "policy.json")
    network, asks = load(run), (num_exits(run) - 1,)
    tuning = Tuning(
        form=Form(),
        plans={1: Plan()},
        stream=Plan(asks=asks),
        gains={},
        chunks={"1": None},
        exit_ms={},
        table=TimeTable((1,), (0.0,), (), (), (), (0.0,), (), ()),
        forms=(),
        conditions=conditions(torch.device("cpu")),
        weights=weights_hash(network.state_dict()),
        policy=described(policy),
    )
    content = tuning.to_json()
    (run / "bench.json").write_text(json.dumps({"tuning": content}))
    assert opened(run).segments == ((0, asks[0]),)
    assert opened(run, policy=policy_at(run, 0.8)).segments != ((0, asks[0]),)
    content["conditions"]["threads"] = 99
    (run / "bench.json").write_text(json.dumps({"tuning": content}))
    model = opened(run)
    assert len(model.segments) == num_exits(run)
    assert any("tuned for 99" in note for note in model.notes)


def test_a_certificates_own_form_is_what_serves(run, monkeypatch) -> None:
    """No other may: it moves what the certificate is of."""
    policy_at(run, 0.9).save(run / "policy.json")
    monkeypatch.setattr(Policy, "certified_form", property(lambda policy: "torch, bf16"))
    assert open_model(run, chunk=1).program.form == Form("torch", "bf16")
    with pytest.raises(UsageError, match="certificate"):
        open_model(run, backend="onnxruntime", chunk=1)


def test_a_backend_that_cannot_run_the_network_is_passed_over_and_named(run, monkeypatch) -> None:
    def fails(network, form, device):
        raise UsageError("no such processor.")

    monkeypatch.setitem(offramp.runtime.backends.PROGRAMS, "openvino", fails)
    monkeypatch.setitem(offramp.runtime.backends.PROGRAMS, "onnxruntime", fails)
    monkeypatch.setattr(offramp.runtime.backends, "is_installed", lambda backend: True)
    model = open_model(run, chunk=1)
    assert model.program.form.backend == "torch"
    assert [note.split(",")[0] for note in model.notes] == ["openvino", "onnxruntime"]
    assert all("no such processor" in note for note in model.notes)
    with pytest.raises(UsageError, match="no such processor"):
        open_model(run, backend="openvino", chunk=1)


def test_policies_of_other_weights_are_refused(run) -> None:
    policy_at(run, 0.9, network="0" * 64).save(run / "policy.json")
    with pytest.raises(UsageError, match="found for the network"):
        opened(run)


def test_a_run_that_does_not_say_how_images_are_prepared_is_refused(run) -> None:
    inputs = opened(run).inputs
    RunFolder(run).input.unlink()
    with pytest.raises(UsageError, match=r"input\.json"):
        opened(run)
    assert opened(run, inputs=inputs).inputs == inputs


def test_the_measures_state_is_warmed_up_with_the_rest(run) -> None:
    exits = num_exits(run)
    model = opened(run, policy=Policy((*[1.0] * (exits - 1), EVERYBODY), Measure("patience")))
    assert len(model.segments) == exits
    assert model.plan == Plan(chunk=2, sizes=(1, 2))
