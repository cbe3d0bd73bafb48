import json
import os
from functools import partialmethod
from pathlib import Path

import pytest
import torch

from offramp.cli import main
from offramp.commands import BenchOptions, Watch, bench
from offramp.commands.bench.exit_times import exit_times
from offramp.costs import cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Record, policy_for
from offramp.files import RunFolder, load
from offramp.network import EarlyExitNet
from offramp.policy import EVERYBODY, NOBODY, Policy
from offramp.runtime import Engine
from offramp.show.bench.table import bench_table
from offramp.show.terminal import console
from offramp.storage import weights_hash

QUICK = {"batches": (1, 8), "limit": 16, "rounds": 5, "seconds": 0.5, "backend": "torch"}
LEAVING = Policy((0.3, NOBODY, EVERYBODY))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(Engine, "tune", partialmethod(Engine.tune, seconds=0.05))


def said(measured) -> str:
    out = console()
    with out.capture() as captured:
        out.print(bench_table(measured))
    return " ".join(captured.get().split())


def test_a_run_is_measured_and_the_file_says_so(make_run, monkeypatch):
    run, heard = make_run(), []
    threads = torch.get_num_threads()
    measured = bench(BenchOptions(run, threads=threads, **QUICK), policy=LEAVING, watch=Watch(note=heard.append))
    assert torch.get_num_threads() == threads
    assert measured.written == (run / "bench.json",)
    values = json.loads((run / "bench.json").read_text())
    assert values == json.loads(json.dumps(measured.to_json()))
    assert [text.split()[0] for text in heard] == ["Tuning", "Timing", "Timing", "Timing", "Comparing"]

    test, costs = Record.load(run / "records" / "test.safetensors"), cost(load(run))
    assert list(values["modes"]) == ["1", "8", "stream"]
    assert values["weights"] == weights_hash(load(run).state_dict())
    assert values["conditions"]["threads"] == threads
    assert values["data"] == {"test": test.split, "fingerprint": test.fingerprint, "images": 40}
    assert values["tuned_on"].endswith("/search")
    assert values["policy"]["thresholds"] == list(LEAVING.thresholds)
    chosen = LEAVING.choose(test.logits_KSC, test.num_classes)
    assert values["accuracy"]["top1"] == pytest.approx(100 * (chosen.labels_S == test.targets_S).double().mean().item())
    spent_K = Engine(load(run), LEAVING).operations()
    assert values["operations"] == pytest.approx(sum(spent_K[k] for k in chosen.exits_S.tolist()) / 40)
    assert [exit["operations"] for exit in values["exits"]] == [count.operations for count in costs.path]
    assert values["exits"][-1]["drop"] == 0
    assert (values["agreement"]["images"], values["agreement"]["wrong"]) == (40, 0)
    for mode in values["modes"].values():
        assert mode["engine"]["low"] <= mode["engine"]["times"] <= mode["engine"]["high"]
        assert mode["exits"][-1]["times"] == 1
    assert set(values["modes"]["1"]["engine"]["latency"]) == {"p50", "p95", "p99"}

    # `offramp policy --latency` can read it.
    for name in ("1", "8", "stream"):
        times_K, where = exit_times(RunFolder(run), values["weights"], name, 3)
        assert list(times_K) == values["modes"][name]["exit_ms"]
        assert where == {"device": values["conditions"]["device"], "batch": name}

    text = said(measured)
    for words in ("batch 1:", "batch 8:", "stream:", "p50, p95, p99", "dropping rows and Python", "policy: given"):
        assert words in text
    for mode in measured.modes.values():
        assert f"{mode.realised:.0%} of it" in text
        assert f"({mode.straight_form}" in text


def test_the_load_is_that_of_before_any_work(make_run, monkeypatch):
    """The network's own forward passes are load too, of which a report should not complain."""
    run, load_then = make_run(), [0.125]
    monkeypatch.setattr("os.getloadavg", lambda: (load_then[0], 0.0, 0.0))
    forward = EarlyExitNet.run_stage

    def busy(*arguments):
        load_then[0] = 8.0
        return forward(*arguments)

    monkeypatch.setattr(EarlyExitNet, "run_stage", busy)
    measured = bench(BenchOptions(run, **QUICK), policy=LEAVING)
    assert load_then == [8.0]
    assert measured.conditions.load_average == 0.12
    assert "load before it 0.12" in said(measured)


