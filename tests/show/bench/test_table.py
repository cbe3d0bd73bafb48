import dataclasses
from types import SimpleNamespace

import pytest
from tests.results.made_up import CONDITIONS, bench, mode

from offramp.results.bench import Accuracy, Bench, CutAccuracy, CutSpeed, Latency, Speed
from offramp.runtime import Agreement, Form
from offramp.runtime.tuning import Trial
from offramp.show.bench.table import bench_table
from offramp.show.terminal import console


def made(*modes, **changes) -> Bench:
    exits = (
        CutAccuracy(80.0, 10.1, 8.0, 12.0, operations=50),
        CutAccuracy(85.0, 5.1, 4.0, 6.0, operations=200),
        CutAccuracy(90.1, 0.0, -0.2, 0.2, operations=400),
    )
    conditions = dataclasses.replace(CONDITIONS, device="some processor")
    return dataclasses.replace(
        bench(), modes={one.name: one for one in modes}, **{"exits": exits, "conditions": conditions} | changes
    )


def said(measured: Bench) -> str:
    out = console()
    with out.capture() as captured:
        out.print(bench_table(measured))
    return captured.get()


def test_a_block_says_what_became_of_the_promise():
    text = said(made(mode("32"), mode("stream", exits=(*mode("32").exits[:2], CutSpeed(1.5, 1.0, 1.0, 1.0, chunk=64)))))
    assert "batch 32: 3.00 times as fast as straight (2.80 to 3.40), promised 4.00, so 75% of it" in text
    assert "2,000 images/s, straight 667 (folded)" in text
    assert "2,000 images/s, straight 667 (folded; 64 at a time)" in text
    assert "75% stages at straight's speed, -5% their being slower (8% of rows idle), 10% heads, 20% dropping" in text
    assert "some processor, 2 threads, torch 2.0, oneDNN keeps 16,384 kernels, load before it 0.25" in text
    assert "(90 % interval); intervals cover timing, and not which images were timed" in text
    assert "policy: policy.json" in text
    assert "3 of 1,000 answers differ from the policy's on the plain network by rounding\n" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "80.00", "10.10", "(8.00", "to", "12.00)", "50", "0.4", "0.4"] in rows
    assert ["3,", "straight", "90.10", "400", "1.5", "1.5"] in rows
    assert ["engine", "90.00", "0.10", "(-0.10", "to", "0.30)", "100", "0.5", "0.5"] in rows
    assert max(map(len, text.splitlines())) <= 120


def test_single_images_have_latencies():
    single = mode("1", engine=Speed(0.5, 3, 2.8, 3.4, Latency(0.4, 1.2, 1.4)))
    exits = (*single.exits[:2], CutSpeed(1.5, 1, 1, 1, Latency(1.5, 1.6, 2.5)))
    text = said(made(dataclasses.replace(single, exits=exits)))
    assert "ms of an image at p50, p95, p99: 0.4, 1.2, 1.4; straight 1.5, 1.6, 2.5" in text
    assert "p50" not in said(made(mode("32")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"asks": (3,), "accuracy": Accuracy(90.1, 0, -0.2, 0.2)}, "runs straight on, no exit asked"),
        (
            {"asks": (2, 3), "accuracy": Accuracy(90.05, 0.05, -0.1, 0.2)},
            "asks exits 2, 3: 90.05 %, drop 0.05 (-0.10 to 0.20), 100 ope",
        ),
    ],
)
def test_what_the_plan_leaves_of_the_policy_is_said(changes, says):
    assert says in said(made(mode("32", **changes)))
    assert "asks exits" not in said(made(mode("32")))
    assert "runs straight on" not in said(made(mode("32")))


def test_answers_that_rounding_does_not_explain_are_said():
    flawed = mode("32", agreement=Agreement(256, 0, 7, 1e-4))
    measured = made(mode("1"), flawed, agreement=Agreement(1000, 3, 2, 1e-4))
    text = said(measured)
    network = "differ from the policy's on the plain network by rounding"
    assert f"  1 of 256 answers {network}\n" in text
    assert f"  0 of 256 answers {network}, 7 by more than that\n" in text
    assert f"engine on all of made-up/test: 3 of 1,000 answers {network}, 2 by more than that" in " ".join(text.split())
    assert measured.wrong == {"32": 7, "made-up/test": 2}
    assert made(mode("1")).wrong == {}


def test_forms_that_answer_otherwise_are_said():
    trials = (Trial(Form(), True, 0, 0, {}), Trial(Form(precision="bf16"), False, 90, 1, {}))
    text = said(made(mode("32"), tuning=SimpleNamespace(form=Form(), forms=trials)))
    assert "not used: torch, bf16: 90 answers flipped, 1 were wrong" in text
    assert text.count("not used") == 1
