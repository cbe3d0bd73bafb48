import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.results import made_up

from offramp.cli import main
from offramp.commands import PolicyOptions, find_policy
from offramp.commands.bench.exit_times import exit_times
from offramp.commands.policy_files import write_policy
from offramp.costs import cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record, fit_temperatures, policy_for
from offramp.files import RunFolder, load
from offramp.json_files import write
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy
from offramp.storage import weights_hash

TIMES = {"1": [0.5, 1.4, 1.6], "32": [0.05, 0.11, 0.2], "stream": [0.5, 0.9, 1.0]}


def bench_of(weights: str, times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What `offramp bench` might have written of a run of three exits."""
    modes = (made_up.mode(name, times) for name, times in times.items())
    conditions = dataclasses.replace(made_up.CONDITIONS, device="cpu: made [up]")
    return made_up.bench(Policy((0.9, 0.9, EVERYBODY)), weights, *modes, conditions=conditions).to_json()


@pytest.fixture
def run(make_run):
    """A run with 15 search images, and times measured for its weights."""
    path = make_run()
    config = json.loads((path / "config.json").read_text())
    config["data"]["source"]["args"]["holdout"] = 30
    (path / "config.json").write_text(json.dumps(config))
    write(path / "bench.json", {**bench_of(weights_hash(load(path).state_dict()), TIMES), "more": "of it"})
    return path


def kept(run) -> Record:
    return Record.load(f"{run}/records/search.safetensors")


def certified(policy: Policy) -> Policy:
    return dataclasses.replace(policy, found={**policy.found, "certificate": {"whatever": 1}})


def test_temperatures_are_those_that_fit_the_search_half(run):
    for renormalise in (False, True):
        measure = {"measure": "entropy", "renormalise": renormalise}
        found = find_policy(PolicyOptions(run, device="cpu", budget=0.7, temperature=True, **measure))
        assert found.policy.measure.temperatures == fit_temperatures(kept(run), renormalise=renormalise)
        assert (found.policy.measure.name, found.policy.measure.renormalise) == ("entropy", renormalise)


@pytest.fixture
def held_out_record() -> Record:
    logits_KSC = 2 * torch.randn(3, 200, 5)
    targets_S = torch.randint(0, 4, (200,))
    about = {"fingerprint": "f", "weights": "w", "total": 200, "made_on": "cpu"}
    return Record(logits_KSC, targets_S, torch.arange(200), tuple("abcd"), split="made-up/search", **about)


@pytest.mark.parametrize("thresholds", [(0.6, 0.5, EVERYBODY), (NOBODY, 0.5, EVERYBODY), (NOBODY, NOBODY, EVERYBODY)])
def test_what_a_policy_does_equals_a_slow_loop(held_out_record, make_run, tmp_path, thresholds):
    costs = cost(load(make_run()))
    use = write_policy(Policy(thresholds), held_out_record, costs, tmp_path / "policy.json")
    probs_KSN = held_out_record.logits_KSC.softmax(-1)[..., :4]
    rows, spent = [[], [], []], 0
    for i, target in enumerate(held_out_record.targets_S.tolist()):
        k = next(k for k in range(3) if k == 2 or probs_KSN[k, i].max() >= thresholds[k])
        rows[k].append([probs_KSN[exit, i].argmax().item() == target for exit in (k, 2)])
        spent += costs.exits[k].operations
    for exit, here, threshold in zip(use.exits, rows, thresholds, strict=True):
        assert (exit.threshold, exit.images, exit.share) == (threshold, len(here), len(here) / 200)
        of_100 = [100 * sum(column) / len(here) for column in zip(*here, strict=True)] or [None, None]
        assert [exit.top1, exit.full_top1] == (pytest.approx(of_100) if here else of_100)
    everyone = [pair for here in rows for pair in here]
    assert [use.top1, use.full_top1] == pytest.approx([sum(column) / 2 for column in zip(*everyone, strict=True)])
    assert use.operations == pytest.approx(spent / 200)
    assert use.full_operations == costs.exits[-1].operations


def test_an_exit_that_is_better_than_the_last_beyond_doubt_is_named(held_out_record, make_run, tmp_path):
    costs = cost(load(make_run()))
    policy, written = Policy((0.5, 0.5, EVERYBODY)), tmp_path / "policy.json"
    sure_KSC = torch.zeros_like(held_out_record.logits_KSC)
    sure_KSC[:, range(200), held_out_record.targets_S] = 9.0
    for wrong, named in ((3, None), (40, 2)):  # images that the last exit, and the first, get wrong
        logits_KSC = sure_KSC.clone()
        logits_KSC[[0, 2], :wrong] *= -1
        use = write_policy(policy, dataclasses.replace(held_out_record, logits_KSC=logits_KSC), costs, written)
        assert (use.better_exit, use.better_top1) == (named, None if named is None else 100)
        assert use.full_top1 == 100 * (200 - wrong) / 200


def test_what_it_does_on_search_is_what_it_was_found_to_do(run):
    use = find_policy(PolicyOptions(run, device="cpu", latency=1.0))
    assert use.top1 == pytest.approx(use.policy.found["accuracy"])
    assert use.operations == pytest.approx(use.policy.found["operations"])
    times = sum(exit.share * time for exit, time in zip(use.exits, TIMES["1"], strict=True))
    assert times == pytest.approx(use.policy.found["milliseconds"])
    values = json.loads(json.dumps(use.to_json()))
    assert values["policy"]["thresholds"] == list(use.policy.thresholds)
    assert (values["written"], values["certificate"]) == (str(use.written), None)


def test_a_certificate_that_is_replaced_is_told(run):
    path = run / "policy.json"
    plain = find_policy(PolicyOptions(run, device="cpu", budget=0.7))
    assert not plain.replaced
    assert not find_policy(PolicyOptions(run, device="cpu", budget=0.7)).replaced  # one without a certificate was there
    certified(plain.policy).save(path)
    assert not find_policy(PolicyOptions(run, device="cpu", budget=0.7, out=run / "another.json")).replaced
    assert find_policy(PolicyOptions(run, device="cpu", budget=0.7)).replaced
    for other in ("{}", "no JSON", json.dumps({"format": 99})):
        path.write_text(other)
        assert not find_policy(PolicyOptions(run, device="cpu", budget=0.7)).replaced


def test_what_cannot_be_met_leaves_the_policy_that_was(run):
    before = find_policy(PolicyOptions(run, device="cpu", budget=0.7)).written.read_bytes()
    for target, said in [
        ({}, "Give one target"),
        ({"budget": 0.5, "latency": 1.0}, "Give one target"),
        ({"budget": 0.0}, "cannot be kept"),
        ({"budget": 0.5, "batch": "32"}, "whatever the batch"),
        ({"latency": 0.1}, r"0.1 ms an image cannot be kept: .* takes 0.5 ms"),
        ({"max_drop": -1}, "max_drop must be a number"),
        ({"latency": 1.0, "batch": "7"}, "no times for batch 7, but for 1, 32, stream. `offramp bench"),
    ]:
        with pytest.raises(UsageError, match=said):
            find_policy(PolicyOptions(run, device="cpu", **target))
    with pytest.raises(UsageError, match="patience looks only at answers"):
        find_policy(PolicyOptions(run, device="cpu", budget=0.7, temperature=True), measure=Measure("patience"))
    assert (run / "policy.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"weights": "0" * 64}, UsageError, "measured for the network with weights 000000000000, not "),
        ({"weights": None}, OfframpError, "damaged"),
        ({"conditions": {"device": 3}}, OfframpError, "damaged"),
        ([1, 2, 3, 4], OfframpError, "damaged"),
        (["fast", 2, 3], OfframpError, "damaged"),
        (3, OfframpError, "damaged"),
        ([1, 2, float("nan")], UsageError, "batch 1: .* that of exit 3 is nan"),
        ([2, 1, 3], UsageError, "batch 1: .* exit 2 takes 1 ms, less than the 2 ms"),
    ],
)
def test_times_that_are_of_no_use_are_refused_with_the_way_out(run, change, error, said):
    """`change`: of the file's fields, or what stands for the times of batch 1."""
    bench = json.loads((run / "bench.json").read_text())
    if isinstance(change, dict):
        bench |= change
    else:
        bench["modes"]["1"]["exit_ms"] = change
    (run / "bench.json").write_text(json.dumps(bench))
    with pytest.raises(error, match=f"bench.json.*{said}.*`offramp bench {run}` measures it anew"):
        find_policy(PolicyOptions(run, device="cpu", latency=1.0))


def test_nothing_measured_and_a_file_that_is_no_json(run):
    weights = weights_hash(load(run).state_dict())
    assert exit_times(RunFolder(run), weights, "32", 3)[0] == tuple(TIMES["32"])
    (run / "bench.json").write_text("{")
    with pytest.raises(OfframpError, match=r"bench.json is damaged"):
        exit_times(RunFolder(run), weights, "1", 3)
    (run / "bench.json").unlink()
    with pytest.raises(UsageError, match=f"there is no {run}/bench.json. `offramp bench {run}` measures it"):
        exit_times(RunFolder(run), weights, "1", 3)


# -- the command -------------------------------------------------------------------------------------------------------

NO_PROMISE = "where the thresholds were found: a description, no promise"


@pytest.fixture
def measured(make_trained, tiny):
    """A run whose times were measured."""
    run = make_trained()
    write(Path(run, "bench.json"), bench_of(weights_hash(tiny.state_dict()), {"1": TIMES["1"], "32": [1.0, 2.0, 3.0]}))
    return run


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["--budget", "0.5"], {"budget": 0.5}),
        (["--max-drop", "5"], {"max_drop": 5}),
        (["--latency", "1.2"], {"latency": 1.2, "times": TIMES["1"]}),
        (["--latency", "2.5", "--batch", "32"], {"latency": 2.5, "times": [1, 2, 3]}),
        (["--max-drop", "5", "--batch", "32"], {"max_drop": 5, "times": [1, 2, 3]}),
    ],
    ids=" ".join,
)
def test_a_run_gets_a_policy_for_a_target(measured, tiny, arguments, target, capsys):
    assert main(["policy", measured, *arguments]) == 0
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    policy = Policy.load(f"{measured}/policy.json")
    expected = policy_for(kept(measured), cost(tiny), **target)
    assert policy.thresholds == expected.thresholds
    assert expected.found.items() <= policy.found.items()
    assert NO_PROMISE in out
    assert "On the search images (150 of " in out
    assert f"Operations per image: {policy.found['operations']:,.0f}, " in out
    assert ("Milliseconds per image" in out) == ("times" in target)
    assert out.endswith("policy.json")
    assert captured.err == ""


def test_where_few_images_show_no_small_drop_that_is_said(measured, capsys):
    assert main(["policy", measured, "--max-drop", "0.1"]) == 0
    said = capsys.readouterr().err
    assert "No image leaves early" in said
    assert "the 150 images of arrays/search" in said
    assert len(said.splitlines()) == 1
    assert main(["policy", measured, "--max-drop", "50"]) == 0
    assert "No image leaves early" not in capsys.readouterr().err