def test_without_a_policy_one_is_found(make_run):
    run = make_run()
    measured = bench(BenchOptions(run, **QUICK))
    search = Record.load(run / "records" / "search.safetensors")
    assert measured.policy == policy_for(search, cost(load(run)), max_drop=0.2)
    assert measured.policy_file is None
    assert "policy: found for a drop of 0.2 points" in said(measured)
    assert not (run / "policy.json").exists()


def test_the_runs_policy_is_taken_unless_a_drop_is_named(make_run, tmp_path):
    run = make_run()
    LEAVING.save(run / "policy.json")
    out = tmp_path / "new" / "mine.json"  # folders are made
    measured = bench(BenchOptions(run, out=out, **QUICK))
    assert (measured.policy, measured.policy_file) == (LEAVING, str(run / "policy.json"))
    assert measured.written == (out,)
    assert out.is_file()
    assert not (run / "bench.json").exists()
    found = bench(BenchOptions(run, max_drop=50, **QUICK))
    assert found.policy.found["max_drop"] == 50
    assert found.policy_file is None


def test_data_by_hand_and_nothing_held_out(make_run, tiny_parts):
    from offramp.data.base import HeldOut

    run = make_run(data=None)
    nothing_held = tiny_parts._replace(val=HeldOut())
    with pytest.raises(UsageError, match="with holdout=0 there are none"):
        bench(BenchOptions(run, **QUICK), parts=nothing_held)
    with pytest.raises(UsageError, match=r"data made by hand, .* parts="):
        bench(BenchOptions(run, **QUICK), policy=LEAVING)
    measured = bench(BenchOptions(run, plots="svg", **QUICK), policy=LEAVING, parts=nothing_held)
    assert measured.tuned_on.endswith("/train")
    assert "geometric shares" not in (run / "plots" / "bench-operations.svg").read_text()


def test_plots(make_run):
    run = make_run()
    measured = bench(BenchOptions(run, plots="svg", **QUICK), policy=LEAVING)
    names = [path.name for path in measured.written]
    assert names == ["bench.json", "bench-operations.svg", "bench-time.svg"]
    operations, time = ((run / "plots" / name).read_text() for name in names[1:])
    for words in ("geometric shares", "searched thresholds", "network cut at one exit", "operations per image"):
        assert words in operations
    for words in ("batch 1", "batch 8", "stream", "milliseconds per image"):
        assert words in time


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batches": ()}, "batches must be one size or more"),
        ({"batches": (8, 8)}, "each once"),
        ({"batches": (8, 0)}, "batches must be a whole number of at least 1, not 0"),
        ({"limit": 0}, "limit must be a whole number of at least 1"),
        ({"rounds": 4}, "rounds must be a whole number of at least 5"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"max_drop": float("nan")}, "max_drop must be a number of at least 0"),
        ({"policy": LEAVING, "max_drop": 1.0}, "not both"),
        ({"policy": Policy((0.5, EVERYBODY))}, "policy is for 2 exits; the network has 3"),
        ({"policy": Policy((0.5, 0.5, EVERYBODY), network="another")}, "found for the network with weights another"),
        ({"policy": "nowhere.json"}, "There is no file nowhere.json"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(settings, says, make_run):
    run = make_run()
    with pytest.raises(UsageError, match=says):
        bench(BenchOptions(run, **{**QUICK, **settings}))
    assert not (run / "records").exists()
    assert not (run / "bench.json").exists()


def test_one_exit_is_refused(make_run):
    with pytest.raises(UsageError, match="has one exit, so no image can leave early"):
        bench(BenchOptions(make_run(exits=1), **QUICK))


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(make_run, tmp_path, monkeypatch):
    run = make_run()
    (tmp_path / "file").write_text("")
    with pytest.raises(OfframpError, match=r"bench\.json cannot be written: .*file is no folder"):
        bench(BenchOptions(run, out=tmp_path / "file" / "bench.json", **QUICK), policy=LEAVING)
    with pytest.raises(UsageError, match=f"{tmp_path} is a folder; name a file"):
        bench(BenchOptions(run, out=tmp_path, **QUICK), policy=LEAVING)
    (tmp_path / "closed").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed" and allowed(path, mode))
    with pytest.raises(OfframpError, match=r"mine\.json cannot be written: .*closed is not writable"):
        bench(BenchOptions(run, out=tmp_path / "closed" / "new" / "mine.json", **QUICK), policy=LEAVING)
    assert not (run / "records").exists()
    assert not (tmp_path / "closed" / "new").exists()


def test_a_run_that_cannot_be_written_to_is_refused_with_the_reason(make_run, tmp_path, monkeypatch):
    run, allowed = make_run(), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != run and allowed(path, mode))
    with pytest.raises(UsageError, match="is not writable; logits"):
        bench(BenchOptions(run, out=tmp_path / "mine.json", **QUICK), policy=LEAVING)


# -- the command -------------------------------------------------------------------------------------------------------

WORDS = ["--batches", "1", "8", "--limit", "16", "--rounds", "5", "--seconds", "0.5", "--threads", "1"]


def test_a_run_is_timed(make_trained, capsys):
    run = make_trained()
    assert main(["bench", run, *WORDS, "--max-drop", "5"]) == 0
    captured = capsys.readouterr()
    values = json.loads(Path(run, "bench.json").read_text())
    assert values["policy"]["found"]["max_drop"] == 5
    assert list(values["modes"]) == ["1", "8", "stream"]
    assert captured.out.rstrip().endswith("bench.json")
    out = " ".join(captured.out.split())
    for words in ("3, straight", "engine", "batch 8:", "times as fast as straight", "1 thread,"):
        assert words in out
    assert captured.err.splitlines()[0].startswith("Tuning the engine on images of ")
    # What was measured is what policies for a latency are found with.
    times = values["modes"]["8"]["exit_ms"]
    half = (times[0] + times[-1]) / 2
    assert main(["policy", run, "--latency", str(half), "--batch", "8"]) == 0
    assert Policy.load(f"{run}/policy.json").found["times"] == times


def test_an_engine_that_answers_otherwise_is_an_error_after_the_file_is_written(make_trained, monkeypatch, capsys):
    run, fed = make_trained(), Engine.stream

    def wrong(engine, batches, **more):
        return (one._replace(labels_B=(one.labels_B + 1) % 3) for one in fed(engine, batches, **more))

    monkeypatch.setattr(Engine, "stream", wrong)
    assert main(["bench", run, *WORDS, "--max-drop", "5"]) == 1
    captured = capsys.readouterr()
    assert "The engine's answers are not all the policy's" in captured.err.splitlines()[-1]
    values = json.loads(Path(run, "bench.json").read_text())
    assert values["agreement"]["wrong"] > 0
    assert values["accuracy"]["top1"] < values["exits"][-1]["top1"] - 20
    assert "by more than that" in " ".join(captured.out.split())


@pytest.mark.slow
def test_a_policy_certified_in_int8_is_timed_in_that_form_alone(make_trained, tmp_path, monkeypatch, capsys):
    """Its answers were compared with those of float32, and differed: status 1."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, file = make_trained(), str(tmp_path / "policy.json")
    promise = ["--risk", "0.1", "--confidence", "0.9", "--backend", "openvino", "--precision", "int8"]
    assert main(["certify", run, *promise, "--out", file]) == 0
    capsys.readouterr()
    assert main(["bench", run, *WORDS, "--policy", file]) == 0
    assert "not tried" not in capsys.readouterr().out
    values = json.loads(Path(run, "bench.json").read_text())
    assert [trial["form"] for trial in values["tuning"]["forms"]] == [{"backend": "openvino", "precision": "int8"}]
    own = Record.load(f"{run}/records/test-openvino-int8.safetensors")
    right_S = own.logits_KSC[-1].argmax(-1) == own.targets_S
    assert values["exits"][-1]["top1"] == pytest.approx(100 * right_S.double().mean().item())
    for more in (["--backend", "torch"], ["--backend", "onnxruntime"], ["--bf16"]):
        assert main(["bench", run, *WORDS, "--policy", file, *more]) == 2
